"""A short look at an environment: episodes of a random policy, within bounds of episodes, steps and seconds."""

from __future__ import annotations

import time
from collections import Counter
from typing import NamedTuple

from ...datasets.groups import Grouping
from .contract import InfoReader
from .spaces import choices, env_action
from .spec import EnvSpec, random_actions

EPISODES = 64
_STEPS = 4000
_SECONDS = 0.5


class RandomPlays(NamedTuple):
    """What a random policy met.

    Attributes:
        outcomes: how often episodes ended in which way.
        groups: groups of the transitions met; empty without a grouping.
        keys: the step keys that infos carry.
        episodes: whole ones.
        steps: of all episodes, the last one perhaps not whole.
        seconds: that they took, making the environment not included.
    """

    outcomes: Counter[str]
    groups: frozenset[str]
    keys: frozenset[str]
    episodes: int
    steps: int
    seconds: float


def play_random(
    spec: EnvSpec,
    masked: bool = False,
    grouping: Grouping | None = None,
    episodes: int = EPISODES,
    steps: int = _STEPS,
    seconds: float = _SECONDS,
) -> RandomPlays:
    """Play episodes `reset(seed=0..)` at random until one of the bounds is met; one episode at least is begun.

    Args:
        spec: the environment.
        masked: whether to draw only actions that the environment allows.
        grouping: what groups to count; None: none.
        episodes, steps, seconds: bounds.

    Raises:
        EnvironmentError_: it cannot be made, or breaks the contract.
    """
    where, env = f"environment `{spec.id}`", spec.make()
    outcomes, groups, taken, began = Counter[str](), set[str](), 0, time.monotonic()
    try:
        reader, draw = InfoReader(choices(env.action_space), where), random_actions(env, masked, where)
        began = time.monotonic()
        for episode in range(episodes):
            observation, _ = env.reset(seed=episode)
            ended = False
            while not ended and taken < steps and time.monotonic() - began < seconds:
                action = env_action(env.action_space, draw())
                following, reward, terminated, truncated, info = env.step(action)
                ended, taken = terminated or truncated, taken + 1
                told = reader.read(info, float(reward), ended)
                if grouping is not None:
                    groups.add(grouping.of_step(observation, action, info))
                if told.outcome is not None:
                    outcomes[told.outcome] += 1
                observation = following
            if not ended:
                break
        took = time.monotonic() - began
    finally:
        env.close()
    return RandomPlays(outcomes, frozenset(groups), reader.keys or frozenset(), outcomes.total(), taken, took)
