"""Generalised advantage estimation as Stable-Baselines3 has it: of recorded loops, stacks in training, arrays."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...datasets.arrays import Array


def generalised_advantages(
    rewards: Array, value: Array, ended: NDArray[np.bool_], following: Array, gamma: float, gae_lambda: float
) -> Array:
    r"""Return generalised advantage estimates (Schulman et al. 2016, arXiv:1506.02438, equation 16), [T, ...].

    .. math:: A_t = \delta_t + \gamma \lambda (1 - d_t) A_{t+1}, \quad
        \delta_t = r_t + \gamma (1 - d_t) V(s_{t+1}) - V(s_t)

    Of float32 the operations and precision are those of Stable-Baselines3, to the last bit.

    Args:
        rewards: r_t as learned from, [T, ...]; at a time limit with gamma V(last observation).
        value: V(s_t), [T, ...].
        ended: d_t, [T, ...].
        following: V after the last step, [...].
        gamma, gae_lambda: discount and lambda.
    """
    advantages, later = np.empty_like(rewards), np.zeros_like(following)
    for t in reversed(range(len(rewards))):
        goes_on = 1.0 - ended[t].astype(rewards.dtype)
        delta = rewards[t] + gamma * following * goes_on - value[t]
        later = delta + gamma * gae_lambda * goes_on * later
        advantages[t], following = later, value[t]
    return advantages
