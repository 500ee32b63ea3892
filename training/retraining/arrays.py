"""Environments of K agents stepped as arrays; here any environment, one by one through its own interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from ..agents.spec import AgentSpec, env_seed
from ..edits.edit import CORRECTED, CorrectedRewards, RewardEdit
from ..environments.spaces import env_action
from ..environments.spec import Env, EnvSpec, describe

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
        final, following, told, outcomes = [], [], [], []
        for env, action in zip(self._envs, flat, strict=True):
            observation, reward, terminated, truncated, info = env.step(env_action(self._facts.action_space, action))
            final.append(observation)
            following.append(env.reset()[0] if terminated or truncated else observation)
            outcomes.append(str(info.get("outcome")) if terminated or truncated else None)
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
            np.array(outcomes, dtype=object).reshape(self._shape),
        )

    def _stacked(self, observations: Sequence[Any]) -> Floats:
        return self._facts.form.batch(observations).astype(np.float32).reshape(*self._shape, -1)

    def close(self) -> None:
        """Close all environments."""
        for env in self._envs:
            env.close()
