"""Does a policy give recorded actions the probabilities that were recorded? Else parameters and rows do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from ...datasets.arrays import Array
from ...datasets.errors import InputError
from ...datasets.words import counted
from ..environments.spaces import as_tensors

Inputs = Tensor | dict[str, Tensor]
_TOLERANCE = 1e-3  # of log pi, absolute and relative: float32 in batches of another size, networks of images included
_BATCH = 4096

# Makes an actor-critic module of one's own a `RecordedPolicy`; a test runs these lines as they stand, and
# docs/recording.md shows them. They are written for `module(observations) -> (logits, values)`.
ADAPTER = """\
class Recorded(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module  # module(observations) -> (logits [N, A], values [N] or [N, 1])

    def log_prob(self, observations, actions):  # Gaussian: Normal(mean, std).log_prob(actions).sum(-1)
        return torch.distributions.Categorical(logits=self.module(observations)[0]).log_prob(actions)

    def value(self, observations):
        return self.module(observations)[1].reshape(-1)
"""


class RecordedPolicy(Protocol):
    """What a policy must say to be recorded in a loop: a `torch.nn.Module` with these two methods.

    `observations` are tensors as the loop gave them, stacked to [N, ...] (a dictionary of them for a dictionary),
    `actions` int64 [N] or [N, K], or floats [N, K].
    """

    def log_prob(self, observations: Inputs, actions: Tensor) -> Tensor:
        """Return log pi(a|s), [N], of the actions as drawn.

        Of logits l it is l_a - log sum exp l; of a Gaussian sum_k [-((a_k - mu_k)/sigma_k)^2 / 2 - log sigma_k -
        log(2 pi)/2], before any clipping or squashing of the action.
        """
        ...

    def value(self, observations: Inputs) -> Tensor:
        """Return V(s), [N]; called only where advantages are to be estimated."""
        ...


def log_probs(policy: torch.nn.Module, observations: Array, actions: Array) -> NDArray[np.float64]:
    """Return log pi(a|s) of rows as kept, [N], of a `RecordedPolicy` or a policy of Stable-Baselines3."""
    if isinstance(policy, ActorCriticPolicy):
        return _in_batches(policy, lambda seen, chosen: policy.evaluate_actions(seen, chosen)[1], observations, actions)
    return _in_batches(policy, policy.log_prob, observations, actions)  # type: ignore[arg-type]


def values(policy: torch.nn.Module, observations: Array) -> NDArray[np.float64]:
    """Return V(s) of observations as kept, [N]."""
    value: Any = policy.predict_values if isinstance(policy, ActorCriticPolicy) else policy.value
    return _in_batches(policy, lambda seen, _: value(seen), observations, np.zeros(len(observations), np.int64))


def _in_batches(
    policy: torch.nn.Module, asked: Callable[[Any, Tensor], Tensor], observations: Array, actions: Array
) -> NDArray[np.float64]:
    device = next((parameter.device for parameter in policy.parameters()), torch.device("cpu"))
    answers = []
    with torch.no_grad():
        for start in range(0, len(actions), _BATCH):
            rows = slice(start, start + _BATCH)
            inputs = as_tensors(observations[rows])
            moved = {k: v.to(device) for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)
            answers.append(asked(moved, torch.as_tensor(actions[rows]).to(device)).double().cpu().numpy().reshape(-1))
    return np.concatenate(answers) if answers else np.empty(0)


def require_agreement(kept: Array, computed: NDArray[np.float64], where: str, causes: str) -> None:
    """Check log pi(a|s) as recorded, [N], against what a policy says.

    Raises:
        InputError: they differ by more than 1e-3; names the row that differs most.
    """
    if len(computed) != len(kept):
        raise InputError(f"{where}: the policy gave {len(computed)} log-probabilities for {counted(len(kept), 'row')}")
    excess = np.abs(computed - kept) - _TOLERANCE * (1.0 + np.abs(kept))
    if len(kept) and not (excess <= 0.0).all():
        worst = int(np.argmax(np.nan_to_num(excess, nan=np.inf)))
        raise InputError(
            f"{where}, row {worst}: the log-probability of the action was recorded as {kept[worst]:.6g}, the policy "
            f"gives it {computed[worst]:.6g}; expected the same within {_TOLERANCE:g}. {causes}"
        )
