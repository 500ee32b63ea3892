"""Spaces of observations and actions: which are supported, and how one value is kept, shown and sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape, is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import VecTransposeImage
from torch import Tensor

from ...datasets.arrays import Array, fields, pack
from ...datasets.errors import EnvironmentError_

Space = gym.Space[Any]
_SIMPLE = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
_HELP = "Wrap the environment, for instance with gymnasium.wrappers.FlattenObservation or TransformAction"


def policy_observation_space(space: Space, where: str) -> Space:
    """Return the observation space as a Stable-Baselines3 policy sees it: images with channels first.

    Raises:
        EnvironmentError_: it is not supported.
    """
    parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
    for key, part in parts.items():
        name = f"`{key}` of its observations" if key else "its observations"
        if not isinstance(part, _SIMPLE) or (isinstance(part, spaces.MultiBinary) and not isinstance(part.n, int)):
            raise EnvironmentError_(
                f"{where}: {name} are {part}, expected Box, Discrete, MultiDiscrete or MultiBinary, or a Dict of "
                f"these. {_HELP}"
            )
        if not _counts_from_zero(part):
            raise EnvironmentError_(
                f"{where}: {name} are {part}, expected categories counted from 0, which is what Stable-Baselines3 "
                "takes. Wrap it with gymnasium.wrappers.TransformObservation"
            )
    if isinstance(space, spaces.Dict):
        return spaces.Dict({key: _channels_first(part) for key, part in space.spaces.items()})
    return _channels_first(space)


def _channels_first(space: Space) -> Space:
    if is_image_space(space) and not is_image_space_channels_first(space):  # type: ignore[arg-type]
        assert isinstance(space, spaces.Box)
        return VecTransposeImage.transpose_space(space)
    return space


def _counts_from_zero(space: Space) -> bool:
    """Return whether the categories of a Discrete or MultiDiscrete space are counted from 0; true for any other."""
    return not np.any(np.asarray(getattr(space, "start", 0)) != 0)


def require_action_space(space: Space, where: str) -> Space:
    """Return the action space if it is supported.

    Raises:
        EnvironmentError_: it is not.
    """
    if not isinstance(space, _SIMPLE):
        raise EnvironmentError_(
            f"{where} has actions {space}, expected Discrete, MultiDiscrete, MultiBinary or Box. {_HELP}"
        )
    if not _counts_from_zero(space):
        raise EnvironmentError_(
            f"{where} has actions {space}: expected actions counted from 0, which is what Stable-Baselines3 sends. "
            "Wrap it with gymnasium.wrappers.TransformAction"
        )
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim != 1:
        raise EnvironmentError_(f"{where} has actions {space}: expected MultiDiscrete of one dimension. {_HELP}")
    if isinstance(space, spaces.MultiBinary) and not isinstance(space.n, int):
        raise EnvironmentError_(f"{where} has actions {space}: expected MultiBinary of one dimension. {_HELP}")
    if isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.floating):
        raise EnvironmentError_(f"{where} has actions {space}: expected Box of floats. {_HELP}")
    return space


class ObservationForm:
    """How the observations of a space are kept: as the policy sees them, a Dict as one structured value.

    Args:
        space: the environment's own observation space.
    """

    def __init__(self, space: Space) -> None:
        self._space, self._policy_space = space, policy_observation_space(space, "the environment")

    def batch(self, observations: Sequence[Any]) -> Array:
        """Return several observations of the environment as one array [N, ...] (structured for a Dict)."""
        if isinstance(self._space, spaces.Dict):
            parts = {
                key: self._stack([o[key] for o in observations], part, self._policy_space[key])  # type: ignore[index]
                for key, part in self._space.spaces.items()
            }
            return pack(parts)
        return self._stack(observations, self._space, self._policy_space)

    @staticmethod
    def _stack(values: Sequence[Any], space: Space, policy_space: Space) -> Array:
        stacked = np.stack([np.asarray(value, dtype=space.dtype) for value in values])
        if space.shape != policy_space.shape:
            stacked = VecTransposeImage.transpose_image(stacked)
        shape = get_obs_shape(policy_space)
        assert isinstance(shape, tuple)
        return stacked.reshape(len(values), *shape)


def as_tensors(observations: Array) -> Tensor | dict[str, Tensor]:
    """Return kept observations [N, ...] as a policy takes them."""
    parts = fields(observations)
    if parts is None:
        return torch.as_tensor(np.ascontiguousarray(observations))
    return {name: torch.as_tensor(values) for name, values in parts.items()}


def env_action(space: Space, action: Any) -> Any:
    """Return a policy's action as the environment is to get it: integers as numpy's, Box actions clipped."""
    if isinstance(space, spaces.Discrete):
        return np.int64(action)
    if isinstance(space, spaces.Box):
        return np.clip(np.asarray(action, space.dtype).reshape(space.shape), space.low, space.high)
    return np.asarray(action, dtype=space.dtype).reshape(space.shape)


def choices(space: Space) -> int | None:
    """Return the number of actions of a Discrete space, one label each; None for any other."""
    return int(space.n) if isinstance(space, spaces.Discrete) else None


def action_text(action: Any) -> str:
    """Return an action as text: a discrete one its number, else its numbers."""
    if np.ndim(action) == 0:
        return str(int(action))
    return "[" + ", ".join(f"{number:.3g}" for number in np.asarray(action).reshape(-1)) + "]"


def named_action(text: str, names: Sequence[str]) -> str:
    """Return the name of an action written as text (`action_text`); the text where it has none."""
    return names[int(text)] if text.isdecimal() and int(text) < len(names) else text
