"""What a learner sees of each transition, and how it depends on the rewards."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


class RewardInfluence(NamedTuple):
    """Effect of one unit of reward on each target, [N, F]: with and without the normalisation's adjoint."""

    tau: Scores
    tau_raw: Scores


class Signal(Protocol):
    """The signal that weights the gradient of each of a window's N transitions, with its adjoint.

    A signal is linear in the rewards up to its normalisation: an advantage (`gae.GaeAdvantages`). Its adjoint carries
    the effect of one unit of the signal back to the effect of one unit of reward as it was paid. Rows are environment
    by environment, each in time order: row = env * n_steps + step.
    """

    @property
    def raw(self) -> NDArray[np.float64]:
        """The signal before normalisation, [N]."""
        ...

    @property
    def n_envs(self) -> int:
        """Number of environments; N / n_envs steps each."""
        ...

    def reward_influence(self, scores: Scores) -> RewardInfluence:
        """Return the effect of one unit of reward from that of one unit of (normalised) signal, [N, F] each."""
        ...

    def value_influence(self, scores: Scores) -> Scores:
        """Return the effect of one unit of reward through the value loss from that of one unit of return, [N, F]."""
        ...

    def raw_change(self, change: Scores) -> Scores:
        """Return by how much the raw signal changes with the rewards, [N, G].

        Args:
            change: of each reward as paid, in each of G changes, [N, G].
        """
        ...

    def weights_of(self, change: Scores) -> Scores:
        """Return what scores are summed with for the effect of a changed signal: exact, however large the change.

        Args:
            change: of the raw signal, in each of G changes, [N, G].

        Returns:
            [N, G]: its product with s [N, F] is the effect of each change on each target.
        """
        ...

    def summed_reward_influence(self, weights: Scores) -> RewardInfluence:
        """Return what scores are summed with, so that influence need not be formed: `reward_influence` transposed.

        Args:
            weights: [N, G], of each transition in each of G sums.

        Returns:
            For tau and for tau_raw, [N, G] each: its product with s [N, F] is that of `weights` with the influence.
        """
        ...

    def summed_value_influence(self, weights: Scores) -> Scores:
        """Return what scores are summed with in the value channel, [N, G]: `value_influence` transposed."""
        ...
