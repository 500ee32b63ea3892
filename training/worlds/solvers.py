"""Reference solvers of the arrow maze: to the arrow, to the corner, at random (the three outcomes of Hubinger 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from .maze import ArrowMazeEnv

Goal = Literal["arrow", "corner", "random"]


@dataclass(frozen=True)
class Solver:
    """A scripted policy that walks a shortest path to its goal.

    Attributes:
        goal: `arrow` (intended), `corner` (the learned proxy), or `random`.
    """

    goal: Goal

    def act(self, env: ArrowMazeEnv, generator: np.random.Generator) -> int:
        """Return an action for the state the environment is in."""
        if self.goal == "random":
            return int(generator.integers(4))
        return env.solve(self.goal)


class ReferencePlay(NamedTuple):
    """How a reference episode ended, and its returns as paid and as intended."""

    outcome: str
    reward: float
    intended_reward: float


def play_reference(
    env: ArrowMazeEnv, solver: Solver, seed: int, options: dict[str, Any] | None = None
) -> ReferencePlay:
    """Play one episode with a reference solver.

    Args:
        env: the maze.
        solver: the scripted policy.
        seed: of the episode (`reset(seed=seed)`) and of a random solver's draws.
        options: passed to `reset`.
    """
    generator = np.random.default_rng([seed, 1])
    env.reset(seed=seed, options=options)
    total = intended = 0.0
    while True:
        _, reward, terminated, truncated, info = env.step(np.int64(solver.act(env, generator)))
        total += reward
        intended += info["intended_reward"]
        if terminated or truncated:
            return ReferencePlay(info["outcome"], total, intended)
