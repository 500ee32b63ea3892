"""What a policy says of a batch of states, differentiable: the distribution of its actions, and its values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor

from ...datasets.errors import InputError
from ...training.agents.memory import ACTOR, CRITIC, is_recurrent
from ...training.environments.actions import category_sizes, takes_masks
from ...training.environments.spaces import Space
from .given import NOTHING_BESIDE, Gates, Given, incoming_states, lstm_step

Inputs = Tensor | dict[str, Tensor]
_LOG_2PI = 1.8378770664093453
_MASKED_LOGIT = -1e8  # sb3-contrib's


@dataclass(frozen=True)
class ActionDistribution:
    """The distribution of actions in N states.

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
    def logits(self) -> Tensor:
        """The head of actions that are no Box, masked."""
        return self.head if self.mask is None else torch.where(self.mask, self.head, _MASKED_LOGIT)

    def log_probs(self) -> Tensor:
        """Return log pi(.|s) of every action, [N, A]; about -1e8 for one that is not allowed.

        Raises:
            InputError: the actions are not Discrete.
        """
        if not isinstance(self.space, spaces.Discrete):
            raise InputError(f"log pi of every action needs Discrete actions, the policy has {self.space}")
        return torch.log_softmax(self.logits, dim=-1)

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log pi(a|s), [N] (of a Box: the log density), for actions [N] or [N, K]."""
        if isinstance(self.space, spaces.Discrete):
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
        if isinstance(self.space, spaces.Discrete):
            taken = torch.arange(self.head.shape[-1]) == actions[..., None]
            others = ~taken if self.mask is None else ~taken & self.mask
            return difference_of_log_sums(self.log_probs(), taken, others)
        log_prob = self.log_prob(actions)
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
    some = chosen.any(dim=-1, keepdim=True)
    return torch.logsumexp(log_probs.masked_fill(some & ~chosen, float("-inf")), dim=-1)


def prepare(policy: ActorCriticPolicy, observations: Inputs) -> Inputs:
    """Return observations as the policy's first layers take them: images in [0, 1], integers one-hot."""
    dtype = next(policy.parameters()).dtype
    found = preprocess_obs(observations, policy.observation_space, policy.normalize_images)
    if isinstance(found, dict):
        return {name: values.to(dtype) for name, values in found.items()}
    return found.to(dtype)


class Outputs:
    """What a policy says of N states; each part is computed when it is first asked for.

    Args:
        policy: an SB3 actor-critic policy.
        observations: tensors [N, ...], as the policy saw them (a dictionary of them for Dict).
        given: what it is given beside them.

    Attributes:
        gates: of a recurrent policy, by layer, what was computed so far. States that come in are taken as they are:
            derivatives end there (backpropagation through time is truncated after one step).
    """

    def __init__(self, policy: ActorCriticPolicy, observations: Inputs, given: Given = NOTHING_BESIDE) -> None:
        self.policy, self._observations, self._given = policy, observations, given
        self.gates: dict[str, Gates] = {}

    @cached_property
    def _prepared(self) -> Any:
        return prepare(self.policy, self._observations)

    @cached_property
    def _actor_features(self) -> Tensor:
        return self.policy.pi_features_extractor(self._prepared)  # type: ignore[no-any-return]

    @cached_property
    def _actor_memory(self) -> Tensor:
        """What the actor's own layers take: features, or what its LSTM makes of them."""
        recurrent = is_recurrent(self.policy)
        return self._remembered("lstm_actor", self._actor_features, ACTOR) if recurrent else self._actor_features

    def _remembered(self, name: str, features: Tensor, part: slice) -> Tensor:
        lstm: Any = getattr(self.policy, name)
        states = incoming_states(lstm, features.detach(), self._given.history, part)
        output, layers = lstm_step(lstm, features, states)
        self.gates |= {f"{name}.{layer}": gates for layer, gates in enumerate(layers)}
        return output

    @cached_property
    def latent(self) -> Tensor:
        """Latent features of the actor, the input of its last layer, [N, H]."""
        return self.policy.mlp_extractor.forward_actor(self._actor_memory)

    @cached_property
    def distribution(self) -> ActionDistribution:
        """The distribution of actions."""
        head = self.policy.action_net(self.latent)
        if not isinstance(self.policy.action_space, spaces.Box):
            return ActionDistribution(self.policy.action_space, head, mask=self._mask(head))
        # a copy of each row, so that the derivative by one row's spread exists
        return ActionDistribution(self.policy.action_space, head, self.policy.log_std.expand_as(head).clone())

    def _mask(self, head: Tensor) -> Tensor | None:
        if not takes_masks(self.policy):
            return None
        mask = self._given.mask
        return torch.ones_like(head, dtype=torch.bool) if mask is None else torch.as_tensor(mask)

    @cached_property
    def values(self) -> Tensor:
        """V(s), [N]."""
        policy = self.policy
        shared = policy.share_features_extractor
        found = self._actor_features if shared else policy.vf_features_extractor(self._prepared)
        if is_recurrent(policy):
            whole: Any = policy
            if whole.lstm_critic is not None:
                found = self._remembered("lstm_critic", found, CRITIC)
            else:  # the actor's LSTM, which the value loss does not move, or a layer instead of an LSTM
                found = self._actor_memory.detach() if whole.shared_lstm else whole.critic(found)
        values: Tensor = policy.value_net(policy.mlp_extractor.forward_critic(found))[:, 0]
        return values
