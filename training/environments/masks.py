"""Masks of allowed actions, as MaskablePPO takes them (Huang and Ontañón 2022, arXiv:2006.14171).

A mask is bool [A], one entry a category: of MultiDiscrete the parts are joined, a MultiBinary number has two.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy

from ...datasets.errors import EnvironmentError_
from ...datasets.words import counted
from .actions import category_sizes, random_choices

METHOD = "action_masks"  # sb3-contrib's name


def takes_masks(policy: ActorCriticPolicy) -> bool:
    """Return whether a policy draws only allowed actions."""
    return hasattr(getattr(policy, "action_dist", None), "apply_masking")  # a Q-network has no distribution


def action_mask(env: gym.Env[Any, Any], where: str) -> NDArray[np.bool_]:
    """Return which actions an environment allows in its present state, bool [A], by sb3-contrib's own rule.

    Raises:
        EnvironmentError_: it has no method `action_masks`, or the mask is of another length or allows nothing.
    """
    sizes = category_sizes(env.action_space)
    expected = f"expected {sum(sizes)} booleans, true where an action is allowed"
    try:
        method = env.get_wrapper_attr(METHOD)
    except AttributeError as error:
        raise EnvironmentError_(
            f"{where} has no method `{METHOD}`, which MaskablePPO needs: {expected}. Add it to the environment, or "
            "wrap it with sb3_contrib.common.wrappers.ActionMasker"
        ) from error
    mask = np.asarray(method(), dtype=bool).reshape(-1)
    if len(mask) != sum(sizes):
        raise EnvironmentError_(f"{where}: `{METHOD}` returned {counted(len(mask), 'value')}, {expected}")
    if not all(part.any() for part in np.split(mask, np.cumsum(sizes)[:-1])):
        raise EnvironmentError_(f"{where}: `{METHOD}` returned {mask.tolist()}, which allows no action")
    return mask


def allowed_action(env: gym.Env[Any, Any], generator: np.random.Generator, where: str) -> Any:
    """Return a uniformly random action of those that an environment allows.

    Raises:
        EnvironmentError_: see `action_mask`.
    """
    masks = action_mask(env, where)[None]
    return random_choices(env.action_space, 1, masks).choose(0, generator, greedy=False).action
