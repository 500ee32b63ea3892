"""What attribution asks of a policy: of a batch of states the distribution of actions, values and latent features."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from gymnasium import spaces
from torch import Tensor, nn

from ...datasets.arrays import Array
from ...datasets.errors import InputError
from ...training.environments.actions import category_sizes
from ...training.environments.spaces import Space
from .inputs import OBSERVATION_ALONE, PolicyInputs

Observations = Tensor | dict[str, Tensor]
_LOG_2PI = 1.8378770664093453
_MASKED_LOGIT = -1e8  # sb3-contrib's


class Distribution(Protocol):
    """The distribution of actions in N states."""

    @property
    def discrete(self) -> bool:
        """Whether an action is one of A, and the probability of each is known (`log_probs`)."""
        ...

    def log_probs(self) -> Tensor:
        """Return log pi(.|s) of every action, [N, A]."""
        ...

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log pi(a|s), [N] (of continuous actions: the log density), for actions [N] or [N, K]."""
        ...

    def log_odds(self, actions: Tensor) -> Tensor:
        """Return log p/(1-p) of the actions taken, [N]; of continuous actions the log density, which has no odds."""
        ...


@dataclass(frozen=True)
class ActionDistribution:
    """The distribution of actions in N states, by the output of a network's last layer.

    Attributes:
        space: the action space.
        head: output of the actor's last layer, [N, O]: logits, or means (Box).
        log_std: log of the spread of each state's actions [N, K], equal in all states; only for Box.
        mask: bool [N, O], allowed actions of a policy that is masked: the logits of all others are -1e8.
    """

    space: Space
    head: Tensor
    log_std: Tensor | None = None
    mask: Tensor | None = None

    @property
    def discrete(self) -> bool:
        """Whether an action is one of A."""
        return isinstance(self.space, spaces.Discrete)

    @property
    def logits(self) -> Tensor:
        """The head of actions that are no Box, masked."""
        return self.head if self.mask is None else torch.where(self.mask, self.head, _MASKED_LOGIT)

    def log_probs(self) -> Tensor:
        """Return log pi(.|s) of every action, [N, A]; about -1e8 for one that is not allowed.

        Raises:
            InputError: the actions are not Discrete.
        """
        if not self.discrete:
            raise InputError(f"log pi of every action needs Discrete actions, the policy has {self.space}")
        return torch.log_softmax(self.logits, dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log pi(a|s), [N] (of a Box: the log density), for actions [N] or [N, K]."""
        actions = actions.to(self.head.device)
        if self.discrete:
            if actions.dtype != torch.int64 or actions.ndim != 1:
                raise InputError(
                    f"actions of shape {tuple(actions.shape)} and {actions.dtype}, expected whole numbers [N] for "
                    f"{self.space}"
                )
            return _chosen(self.logits, actions)
        if isinstance(self.space, spaces.MultiDiscrete) or self.mask is not None:  # MaskablePPO's MultiBinary too
            parts = torch.split(self.logits, category_sizes(self.space), dim=-1)
            return torch.stack([_chosen(part, actions[..., k].long()) for k, part in enumerate(parts)]).sum(0)
        if isinstance(self.space, spaces.MultiBinary):
            signs = 2.0 * actions.to(self.head.dtype) - 1.0
            return torch.nn.functional.logsigmoid(signs * self.head).sum(-1)
        assert self.log_std is not None
        deviation = (actions.to(self.head.dtype) - self.head) * torch.exp(-self.log_std)
        return (-0.5 * deviation**2 - self.log_std - 0.5 * _LOG_2PI).sum(-1)

    def log_odds(self, actions: Tensor) -> Tensor:
        """Return log p/(1-p) of the actions taken, [N]; of a Box the log density, which has no odds.

        A Discrete action that was the only one allowed counts 0.
        """
        if isinstance(self.space, spaces.Box):
            return self.log_prob(actions)
        if self.discrete:
            taken = torch.arange(self.head.shape[-1], device=self.head.device) == actions[..., None].to(
                self.head.device
            )
            others = ~taken if self.mask is None else ~taken & self.mask
            return difference_of_log_sums(self.log_probs(), taken, others)
        return odds(self.log_prob(actions))


def odds(log_prob: Tensor) -> Tensor:
    """Return log p/(1-p) of log p."""
    smallest = torch.finfo(log_prob.dtype).eps
    return log_prob - torch.log(-torch.expm1(log_prob.clamp(max=-smallest)))


def _chosen(logits: Tensor, actions: Tensor) -> Tensor:
    log_probs = torch.log_softmax(logits, dim=-1)
    return torch.gather(log_probs, -1, actions[..., None])[..., 0]


def difference_of_log_sums(log_probs: Tensor, plus: Tensor, minus: Tensor) -> Tensor:
    """Return log sum of the probabilities of `plus` minus that of `minus`, [N]; an empty choice counts 0."""
    return _log_sum(log_probs, plus) - _log_sum(log_probs, minus)


def _log_sum(log_probs: Tensor, chosen: Tensor) -> Tensor:
    # rows without a chosen action are summed over all actions (log 1 = 0): finite, also their derivative
    chosen = chosen.to(log_probs.device)
    some = chosen.any(dim=-1, keepdim=True)
    return torch.logsumexp(log_probs.masked_fill(some & ~chosen, float("-inf")), dim=-1)


class LinearUse(NamedTuple):
    """Parameters outside of a layer that act as a weight on known inputs: the gates of an LSTM, a spread.

    Attributes:
        inputs: [N, I].
        output: [N, O], the weight times the inputs.
    """

    inputs: Tensor
    output: Tensor


class Outputs:
    """What an actor says of N states, differentiable; each part is computed when it is first asked for.

    A part that the actor does not have raises InputError.

    Attributes:
        linear_uses: by name, of `Actor.linear_parameters`, for the parts that were computed so far.
    """

    def __init__(self) -> None:
        self.linear_uses: dict[str, LinearUse] = {}

    @cached_property
    def distribution(self) -> Distribution:
        """The distribution of actions."""
        raise InputError("the policy gives no action probabilities, which this target or estimator needs")

    @cached_property
    def values(self) -> Tensor:
        """V(s), [N]."""
        raise InputError("the policy gives no V(s), which this target needs: a method value(observations)")

    @cached_property
    def latent(self) -> Tensor:
        """Latent features of the actor, the input of its last layer, [N, H]."""
        raise InputError("the policy gives no latent features, which this needs: a method latent(observations)")

    @cached_property
    def critic_latent(self) -> Tensor | None:
        """Latent features of the critic, the input of its last layer, [N, H]; None: not known."""
        return None

    @cached_property
    def q_values(self) -> Tensor:
        """Q(s, .) of every action [N, A], or Q of one action a state [N, 1]."""
        raise InputError("the policy gives no Q(s, a), which this target or estimator needs; expected a Q-network")


@runtime_checkable
class Actor(Protocol):
    """A policy as targets, gradients and estimators ask it; `as_actor` makes one of a policy or module.

    Attributes:
        module: gradients are by its parameters. Its precision may be changed.
        has_values: whether its outputs have V(s).
        linear_parameters: names of parameters that belong to no linear, convolution or embedding layer, and whose uses
            its outputs record (`Outputs.linear_uses`).
    """

    @property
    def module(self) -> nn.Module: ...  # noqa: D102

    @property
    def has_values(self) -> bool: ...  # noqa: D102

    @property
    def linear_parameters(self) -> frozenset[str]: ...  # noqa: D102

    def why_not_factored(self) -> str | None:
        """Return why its gradients have no factored form, whatever its layers are; None where that is up to them."""
        ...

    def prepare(self, observations: Array) -> Observations:
        """Return recorded observations [N, ...] as its first layers take them."""
        ...

    def outputs(self, observations: Array, inputs: PolicyInputs = OBSERVATION_ALONE) -> Outputs:
        """Return what it says of N states.

        Args:
            observations: [N, ...] as they were recorded (structured for a dictionary).
            inputs: what it takes in addition.
        """
        ...
