"""Environments of K agents stepped as arrays: the arrow maze by tables of its levels, any other one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium.utils import seeding
from numpy.typing import NDArray

from ..datasets.rewards import BY_CONTEXT
from .agents import AgentSpec, env_seed
from .arrow_maze import STRAY_REWARD, ArrowMazeEnv
from .edits import CORRECTED, CorrectedRewards, RewardEdit
from .environments import Env, EnvSpec, describe
from .levels import MOVES, Level, make_level
from .spaces import env_action

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]
MAZE_ID = "aitia/ArrowMaze-v0"


class Member(NamedTuple):
    """One agent of a stack.

    Attributes:
        seed: of its environments, actions and minibatches.
        edit: what is corrected for it; None: nothing.
        initial: the seed of its initial weights; None: the same.
    """

    seed: int
    edit: RewardEdit | None
    initial: int | None = None


class ArrayStep(NamedTuple):
    """One step of K x E environments; ended ones have begun again.

    Attributes:
        observations: float32 [K, E, D], flattened.
        rewards: float32 [K, E], as edited.
        terminated, truncated: bool [K, E].
        final: float32 [K, E, D], what was observed before an ended one began again.
        corrected: bool [K, E], where the edit changed the reward.
    """

    observations: Floats
    rewards: Floats
    terminated: Flags
    truncated: Flags
    final: Floats
    corrected: Flags


class ArrayEnv(Protocol):
    """E environments for each of K agents."""

    def reset(self) -> Floats:
        """Begin everywhere; return observations, float32 [K, E, D]."""
        ...

    def step(self, actions: NDArray[Any]) -> ArrayStep:
        """Step everywhere with actions [K, E] or [K, E, A]."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


def make_array_env(agent: AgentSpec, env: EnvSpec, members: Sequence[Member]) -> ArrayEnv:
    """Return the environments of a stack: as arrays where the project can, with the same seeds as SB3's otherwise."""
    made = env.make()
    maze = made.unwrapped
    by_level = all(m.edit is None or m.edit.groups is None or m.edit.grouping is BY_CONTEXT for m in members)
    own = made.spec is not None and made.spec.id == MAZE_ID  # another id may wrap the maze and change what it does
    known = all(m.edit is None or m.edit.values is not None for m in members) or (
        isinstance(maze, ArrowMazeEnv) and maze.tell_intended
    )  # an unknown intended reward is an error, which the wrapper raises
    if isinstance(maze, ArrowMazeEnv) and own and by_level and known:
        made.close()
        return ArrowMazeArrays(agent, maze, members)
    made.close()
    return GymArrays(agent, env, members)


class GymArrays:
    """Any environment, one by one through its own interface."""

    def __init__(self, agent: AgentSpec, env: EnvSpec, members: Sequence[Member]) -> None:
        self._facts, self._shape = describe(env), (len(members), agent.n_envs)
        self._envs: list[Env] = []
        self._seeds: list[int] = []
        for member in members:
            for number in range(agent.n_envs):
                made = env.make()
                edit = member.edit or RewardEdit(frozenset())
                self._envs.append(CorrectedRewards(made, edit))
                self._seeds.append(env_seed(agent, member.seed, number))

    def reset(self) -> Floats:
        """Begin everywhere."""
        return self._stacked([env.reset(seed=seed)[0] for env, seed in zip(self._envs, self._seeds, strict=True)])

    def step(self, actions: NDArray[Any]) -> ArrayStep:
        """Step everywhere."""
        flat = actions.reshape(len(self._envs), *actions.shape[2:])
        final, following, told = [], [], []
        for env, action in zip(self._envs, flat, strict=True):
            observation, reward, terminated, truncated, info = env.step(env_action(self._facts.action_space, action))
            final.append(observation)
            following.append(env.reset()[0] if terminated or truncated else observation)
            told.append((float(reward), terminated, truncated and not terminated, bool(info.get(CORRECTED, False))))
        rewards, terminated_, truncated_, corrected = (
            np.array(values).reshape(self._shape) for values in zip(*told, strict=True)
        )
        return ArrayStep(
            self._stacked(following),
            rewards.astype(np.float32),
            terminated_,
            truncated_,
            self._stacked(final),
            corrected,
        )

    def _stacked(self, observations: Sequence[Any]) -> Floats:
        return self._facts.form.batch(observations).astype(np.float32).reshape(*self._shape, -1)

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs:
            env.close()


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
        self._edited = np.stack([_edited_levels(member.edit, levels) for member in members])
        self._instead = np.stack([_values_instead(member.edit, levels) for member in members])
        self._draws = [
            seeding.np_random(env_seed(agent, member.seed, number))[0]
            for member in members
            for number in range(agent.n_envs)
        ]  # the generators that the environments themselves would have
        self._level, self._steps = (np.zeros(len(self._draws), np.int64) for _ in range(2))
        self._cell = np.zeros((len(self._draws), 2), np.int64)

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
        final = self._observe()
        ended = np.flatnonzero(terminated | truncated)
        self._begin(ended)
        following = self._observe() if len(ended) else final
        paid = rewards.astype(np.float32).reshape(self._shape)
        ends, stops, changed = (flags.reshape(self._shape) for flags in (terminated, truncated, corrected))
        return ArrayStep(following, paid, ends, stops, final, changed)

    def _rewards(self, on_arrow: Flags, on_corner: Flags) -> tuple[NDArray[np.float64], Flags]:
        level = self._level
        intended = on_arrow.astype(np.float64)
        paid = np.where(on_arrow & self._harmless[level], self._maze.harmless_reward, intended)
        paid = np.where(self._stray[level], intended + STRAY_REWARD * (self._steps == 1), paid)
        paid = np.where(self._bug[level], on_corner.astype(np.float64), paid)
        where = level.reshape(self._shape)
        edited = np.take_along_axis(self._edited, where, axis=1).reshape(-1)
        value = np.take_along_axis(self._instead, where, axis=1).reshape(-1)
        instead = np.where(np.isnan(value), intended, np.where(paid != 0.0, value, paid))
        return np.where(edited, instead, paid), edited & (instead != paid)

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
