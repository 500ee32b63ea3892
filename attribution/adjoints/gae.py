r"""From the effect of an advantage to the effect of a reward: the adjoint of GAE and of normalisation.

.. math::
    \tilde s_t &= s_t - \bar s - \hat A_t \sum_u \hat A_u s_u / (n-1) \\
    R_t &= \tilde s_t + \gamma\lambda\, R_{t-1} \\
    \tau_t &= R_t / (n \sigma)

The first line is the adjoint of centring and scaling the advantages of the window, the second of
:math:`\partial A_k/\partial r_t = (\gamma\lambda)^{t-k}` for k <= t in one episode (Schulman et al. 2016,
arXiv:1506.02438, eq. 16). SB3 centres and scales the advantages of each minibatch, not of the window: with
recorded minibatches the first line is taken for each of them and averaged, which is the exact adjoint; the
window form is its approximation. A bootstrapped value at a time limit does not depend on the window's rewards,
so every end of an episode ends the recursion.

The adjoint is for small changes. A correction is none: it can be as large as all that the advantages are made of, and
dividing by sigma cancels, to first order, whatever lies along them. `weights_of` is its exact finite difference, in the
same unit: fd(epsilon dr)/epsilon goes to tau dr as epsilon goes to 0. docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

from ...datasets.errors import InputError
from ...datasets.words import counted
from ..shapes import require_rows
from .batches import SB3_EPSILON, normalised_change, spread, use_of_rows
from .signal import RewardInfluence, Scores


@dataclass(frozen=True)
class GaeAdvantages:
    """Generalised advantage estimates of a window, with their adjoint: a `Signal`.

    Attributes:
        raw: float64 [N], advantages before normalisation, row = env * n_steps + step.
        ended: bool [N], the episode ended with this row (terminated or truncated).
        n_envs: number of environments; N / n_envs steps each.
        gamma, gae_lambda: of the algorithm.
        normalize: whether the algorithm centres and scales advantages.
        reward_scale: float64 [N], factor between a change of the paid reward and that of the one learned from.
        minibatches: int32 [N, E], minibatch of each row in each epoch, -1 if unused; None: not recorded.

    Raises:
        InputError: arrays of another length than N, or N is no multiple of n_envs.
    """

    raw: NDArray[np.float64]
    ended: NDArray[np.bool_]
    n_envs: int
    gamma: float
    gae_lambda: float
    normalize: bool
    reward_scale: NDArray[np.float64]
    minibatches: NDArray[np.int32] | None = None

    def __post_init__(self) -> None:
        require_rows(
            "GaeAdvantages", len(self.raw), ended=self.ended, reward_scale=self.reward_scale,
            minibatches=self.minibatches,
        )  # fmt: skip
        if len(self.raw) % self.n_envs:
            rows = counted(len(self.raw), "row")
            raise InputError(f"GaeAdvantages: {rows}, expected a multiple of n_envs={self.n_envs}")

    def reward_influence(self, scores: Scores) -> RewardInfluence:
        """Return tau and tau_raw from the effect of one unit of (normalised) advantage.

        Args:
            scores: s [N, F].

        Returns:
            tau, tau_raw [N, F] a unit of reward as paid; both zero where all advantages are equal.
        """
        scale = self._scale
        if scale == 0.0:
            return RewardInfluence(np.zeros_like(scores), np.zeros_like(scores))
        weight = self.reward_scale[:, None] / (len(scores) * scale)
        if not self.normalize:
            raw = self.adjoint(scores * self._use) * self.reward_scale[:, None]
            return RewardInfluence(raw, raw)
        raw = self.adjoint(scores) * weight
        if self.minibatches is not None and self.minibatches.size:
            by_advantage = minibatch_adjoint(scores, self.raw, self.minibatches)
            return RewardInfluence(self.adjoint(by_advantage) * self.reward_scale[:, None], raw)
        normalised = (self.raw - self.raw.mean()) / scale
        return RewardInfluence(self.adjoint(normalisation_adjoint(scores, normalised)) * weight, raw)

    def value_influence(self, scores: Scores) -> Scores:
        """Return the effect of one unit of reward through the value loss, [N, F].

        The regression target of V is the return A + V, and no normalisation stands between it and the reward.

        Args:
            scores: effect of one unit of return, [N, F].
        """
        weight: NDArray[np.float64] = self.reward_scale[:, None] / len(scores)
        return self.adjoint(scores) * weight

    def raw_change(self, change: Scores) -> Scores:
        """Return by how much the raw advantages change with the rewards as paid, [N, G] each: GAE is linear in them."""
        return self.sums(change * self.reward_scale[:, None])

    def weights_of(self, change: Scores) -> Scores:
        """Return what scores are summed with for the effect of changed raw advantages, [N, G]: a finite difference."""
        if not self.normalize:
            return change * self._use
        return normalised_change(self.raw, change, self.minibatches)

    def summed_reward_influence(self, weights: Scores) -> RewardInfluence:
        """Return what scores are summed with, [N, G] each: `reward_influence` transposed; see `Signal`."""
        scale = self._scale
        if scale == 0.0:
            return RewardInfluence(np.zeros_like(weights), np.zeros_like(weights))
        summed = self.sums(weights * self.reward_scale[:, None])
        if not self.normalize:
            return RewardInfluence(summed * self._use, summed * self._use)
        raw = summed / (len(weights) * scale)
        if self.minibatches is not None and self.minibatches.size:  # both normalisations are symmetric
            return RewardInfluence(minibatch_adjoint(summed, self.raw, self.minibatches), raw)
        return RewardInfluence(normalisation_adjoint(raw, (self.raw - self.raw.mean()) / scale), raw)

    def summed_value_influence(self, weights: Scores) -> Scores:
        """Return what scores are summed with in the value channel, [N, G]: `value_influence` transposed."""
        return self.sums(weights * self.reward_scale[:, None]) / len(weights)

    def adjoint(self, scores: Scores) -> Scores:
        """Return R [N, F]: the sum of (gamma lambda)^(t-k) s_k over k <= t in the same episode and window."""
        decay, carries = self.gamma * self.gae_lambda, self._by_env(~self.ended)
        per_env = self._by_env(scores)
        result = np.empty_like(per_env)
        result[:, 0] = per_env[:, 0]
        for step in range(1, result.shape[1]):
            result[:, step] = per_env[:, step] + decay * carries[:, step - 1] * result[:, step - 1]
        total: Scores = result.reshape(scores.shape)
        return total

    def sums(self, weights: Scores) -> Scores:
        """Return the sum of (gamma lambda)^(k-t) w_k over k >= t in the same episode and window, [N, G]: GAE itself."""
        decay, carries = self.gamma * self.gae_lambda, self._by_env(~self.ended)
        result = np.array(self._by_env(weights))
        for step in range(result.shape[1] - 2, -1, -1):
            result[:, step] += decay * carries[:, step] * result[:, step + 1]
        summed: Scores = result.reshape(weights.shape)
        return summed

    def _by_env(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return values [N] or [N, F] as [envs, steps, F] (1 of [N])."""
        return values.reshape(self.n_envs, len(values) // self.n_envs, -1)

    @property
    def _use(self) -> NDArray[np.float64]:
        """Weight of each row in the mean of minibatch means, [N, 1]."""
        return use_of_rows(self.minibatches, len(self.raw))[:, None]

    @property
    def _scale(self) -> float:
        """What the window's advantages are divided by."""
        return spread(self.raw) if self.normalize and len(self.raw) > 1 else 1.0


def minibatch_adjoint(scores: Scores, raw: NDArray[np.float64], minibatches: NDArray[np.int32]) -> Scores:
    """Return the effect of one unit of raw advantage [N, F], mean over the recorded minibatches.

    Of one minibatch B of n rows it is (s_t - mean_B(s) - A^_t sum_B(A^ s)/(n-1)) / (n (sigma_B + 1e-8)): the adjoint
    of SB3's centring and scaling, which leaves a minibatch of one row as it is. The mean over minibatches has the
    unit of the window form. A sum of a diagonal and two outer products a minibatch, applied as sparse matrices.

    Args:
        scores: effect of one unit of normalised advantage, [N, F].
        raw: advantages [N].
        minibatches: int32 [N, E], -1 where unused.
    """
    diagonal, columns = np.zeros(len(raw)), []
    weights: list[float] = []
    for epoch in minibatches.T:
        for number in range(int(epoch.max(initial=-1)) + 1):
            rows = np.flatnonzero(epoch == number)
            count, scale = len(rows), spread(raw[rows])
            weights += [0.0, 0.0]
            columns += [(rows, np.ones(count)), (rows, (raw[rows] - raw[rows].mean()) / (scale + SB3_EPSILON))]
            if count < 2:
                diagonal[rows] += 1.0
            elif scale > 0.0:
                factor = 1.0 / (count * (scale + SB3_EPSILON))
                diagonal[rows] += factor
                weights[-2:] = [factor / count, factor / (count - 1)]
    if not columns:  # `target_kl` stopped before the first update
        return np.zeros_like(scores)
    outer = csc_array(
        (
            np.concatenate([values for _, values in columns]),
            np.concatenate([rows for rows, _ in columns]),
            np.cumsum([0, *(len(rows) for rows, _ in columns)]),
        ),
        shape=(len(raw), len(columns)),
    )
    adjoint: Scores = diagonal[:, None] * scores - outer @ (np.array(weights)[:, None] * (outer.T @ scores))
    return adjoint / (len(columns) / 2)


def normalisation_adjoint(scores: Scores, normalised: NDArray[np.float64]) -> Scores:
    """Return s~ [N, F]: the adjoint of centring and scaling, without the factor 1 / sigma.

    Args:
        scores: s [N, F].
        normalised: the window's normalised advantages [N] (mean 0, standard deviation 1 with ddof 1).
    """
    rows = len(scores)
    slope = normalised @ scores / (rows - 1)
    adjoint: Scores = scores - scores.mean(axis=0) - normalised[:, None] * slope[None, :]
    return adjoint
