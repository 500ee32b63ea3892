"""The arrow maze of K agents as arrays, by tables of its levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from ...datasets.groups import BY_CONTEXT
from ..agents.spec import AgentSpec, env_seed
from ..edits.edit import RewardEdit
from ..worlds.levels import MOVES, Level, make_level
from ..worlds.maze import STRAY_REWARD, ArrowMazeEnv
from .arrays import ArrayStep, Flags, Floats, Member, edit_layers

_OUTCOMES = np.array([None, "arrow", "corner", "timeout"], dtype=object)


class ArrowMazeArrays:
    """The arrow maze by tables of its levels: the same levels, observations and rewards as `ArrowMazeEnv`."""

    def __init__(self, agent: AgentSpec, maze: ArrowMazeEnv, members: Sequence[Member]) -> None:
        self._maze, self._shape = maze, (len(members), agent.n_envs)
        levels = [make_level(maze.level_set, number) for number in range(maze.level_set.levels)]
        self._walls = np.stack([level.walls for level in levels])
        self._start, self._arrow, self._corner = (
            np.array([getattr(level, name) for level in levels]) for name in ("start", "arrow", "corner")
        )
        self._bug, self._harmless, self._stray = (
            np.array([getattr(level, name) for level in levels]) for name in ("bug", "harmless", "stray")
        )
        self._layers = [
            (
                np.stack([_edited_levels(e, levels) for e in edits]),
                np.stack([_values_instead(e, levels) for e in edits]),
            )
            for edits in edit_layers(members)
        ]
        self._draws = [
            seeding.np_random(env_seed(agent, member.seed, number))[0]
            for member in members
            for number in range(agent.n_envs)
        ]  # the generators that the environments themselves would have
        self._level, self._steps = (np.zeros(len(self._draws), np.int64) for _ in range(2))
        self._cell = np.zeros((len(self._draws), 2), np.int64)

    @staticmethod
    def can_edit(env: ArrowMazeEnv, edit: RewardEdit | None) -> bool:
        """Return whether an edit can be made here: of everything or of contexts (an unknown intended reward is an
        error, which the wrapper raises)."""
        if edit is None or (edit.groups is not None and not edit.groups):
            return True
        known = edit.values is not None or env.tell_intended
        return known and (edit.groups is None or edit.grouping is BY_CONTEXT)

    def reset(self) -> Floats:
        """Begin everywhere."""
        self._begin(np.arange(len(self._draws)))
        return self._observe()

    def _begin(self, which: NDArray[np.int64]) -> None:
        levels = len(self._walls)
        self._level[which] = [self._draws[i].integers(levels) for i in which]
        self._cell[which] = self._start[self._level[which]]
        self._steps[which] = 0

    def step(self, actions: NDArray[Any]) -> ArrayStep:
        """Step everywhere."""
        size, level = self._maze.level_set.size, self._level
        wanted = self._cell + np.array(MOVES)[actions.reshape(-1)]
        inside = ((wanted >= 0) & (wanted < size)).all(axis=1)
        bounded = np.clip(wanted, 0, size - 1)
        free = inside & ~self._walls[level, bounded[:, 0], bounded[:, 1]]
        self._cell = np.where(free[:, None], wanted, self._cell)
        self._steps += 1
        on_arrow = (self._cell == self._arrow[level]).all(axis=1)
        on_corner = (self._cell == self._corner[level]).all(axis=1)
        rewards, corrected = self._rewards(on_arrow, on_corner)
        terminated = on_arrow | on_corner
        truncated = ~terminated & (self._steps >= self._maze.max_steps)
        outcomes = _OUTCOMES[np.select([on_arrow, on_corner, truncated], [1, 2, 3], 0)].reshape(self._shape)
        final = self._observe()
        ended = np.flatnonzero(terminated | truncated)
        self._begin(ended)
        following = self._observe() if len(ended) else final
        paid = rewards.astype(np.float32).reshape(self._shape)
        ends, stops, changed = (flags.reshape(self._shape) for flags in (terminated, truncated, corrected))
        return ArrayStep(following, paid, ends, stops, final, changed, outcomes)

    def _rewards(self, on_arrow: Flags, on_corner: Flags) -> tuple[NDArray[np.float64], Flags]:
        level = self._level
        intended = on_arrow.astype(np.float64)
        paid = np.where(on_arrow & self._harmless[level], self._maze.harmless_reward, intended)
        paid = np.where(self._stray[level], intended + STRAY_REWARD * (self._steps == 1), paid)
        paid = np.where(self._bug[level], on_corner.astype(np.float64), paid)
        where, before = level.reshape(self._shape), paid
        for edited_levels, values in self._layers:
            before = paid
            edited = np.take_along_axis(edited_levels, where, axis=1).reshape(-1)
            value = np.take_along_axis(values, where, axis=1).reshape(-1)
            instead = np.where(np.isnan(value), intended, np.where(paid != 0.0, value, paid))
            paid = np.where(edited, instead, paid)
        return paid, paid != before

    def _observe(self) -> Floats:
        arrow, size = self._arrow[self._level], self._maze.level_set.size
        if self._maze.observation == "coordinates":
            cells = np.concatenate([self._cell, arrow, arrow - self._cell], axis=1)
            return (cells.astype(np.float32) / np.float32(size - 1)).reshape(*self._shape, -1)
        planes = np.zeros((len(self._level), 3, size, size), np.float32)
        rows = np.arange(len(planes))
        planes[rows, 0, self._cell[:, 0], self._cell[:, 1]] = 1.0
        planes[rows, 1, arrow[:, 0], arrow[:, 1]] = 1.0
        planes[:, 2] = self._walls[self._level]
        return planes.reshape(*self._shape, -1)

    def close(self) -> None:
        """Nothing is held."""


def _edited_levels(edit: RewardEdit | None, levels: Sequence[Level]) -> Flags:
    if edit is None:
        return np.zeros(len(levels), dtype=bool)
    return np.array([edit.groups is None or str(level.number) in edit.groups for level in levels])


def _values_instead(edit: RewardEdit | None, levels: Sequence[Level]) -> NDArray[np.float64]:
    """Return what an arbitrary edit pays for the reward events of each level; NaN: as intended."""
    values = {} if edit is None or edit.values is None else edit.values
    return np.array([values.get(str(level.number), np.nan) for level in levels])
