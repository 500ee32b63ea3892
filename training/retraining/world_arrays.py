"""The environments of K agents as copies of one world."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray

from ...datasets.groups import BY_CONTEXT, ByComponent, component_group
from ...datasets.rewards import WRONG_REWARD
from ..agents.spec import AgentSpec, env_seed
from ..edits.edit import RewardEdit
from ..worlds.base import World
from ..worlds.environment import WorldEnv
from .arrays import ArrayStep, Member, edit_layers


class WorldArrays:
    """The environments of K agents as copies of one world: the same levels and rewards as `WorldEnv`.

    Args:
        agent: how many environments an agent has.
        world: the world.
        members: seeds and edits (see `can_edit`).
    """

    def __init__(self, agent: AgentSpec, world: World, members: Sequence[Member]) -> None:
        self._world, self._shape = world, (len(members), agent.n_envs)
        self._outcomes = np.array([*world.outcomes, None], dtype=object)  # the last: `RUNNING`, -1
        self._draws = [
            seeding.np_random(env_seed(agent, member.seed, number))[0]
            for member in members
            for number in range(agent.n_envs)
        ]  # the generators that the environments themselves would have
        self._layers = [(edits, np.stack([self._levels(edit) for edit in edits])) for edits in edit_layers(members)]
        self._state = world.begin(np.zeros(len(self._draws), np.int64))

    @staticmethod
    def can_edit(env: WorldEnv, edit: RewardEdit | None) -> bool:
        """Return whether an edit can be made here: corrections of everything, of contexts or of components."""
        if edit is None or (edit.groups is not None and not edit.groups):
            return True
        if not env.tell_intended or edit.groups is None:
            return env.tell_intended
        return edit.values is None and (edit.grouping is BY_CONTEXT or isinstance(edit.grouping, ByComponent))

    def reset(self) -> NDArray[np.float32]:
        """Begin everywhere."""
        self._begin(np.arange(len(self._draws)))
        return self._observe()

    def step(self, actions: NDArray[Any]) -> ArrayStep:
        """Step everywhere."""
        flat = actions.reshape(len(self._draws), *actions.shape[2:])
        space = self._world.action_space
        if isinstance(space, spaces.Box):
            flat = np.clip(flat.astype(np.float32), space.low, space.high)
        moved, terminated, truncated = self._world.step(self._state, flat)
        rewards = before = moved.reward
        for edits, by_level in self._layers:
            before = rewards
            rewards = np.where(self._edited(edits, by_level, moved.components), moved.intended, rewards)
        final = self._observe()
        outcomes = self._outcomes[moved.outcome].reshape(self._shape)
        ended = np.flatnonzero(terminated | truncated)
        self._begin(ended)
        following = self._observe() if len(ended) else final
        changed = np.abs(rewards - before) > WRONG_REWARD
        ends, stops, counted = (flags.reshape(self._shape) for flags in (terminated, truncated, changed))
        paid = rewards.astype(np.float32).reshape(self._shape)
        return ArrayStep(following, paid, ends, stops, final, counted, outcomes)

    def close(self) -> None:
        """Nothing is held."""

    def _begin(self, which: NDArray[np.int64]) -> None:
        numbers = np.array([self._draws[i].integers(self._world.planted.levels) for i in which], np.int64)
        for name, values in self._world.begin(numbers).items():
            self._state[name][which] = values

    def _observe(self) -> NDArray[np.float32]:
        return self._world.observe(self._state).reshape(*self._shape, -1)

    def _levels(self, edit: RewardEdit | None) -> NDArray[np.bool_]:
        levels = self._world.planted.levels
        if edit is None or edit.groups is None:
            return np.full(levels, edit is not None)
        if edit.grouping is not BY_CONTEXT:
            return np.zeros(levels, dtype=bool)
        return np.array([str(number) in edit.groups for number in range(levels)])

    def _edited(
        self,
        edits: Sequence[RewardEdit | None],
        by_level: NDArray[np.bool_],
        components: dict[str, NDArray[np.float64]],
    ) -> NDArray[np.bool_]:
        """Return which copies' rewards one edit an agent corrects, [K * E]."""
        level = self._state["level"].reshape(self._shape)
        edited = np.take_along_axis(by_level, level, axis=1)
        by_component = [i for i, edit in enumerate(edits) if edit and edit.groups and edit.grouping is not BY_CONTEXT]
        if by_component:
            names = sorted(components)
            paid = np.stack([components[name] != 0.0 for name in names], axis=1)
            groups = np.array([component_group(names, row) for row in paid]).reshape(self._shape)
            for agent in by_component:
                edit = edits[agent]
                assert edit is not None and edit.groups is not None
                edited[agent] = np.isin(groups[agent], list(edit.groups))
        return np.asarray(edited.reshape(-1))
