"""Two arrow mazes in one task, each with its own cause of failure: what clusters of failures are checked with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from ...datasets.errors import EnvironmentError_
from .maze import STAY, ArrowMaze, ArrowMazeEnv

NAMES = ("first", "second")
MOVES = len(ArrowMaze.action_names)


class TwoMazesEnv(gym.Env[NDArray[np.float32], np.int64]):
    """Each episode is played in one of two arrow mazes, drawn evenly (Gymnasium id `aitia/TwoMazes-v0`).

    Nothing is to be learned in one for the other: observations are the coordinates of both mazes, float32 [12], zero
    for the one that is not played, and each has its own four of the eight actions; the others stay in place. Outcomes,
    rewards and labels are the maze's own; contexts are `first-LEVEL` and `second-LEVEL`.

    Args:
        first, second: arguments of the two `ArrowMazeEnv` (coordinates).
        render_mode: None or `rgb_array`.
    """

    metadata = {  # noqa: RUF012 (Gymnasium's own form)
        **ArrowMazeEnv.metadata,
        "action_names": [f"{name}: {move}" for name in NAMES for move in ArrowMaze.action_names],
        "outcomes": ArrowMaze.outcomes,
    }

    def __init__(self, first: Mapping[str, Any], second: Mapping[str, Any], render_mode: str | None = None) -> None:
        for name, arguments in zip(NAMES, (first, second), strict=True):
            if arguments.get("observation", "coordinates") != "coordinates":
                raise EnvironmentError_(f"two mazes: {name}={dict(arguments)} was given, expected coordinates")
        self.mazes = [ArrowMazeEnv(**arguments, render_mode=render_mode) for arguments in (first, second)]
        self.render_mode = render_mode
        self.reference_goals = self.mazes[0].reference_goals
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (12,), np.float32)
        self.action_space = gym.spaces.Discrete(2 * MOVES)
        self._played = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode in a maze and on a level drawn from its set."""
        super().reset(seed=seed)
        self._played = int(self.np_random.integers(2))
        maze = self.mazes[self._played]
        level = int(self.np_random.integers(maze.world.planted.levels))
        observation, info = maze.reset(options={"level": level})
        return self._among(observation), self._named(info)

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Move in the maze that is played."""
        maze, move = divmod(int(action), MOVES)
        observation, reward, terminated, truncated, info = self.mazes[self._played].step(
            np.int64(move if maze == self._played else STAY)
        )
        return self._among(observation), reward, terminated, truncated, self._named(info)

    def render(self) -> NDArray[np.uint8] | None:
        """Return the room as uint8 [height, width, 3], or None without a render mode."""
        return self.mazes[self._played].render()

    def solve(self, goal: str) -> int:
        """Return the action of the maze's reference solver."""
        return self._played * MOVES + int(self.mazes[self._played].solve(goal))

    def _among(self, observation: NDArray[np.float32]) -> NDArray[np.float32]:
        both = np.zeros((2, 6), np.float32)
        both[self._played] = observation
        return both.reshape(-1)

    def _named(self, info: dict[str, Any]) -> dict[str, Any]:
        if "action_labels" in info:
            labels = np.zeros((2, MOVES), np.int64)
            labels[self._played] = info["action_labels"]
            info = {**info, "action_labels": labels.reshape(-1).tolist()}
        return {**info, "context": f"{NAMES[self._played]}-{info['context']}"}
