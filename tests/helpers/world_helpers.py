"""Worlds in tests: making one, and playing a reference solver."""

from __future__ import annotations

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

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


class Played(NamedTuple):
    """How an episode ended, and its returns as paid and as intended."""

    outcome: str
    reward: float
    intended_reward: float


def play_reference(env: WorldEnv, goal: str, seed: int, options: dict[str, Any] | None = None) -> Played:
    """Play one episode with the reference solver of a goal, or with `random` actions."""
    generator = np.random.default_rng([seed, 1])
    env.reset(seed=seed, options=options)
    total = intended = 0.0
    while True:
        action = env.solve(goal) if goal != "random" else generator.integers(len(env.world.action_names))
        _, reward, terminated, truncated, info = env.step(action)
        total += reward
        intended += info["intended_reward"]
        if terminated or truncated:
            return Played(info["outcome"], total, intended)
