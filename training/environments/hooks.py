"""Hooks: what an environment's `info` does not tell, computed by a function over recorded columns.

For users who cannot change their environment (docs/task-file.md, `hooks`)::

    def tell(columns):  # of one episode, from its first step to the present one
        fell = columns["terminated"] & (columns["reward"] < 0)
        return {"outcome": np.where(fell, "lava", "goal"), "intended_reward": columns["reward"]}

Rewards are edited while an agent trains, so a hook is asked after every step, with the T steps of the episode so far;
of what it returns the last row belongs to the step just taken.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ...datasets.errors import EnvironmentError_, TaskError, nearest
from ...datasets.words import counted
from .contract import KNOWN_KEYS

Columns = Mapping[str, Any]
Hook = Callable[[Columns], Mapping[str, Any]]
_FIRST_ROWS = 32
_MOVED = {"aitia.training.arrow_maze": "aitia.training.worlds.maze"}  # named by runs and tasks of earlier versions


def load_callable(value: str, key: str, expected: str) -> Callable[..., Any]:
    """Return the callable that a task key names as `module:callable`.

    Raises:
        TaskError: there is none.
    """
    module_name, _, name = value.partition(":")
    try:
        function = getattr(importlib.import_module(_MOVED.get(module_name, module_name)), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise TaskError(f"{key}: `{value}` was given, expected {expected} ({error})") from error
    if not callable(function):
        raise TaskError(f"{key}: `{value}` is a {type(function).__name__}, expected a callable")
    checked: Callable[..., Any] = function
    return checked


class _Column:
    """Rows of one shape and dtype that grow without being copied at each step; rows of a dictionary by name."""

    def __init__(self) -> None:
        self._rows: NDArray[Any] | None = None
        self._parts: dict[str, _Column] = {}
        self._count = 0

    def append(self, value: Any) -> None:
        """Add a row."""
        if isinstance(value, Mapping):
            for name, part in value.items():
                self._parts.setdefault(name, _Column()).append(part)
            return
        row = np.asarray(value)
        if self._rows is None:
            self._rows = np.empty((_FIRST_ROWS, *row.shape), row.dtype)
        elif self._count == len(self._rows):
            self._rows = np.concatenate([self._rows, np.empty_like(self._rows)])
        self._rows[self._count] = row
        self._count += 1

    def rows(self, start: int, stop: int) -> Any:
        """Return a view of rows, which cannot be written to."""
        if self._rows is None:
            return {name: part.rows(start, stop) for name, part in self._parts.items()}
        view = self._rows[start:stop]
        view.flags.writeable = False
        return view


class HookedEnv(gym.Wrapper[Any, Any, Any, Any]):
    """Adds to every step's `info` what a hook says of it; what the hook does not return is left as it was.

    The hook gets a mapping of columns, T rows each, of the episode so far: `observation` and `next_observation`
    ([T, ...], of a Dict by name), `action`, `reward`, `terminated`, `truncated`, `t` (from 0), `info` (a list of
    T dictionaries) and `reset_info`. It returns a mapping from keys of the contract to T values each
    (`reward_components`: T dictionaries, or a dictionary of T values each). `outcome` counts where the episode ends.

    Args:
        env: the environment.
        hook: the function, or `module:callable`.

    Raises:
        TaskError: there is no such function.
    """

    def __init__(self, env: gym.Env[Any, Any], hook: str | Hook) -> None:
        super().__init__(env)
        self.hook: Hook
        if isinstance(hook, str):
            self._where, self.hook = f"hook `{hook}`", load_callable(hook, "hooks", "module:callable")
        else:
            self._where, self.hook = f"hook `{getattr(hook, '__name__', hook)}`", hook

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        observation, info = self.env.reset(**kwargs)
        self._observations, self._reset_info = _Column(), info
        self._observations.append(observation)
        self._steps = {name: _Column() for name in ("action", "reward", "terminated", "truncated")}
        self._infos: list[dict[str, Any]] = []
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and ask the hook.

        Raises:
            EnvironmentError_: the hook fails, returns an unknown key or not one value for each row.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._observations.append(observation)
        values = (action, float(reward), bool(terminated), bool(truncated))
        for column, value in zip(self._steps.values(), values, strict=True):
            column.append(value)
        self._infos.append(info)
        answer = self._ask()
        if not (terminated or truncated):
            answer.pop("outcome", None)
        return observation, reward, terminated, truncated, {**info, **answer}

    def _ask(self) -> dict[str, Any]:
        """Return what the hook says of the last step, without what it leaves open (None)."""
        count = len(self._infos)
        columns = {
            "observation": self._observations.rows(0, count),
            "next_observation": self._observations.rows(1, count + 1),
            **{name: column.rows(0, count) for name, column in self._steps.items()},
            "t": np.arange(count),
            "info": self._infos,
            "reset_info": self._reset_info,
        }
        try:
            said = self.hook(columns)
        except Exception as error:
            raise EnvironmentError_(
                f"{self._where} failed at step {count - 1} of an episode: {type(error).__name__}: {error}; it was "
                f"given the columns {', '.join(columns)}"
            ) from error
        if not isinstance(said, Mapping):
            raise EnvironmentError_(
                f"{self._where} returned a {type(said).__name__}, expected a dictionary of {', '.join(KNOWN_KEYS)}"
            )
        last = {str(key): self._last(str(key), values, count) for key, values in said.items()}
        return {key: value for key, value in last.items() if value is not None}

    def _last(self, key: str, values: Any, count: int) -> Any:
        if key not in KNOWN_KEYS:
            raise EnvironmentError_(
                f"{self._where} returned `{key}`, expected keys among {', '.join(KNOWN_KEYS)}."
                f"{nearest(key, KNOWN_KEYS)}"
            )
        if isinstance(values, Mapping):
            return {name: self._last(key, part, count) for name, part in values.items()}
        try:
            length = len(values)
        except TypeError:
            length = -1
        if isinstance(values, str) or length != count:
            shown = counted(length, "value") if length >= 0 and not isinstance(values, str) else f"{values!r}"
            raise EnvironmentError_(
                f"{self._where} returned {shown} for `{key}`, expected {count}: one for each row it was given"
            )
        return values[-1]
