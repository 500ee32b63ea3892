"""Any policy as an actor: of Stable-Baselines3, a module of one's own (what `LoopRecorder` takes), or an actor."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from torch import Tensor, nn

from ...datasets.arrays import Array
from ...datasets.errors import InputError
from ...training.environments.spaces import as_tensors
from .inputs import OBSERVATION_ALONE, PolicyInputs
from .outputs import ActionDistribution, Actor, Distribution, Observations, Outputs, odds
from .sb3 import Sb3Actor


def as_actor(policy: nn.Module | Actor) -> Actor:
    """Return a policy as an actor.

    Args:
        policy: an actor-critic policy of Stable-Baselines3 or sb3-contrib (`model.policy`), a module with the method
            `log_prob` (`ModuleActor`), or an actor, which is returned as it is.

    Raises:
        InputError: none of these, or a module that is not on the CPU.
    """
    if isinstance(policy, nn.Module):
        devices = {parameter.device.type for parameter in policy.parameters()} - {"cpu"}
        if devices:
            raise InputError(
                f"the policy is on {', '.join(sorted(devices))}, expected the CPU: pass copy.deepcopy(policy).cpu()"
            )
    if isinstance(policy, ActorCriticPolicy) or (isinstance(policy, BasePolicy) and hasattr(policy, "mlp_extractor")):
        return Sb3Actor(policy)  # type: ignore[arg-type]  # MaskablePPO's has the same parts, and is no subclass
    if isinstance(policy, nn.Module) and _method(policy, "log_prob"):
        return ModuleActor(policy)
    if isinstance(policy, Actor):
        return policy
    raise InputError(
        f"the policy is a {type(policy).__name__}, expected an actor-critic policy of Stable-Baselines3 "
        "(`model.policy`), or a torch.nn.Module with the method log_prob(observations, actions) -> [N]. "
        "A Q-network: aitia.attribution.actors.q_networks"
    )


def on_device(actor: Actor, device: str) -> Actor:
    """Move an actor to where its gradients are computed: `cpu`, `cuda`, or `cuda:1`, ...

    Raises:
        InputError: this machine has no such device; names those it has.
    """
    count = torch.cuda.device_count()
    there = ["cpu", *(["cuda"] if count else []), *(f"cuda:{number}" for number in range(count))]
    if device not in there:
        raise InputError(f"device {device} was given, expected one that torch has here: {', '.join(there)}")
    actor.module.to(device)
    return actor


class ModuleActor:
    """A module of one's own; see `Actor`.

    Args:
        module: with the method `log_prob(observations, actions) -> [N]`. Optional are `value(observations) -> [N]`,
            which the value channel and the target `value` need, `distribution(observations) ->
            torch.distributions.Categorical`, which targets of `labels` need, and `latent(observations) -> [N, H]`.
            Observations are tensors [N, ...] (a dictionary of them for a dictionary), floats in the precision of the
            module's parameters, which may be changed to float64 (so cast to that of a parameter, not by `float()`).
            What it says of a state depends on no other state of the batch.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.has_values = _method(module, "value") is not None
        self.linear_parameters: frozenset[str] = frozenset()

    def why_not_factored(self) -> str | None:
        """Return None: it is up to the layers."""
        return None

    def outputs(self, observations: Array, inputs: PolicyInputs = OBSERVATION_ALONE) -> Outputs:
        """Return what the module says of N states.

        Raises:
            InputError: actions are masked, which the module does not take.
        """
        if inputs.mask is not None:
            raise InputError("actions are masked, expected none: log_prob of a module of one's own takes no mask")
        return ModuleOutputs(self.module, self.prepare(observations))

    def prepare(self, observations: Array) -> Observations:
        """Return observations as tensors, floats in the precision of the module's parameters."""
        tensors, like = as_tensors(observations), _like(self.module)
        if isinstance(tensors, dict):
            return {name: _floats_as(values, like) for name, values in tensors.items()}
        return _floats_as(tensors, like)


class ModuleOutputs(Outputs):
    """What a module says of N states; see `ModuleActor`.

    Args:
        module: the module.
        observations: as it takes them.
    """

    def __init__(self, module: nn.Module, observations: Observations) -> None:
        super().__init__()
        self._module, self._observations = module, observations

    @cached_property
    def distribution(self) -> Distribution:
        """The distribution of actions: of every action, where the module gives it, else of those asked for."""
        if method := _method(self._module, "distribution"):
            distribution = method(self._observations)
            if not isinstance(distribution, torch.distributions.Categorical):
                raise InputError(
                    f"distribution returned a {type(distribution).__name__}, expected a "
                    "torch.distributions.Categorical; where actions are no categories leave the method out"
                )
            return ActionDistribution(spaces.Discrete(distribution.logits.shape[-1]), distribution.logits)
        return _LogProbs(self._module, self._observations)

    @cached_property
    def values(self) -> Tensor:
        """V(s), [N]."""
        value = _method(self._module, "value")
        if value is None:
            return super().values
        values: Tensor = value(self._observations)
        if values.numel() != (rows := _rows(self._observations)):
            raise InputError(f"value returned the shape {tuple(values.shape)}, expected ({rows},)")
        return values.reshape(-1)

    @cached_property
    def latent(self) -> Tensor:
        """Latent features, [N, H]."""
        latent = _method(self._module, "latent")
        return super().latent if latent is None else latent(self._observations)


class _LogProbs:
    """The distribution of a module that gives only log pi(a|s) of the actions taken."""

    discrete = False

    def __init__(self, module: nn.Module, observations: Observations) -> None:
        self._module, self._observations = module, observations
        self._last: tuple[Tensor, Tensor] | None = None

    def log_probs(self) -> Tensor:
        """Raise: they are not known.

        Raises:
            InputError: always.
        """
        raise InputError(
            "the policy gives log pi of the actions taken alone, and targets of `labels` ask for every action: give it "
            "the method distribution(observations) -> torch.distributions.Categorical, or use the target `log-odds`"
        )

    def log_prob(self, actions: Tensor) -> Tensor:
        """Return log pi(a|s), [N]; the module is asked once for the same actions, for it may be used only once.

        Raises:
            InputError: the module returns another shape.
        """
        if self._last is None or self._last[0] is not actions:
            taken = _floats_as(actions, _like(self._module))
            log_prob: Tensor = self._module.log_prob(self._observations, taken)  # type: ignore[operator]
            if log_prob.shape != (len(actions),):
                raise InputError(f"log_prob returned the shape {tuple(log_prob.shape)}, expected ({len(actions)},)")
            self._last = actions, log_prob
        return self._last[1]

    def log_odds(self, actions: Tensor) -> Tensor:
        """Return log p/(1-p) of the actions taken, [N]; of actions in floats the log density."""
        log_prob = self.log_prob(actions)
        return log_prob if actions.is_floating_point() else odds(log_prob)


def _method(module: nn.Module, name: str) -> Callable[..., Any] | None:
    method = getattr(module, name, None)
    return method if callable(method) else None


def _rows(observations: Observations) -> int:
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def _like(module: nn.Module) -> Tensor:
    """Return a tensor of the precision and device of a module's parameters."""
    return next(iter(module.parameters()), torch.empty(0))


def _floats_as(values: Tensor, like: Tensor) -> Tensor:
    """Return values where `like` is, floats in its precision."""
    return values.to(like.device, like.dtype if values.is_floating_point() else None)
