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
so every end of an episode ends the recursion. docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csc_array

Scores = NDArray[np.float64]
_SB3_EPSILON = 1e-8
_ROUNDING = 1e-12  # of a mean in float64, relative: equal float32 advantages are 0 apart, different ones 1e-7 or more


@dataclass(frozen=True)
class Advantages:
    """What the adjoint needs of a window.

    Attributes:
        raw: float64 [N], advantages as GAE gave them, row = env * n_steps + step.
        ended: bool [N], the episode ended with this row (terminated or truncated).
        n_envs: number of environments; N / n_envs steps each.
        gamma, gae_lambda: of the algorithm.
        normalize: whether the algorithm centres and scales advantages.
        reward_scale: float64 [N], factor between a change of the paid reward and that of the one learned from.
        minibatches: int32 [N, E], minibatch of each row in each epoch, -1 if unused; None: not recorded.
    """

    raw: NDArray[np.float64]
    ended: NDArray[np.bool_]
    n_envs: int
    gamma: float
    gae_lambda: float
    normalize: bool
    reward_scale: NDArray[np.float64]
    minibatches: NDArray[np.int32] | None = None


class RewardInfluence(NamedTuple):
    """Effect of one unit of reward on each target, [N, F]: with and without the normalisation's adjoint."""

    tau: Scores
    tau_raw: Scores


def spread(raw: NDArray[np.float64]) -> float:
    """Return the standard deviation of advantages (ddof 1); exactly 0 where only rounding sets them apart."""
    found = float(np.std(raw, ddof=1)) if len(raw) > 1 else 0.0
    return found if found > _ROUNDING * float(np.abs(raw).max(initial=0.0)) else 0.0


def reward_influence(scores: Scores, advantages: Advantages) -> RewardInfluence:
    """Return tau and tau_raw from the effect of one unit of (normalised) advantage.

    Args:
        scores: s [N, F].
        advantages: the window's advantages and episode ends.

    Returns:
        tau, tau_raw [N, F] a unit of reward as paid; both zero where all advantages are equal.
    """
    rows = len(scores)
    scale = spread(advantages.raw) if advantages.normalize and rows > 1 else 1.0
    if scale == 0.0:
        return RewardInfluence(np.zeros_like(scores), np.zeros_like(scores))
    weight = advantages.reward_scale[:, None] / (rows * scale)
    raw = gae_adjoint(scores, advantages) * weight
    if not advantages.normalize:
        return RewardInfluence(raw, raw)
    if advantages.minibatches is not None and advantages.minibatches.size:
        by_advantage = minibatch_adjoint(scores, advantages.raw, advantages.minibatches)
        return RewardInfluence(gae_adjoint(by_advantage, advantages) * advantages.reward_scale[:, None], raw)
    normalised = (advantages.raw - advantages.raw.mean()) / scale
    return RewardInfluence(gae_adjoint(normalisation_adjoint(scores, normalised), advantages) * weight, raw)


def value_influence(scores: Scores, advantages: Advantages) -> Scores:
    """Return the effect of one unit of reward through the value loss, [N, F].

    The regression target of V is the return A + V, and no normalisation stands between it and the reward.

    Args:
        scores: effect of one unit of return, [N, F].
        advantages: the window's advantages and episode ends.
    """
    weight: NDArray[np.float64] = advantages.reward_scale[:, None] / len(scores)
    return gae_adjoint(scores, advantages) * weight


def summed_reward_influence(weights: Scores, advantages: Advantages) -> RewardInfluence:
    """Return what scores are summed with, so that influence need not be formed: `reward_influence` transposed.

    Args:
        weights: [N, G], of each transition in each of G sums.
        advantages: the window's advantages and episode ends.

    Returns:
        For tau and for tau_raw, [N, G] each: its product with s [N, F] is that of `weights` with the influence.
    """
    rows = len(weights)
    scale = spread(advantages.raw) if advantages.normalize and rows > 1 else 1.0
    if scale == 0.0:
        return RewardInfluence(np.zeros_like(weights), np.zeros_like(weights))
    summed = gae_sums(weights * advantages.reward_scale[:, None], advantages)
    raw = summed / (rows * scale)
    if not advantages.normalize:
        return RewardInfluence(raw, raw)
    if advantages.minibatches is not None and advantages.minibatches.size:  # both normalisations are symmetric
        return RewardInfluence(minibatch_adjoint(summed, advantages.raw, advantages.minibatches), raw)
    return RewardInfluence(normalisation_adjoint(raw, (advantages.raw - advantages.raw.mean()) / scale), raw)


def summed_value_influence(weights: Scores, advantages: Advantages) -> Scores:
    """Return what scores are summed with in the value channel, [N, G]: `value_influence` transposed."""
    return gae_sums(weights * advantages.reward_scale[:, None], advantages) / len(weights)


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
            columns += [(rows, np.ones(count)), (rows, (raw[rows] - raw[rows].mean()) / (scale + _SB3_EPSILON))]
            if count < 2:
                diagonal[rows] += 1.0
            elif scale > 0.0:
                factor = 1.0 / (count * (scale + _SB3_EPSILON))
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


def gae_adjoint(scores: Scores, advantages: Advantages) -> Scores:
    """Return R [N, F]: the sum of (gamma lambda)^(t-k) s_k over k <= t in the same episode and window."""
    steps = len(scores) // advantages.n_envs
    decay = advantages.gamma * advantages.gae_lambda
    per_env = scores.reshape(advantages.n_envs, steps, -1)
    carries = ~advantages.ended.reshape(advantages.n_envs, steps)
    result = np.empty_like(per_env)
    result[:, 0] = per_env[:, 0]
    for step in range(1, steps):
        result[:, step] = per_env[:, step] + decay * carries[:, step - 1, None] * result[:, step - 1]
    return result.reshape(scores.shape)


def gae_sums(weights: Scores, advantages: Advantages) -> Scores:
    """Return the sum of (gamma lambda)^(k-t) w_k over k >= t in the same episode and window, [N, G]: GAE itself."""
    steps = len(weights) // advantages.n_envs
    decay = advantages.gamma * advantages.gae_lambda
    per_env = weights.reshape(advantages.n_envs, steps, -1)
    carries = ~advantages.ended.reshape(advantages.n_envs, steps)
    result = np.array(per_env)
    for step in range(steps - 2, -1, -1):
        result[:, step] += decay * carries[:, step, None] * result[:, step + 1]
    return result.reshape(weights.shape)
