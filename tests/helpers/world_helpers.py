"""Worlds in tests: making one, and playing a reference solver."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

from aitia.training.worlds.environment import WorldEnv


def world_env(name: str, **kwargs: Any) -> WorldEnv:
    """Return a world's environment, unwrapped."""
    env = gym.make(name, **kwargs).unwrapped
    assert isinstance(env, WorldEnv)
    return env


def play(env: WorldEnv, goal: str, level: int) -> list[tuple[dict[str, Any], float, int]]:
    """Play the reference solver; return each step's info, reward and action."""
    env.reset(options={"level": level})
    steps = []
    while True:
        action = int(env.solve(goal))
        observation, reward, terminated, truncated, info = env.step(action)
        assert env.observation_space.contains(observation)
        steps.append((info, reward, action))
        if terminated or truncated:
            return steps
