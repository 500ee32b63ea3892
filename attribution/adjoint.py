r"""From the effect of an advantage to the effect of a reward: the adjoint of GAE and of normalisation.

.. math::
    \tilde s_t &= s_t - \bar s - \hat A_t \sum_u \hat A_u s_u / (n-1) \\
    R_t &= \tilde s_t + \gamma\lambda\, R_{t-1} \\
    \tau_t &= R_t / (n \sigma)

The first line is the adjoint of centring and scaling the advantages of the window, the second of
:math:`\partial A_k/\partial r_t = (\gamma\lambda)^{t-k}` for k <= t in one episode (Schulman et al. 2016,
arXiv:1506.02438, eq. 16). A bootstrapped value at a time limit does not depend on the window's rewards,
so every end of an episode ends the recursion. docs/method.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Advantages:
    """What the adjoint needs of a window.

    Attributes:
        raw: float64 [N], advantages as GAE gave them, row = env * n_steps + step.
        ended: bool [N], the episode ended with this row (terminated or truncated).
        n_envs: number of environments; N / n_envs steps each.
        gamma, gae_lambda: of the algorithm.
        normalize: whether the algorithm centres and scales advantages.
        reward_scale: float64 [N], factor between the paid reward and the one that was learned from.
    """

    raw: NDArray[np.float64]
    ended: NDArray[np.bool_]
    n_envs: int
    gamma: float
    gae_lambda: float
    normalize: bool
    reward_scale: NDArray[np.float64]


class RewardInfluence(NamedTuple):
    """Effect of one unit of reward on each target, [N, F]: with and without the normalisation's adjoint."""

    tau: Scores
    tau_raw: Scores


def reward_influence(scores: Scores, advantages: Advantages) -> RewardInfluence:
    """Return tau and tau_raw from the effect of one unit of (normalised) advantage.

    Args:
        scores: s [N, F].
        advantages: the window's advantages and episode ends.

    Returns:
        tau, tau_raw [N, F] a unit of reward as paid; both zero where all advantages are equal.
    """
    rows = len(scores)
    scale = float(np.std(advantages.raw, ddof=1)) if advantages.normalize and rows > 1 else 1.0
    if scale == 0.0:
        return RewardInfluence(np.zeros_like(scores), np.zeros_like(scores))
    weight = advantages.reward_scale[:, None] / (rows * scale)
    raw = gae_adjoint(scores, advantages) * weight
    if not advantages.normalize:
        return RewardInfluence(raw, raw)
    normalised = (advantages.raw - advantages.raw.mean()) / scale
    return RewardInfluence(gae_adjoint(normalisation_adjoint(scores, normalised), advantages) * weight, raw)


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
