"""Environments of K agents stepped as arrays: copies of one world, or any environment through its own interface."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from numpy.typing import NDArray

from ...datasets.groups import BY_CONTEXT
from ...datasets.rewards import editable
from ..agents.spec import AgentSpec, env_seed
from ..edits.edit import CORRECTED, CorrectedRewards, Paid, RewardEdit, pay
from ..environments.spaces import env_action
from ..environments.spec import Env, EnvSpec, describe
from ..worlds.base import Moved
from ..worlds.environment import WorldEnv, bare_world, bare_worlds

Floats = NDArray[np.float32]
Flags = NDArray[np.bool_]


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


def edit_layers(members: Sequence[Member]) -> list[list[RewardEdit | None]]:
    """Return the edits of each member, one list for each place in the order in which they are made; own ones last."""
    mine: list[tuple[RewardEdit | None, ...]] = [member.edit.layers if member.edit else () for member in members]
    depth = max(map(len, mine))
    return [list(edits) for edits in zip(*[(None,) * (depth - len(own)) + own for own in mine], strict=True)]


class ArrayStep(NamedTuple):
    """One step of K x E environments; ended ones have begun again.

    Attributes:
        observations: float32 [K, E, D], flattened.
        rewards: float32 [K, E], as edited.
        terminated, truncated: bool [K, E].
        final: float32 [K, E, D], what was observed before an ended one began again.
        corrected: bool [K, E], where the member's own edit changed the reward (not one made `first`).
        outcomes: str [K, E], how episodes ended; None where they go on.
    """

    observations: Floats
    rewards: Floats
    terminated: Flags
    truncated: Flags
    final: Floats
    corrected: Flags
    outcomes: NDArray[np.object_]


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
        final, following, steps, outcomes = [], [], [], []
        for env, action in zip(self._envs, flat, strict=True):
            observation, reward, terminated, truncated, info = env.step(env_action(self._facts.action_space, action))
            final.append(observation)
            following.append(env.reset()[0] if terminated or truncated else observation)
            outcomes.append(str(info.get("outcome")) if terminated or truncated else None)
            steps.append((float(reward), terminated, truncated and not terminated, bool(info.get(CORRECTED, False))))
        rewards, terminated_, truncated_, corrected = (
            np.array(values).reshape(self._shape) for values in zip(*steps, strict=True)
        )
        return ArrayStep(
            self._stacked(following),
            rewards.astype(np.float32),
            terminated_,
            truncated_,
            self._stacked(final),
            corrected,
            np.array(outcomes, dtype=object).reshape(self._shape),
        )

    def _stacked(self, observations: Sequence[Any]) -> Floats:
        return self._facts.form.batch(observations).astype(np.float32).reshape(*self._shape, -1)

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs:
            env.close()


class _Layer(NamedTuple):
    """One edit of each agent, those made in the same place.

    Attributes:
        amounts: what each level's transitions are to be paid (`RewardEdit.amounts`), [K, levels]; NaN where an edit
            depends on more than the level.
        further: agents whose edit does, with it.
    """

    amounts: NDArray[np.float64]
    further: list[tuple[int, RewardEdit]]


class WorldArrays:
    """Copies of one world: the same levels, observations and rewards as of its environments one by one.

    Args:
        agent: how many environments an agent has.
        env: an environment of the world.
        members: seeds and edits.
    """

    def __init__(self, agent: AgentSpec, env: WorldEnv, members: Sequence[Member]) -> None:
        self._world, self._tells_intended = env.world, env.tell_intended
        self._shape, self._space = (len(members), agent.n_envs), env.action_space
        self._agents = np.repeat(np.arange(len(members)), agent.n_envs)
        self._outcomes = np.array([*self._world.outcomes, None], dtype=object)  # the last: `RUNNING`, -1
        self._draws = [
            seeding.np_random(env_seed(agent, member.seed, number))[0]
            for member in members
            for number in range(agent.n_envs)
        ]  # the generators that the environments themselves would have
        self._layers = [self._layer(edits) for edits in edit_layers(members) if any(edits)]

    def _layer(self, edits: Sequence[RewardEdit | None]) -> _Layer:
        levels = self._world.planted.levels
        amounts, further = np.full((len(edits), levels), np.nan), []
        for agent, edit in enumerate(edits):
            if edit is None:
                continue
            if edit.by_group and edit.grouping is not BY_CONTEXT:
                further.append((agent, edit))
            else:
                amounts[agent] = edit.amounts(levels, lambda: [str(number) for number in range(levels)])
        return _Layer(amounts, further)

    def reset(self) -> Floats:
        """Begin everywhere."""
        everywhere = np.arange(len(self._draws))
        self._state = self._world.begin(self._drawn_levels(everywhere))
        self._left = self._world.observe(self._state)
        return self._left.reshape(*self._shape, -1)

    def step(self, actions: NDArray[Any]) -> ArrayStep:
        """Step everywhere."""
        flat = actions.reshape(len(self._draws), *actions.shape[2:])
        if isinstance(self._space, spaces.Box):
            flat = np.clip(flat.astype(np.float32), self._space.low, self._space.high)
        moved, terminated, truncated = self._world.step(self._state, flat)
        paid = self._paid(moved, flat, terminated)
        outcomes = self._outcomes[moved.outcome].reshape(self._shape)
        final = self._left = self._world.observe(self._state)
        ended = np.flatnonzero(terminated | truncated)
        if len(ended):
            for name, values in self._world.begin(self._drawn_levels(ended)).items():
                self._state[name][ended] = values
            self._left = self._world.observe(self._state)
        ends, stops, changed = (flags.reshape(self._shape) for flags in (terminated, truncated, paid.changed))
        following, last = (seen.reshape(*self._shape, -1) for seen in (self._left, final))
        rewards = paid.rewards.astype(np.float32).reshape(self._shape)
        return ArrayStep(following, rewards, ends, stops, last, changed, outcomes)

    def _drawn_levels(self, which: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.array([self._draws[i].integers(self._world.planted.levels) for i in which], np.int64)

    def _paid(self, moved: Moved, actions: NDArray[Any], terminated: Flags) -> Paid:
        """Return what the edits pay for a step, [K * E]; `changed` by each agent's own edit, the last layer."""
        level = self._state["level"]
        intended = moved.intended if self._tells_intended else np.full(len(level), np.nan)
        paid = Paid(moved.reward, np.zeros(len(level), dtype=bool))
        for layer in self._layers:
            amounts, numbers = layer.amounts[self._agents, level], editable(paid.rewards, terminated, BY_CONTEXT)
            for agent, edit in layer.further:
                own = np.flatnonzero(self._agents == agent)
                amounts[own] = edit.amounts(len(own), partial(self._groups, edit, own, moved, actions))
                numbers[own] = editable(paid.rewards[own], terminated[own], edit.grouping)
            paid = pay(paid.rewards, intended, amounts, numbers)
        return paid

    def _groups(self, edit: RewardEdit, copies: NDArray[np.int64], moved: Moved, actions: NDArray[Any]) -> list[str]:
        """Return the groups of some copies' transitions, of what their environments would tell."""
        return [
            edit.grouping.of_step(
                self._left[copy],
                env_action(self._space, actions[copy]),
                {"context": int(self._state["level"][copy]), **self._world.told_components(moved, copy)},
            )
            for copy in copies
        ]

    def close(self) -> None:
        """Nothing is held."""


def make_array_env(agent: AgentSpec, env: EnvSpec, members: Sequence[Member]) -> ArrayEnv:
    """Return the environments of a stack: as arrays where the project can, with the same seeds as SB3's otherwise."""
    made = [env.make()]
    if bare_world(made[0]) is not None:
        made.append(env.make())  # a second one, for a factory may make each different
    worlds = bare_worlds(made)
    for one in made:
        one.close()
    return GymArrays(agent, env, members) if worlds is None else WorldArrays(agent, worlds[0], members)
