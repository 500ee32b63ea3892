"""Targets of Q-networks: the margin between a misbehaving action's value and a desired one's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...datasets.arrays import Array
from ..actors.outputs import Outputs
from ..actors.q_networks import critic_inputs
from .steps import Targets


def margin_targets(observations: Array, misbehaving: Sequence[int], desired: Sequence[int], actions: int) -> Targets:
    """Return one target of DQN, the mean margin Q(s, misbehaving) - Q(s, desired) over states.

    Args:
        observations: [T, ...], states of decisive steps, as the policy sees them.
        misbehaving, desired: an action each, length T.
        actions: number of actions.
    """
    taken = np.asarray(misbehaving, dtype=np.int64)
    labels = np.zeros((len(observations), actions), dtype=np.int8)
    labels[np.arange(len(labels)), taken] = 1
    labels[np.arange(len(labels)), np.asarray(desired)] = -1
    return Targets.from_arrays(observations, taken, target="labels", labels=labels, ids=("margin",))


@dataclass(frozen=True)
class CriticMargins(Targets):
    """Targets of a continuous critic: mean of Q(s, misbehaving) - Q(s, desired) of each failure, labels 1 and -1."""

    def values(self, outputs: Outputs) -> Tensor:
        """Return f of each failure, [F], from the critic's values of all pairs."""
        head = outputs.q_values[:, 0]
        sign = torch.as_tensor(self.labels[:, 0]).to(head)
        pairs = torch.as_tensor(np.bincount(self.failure, minlength=self.failures) / 2.0).to(head)
        failure = torch.as_tensor(self.failure, device=head.device)
        return head.new_zeros(self.failures).index_add(0, failure, sign * head / pairs[failure])


def critic_margins(observations: Array, misbehaving: Array, desired: Array) -> CriticMargins:
    """Return one target of SAC, the mean of Q(s, misbehaving) - Q(s, desired) over states.

    Args:
        observations: [T, ...], as the policy sees them.
        misbehaving, desired: actions [T, K], scaled to [-1, 1] (`policy.scale_action`).
    """
    rows = len(observations)
    actions = np.concatenate([misbehaving, desired])
    return CriticMargins(
        ids=("margin",), kinds=("margin",), failure=np.zeros(2 * rows, dtype=np.int64),
        observations=critic_inputs(np.concatenate([observations, observations]), actions), actions=actions,
        labels=np.repeat(np.array([1, -1], dtype=np.int8), rows)[:, None], decisive=np.ones(2 * rows, np.bool_),
    )  # fmt: skip
