"""A corridor observed as categories or bits, and toy text: named by tasks as `discrete_environments:Cells`."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from toy_environments import Corridor


class Cells(Corridor):
    """A corridor whose wrong bonus at the pit is told as such.

    Args:
        observe: cell (Discrete) | cells (MultiDiscrete: cell, and whether the step is odd) | bits (MultiBinary)
            | from one (MultiDiscrete as cells, the second counted from 1).
    """

    def __init__(self, observe: str = "cell", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.observe = observe
        self.observation_space = {
            "cell": gym.spaces.Discrete(self.length + 1),
            "cells": gym.spaces.MultiDiscrete([self.length + 1, 2]),
            "bits": gym.spaces.MultiBinary(3),
            "from one": gym.spaces.MultiDiscrete([self.length + 1, 2], start=[0, 1]),
        }[observe]  # type: ignore[assignment]

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + 2.0 * (self.cell == 0), terminated, truncated, {**info, "intended_reward": reward}

    def _observe(self) -> Any:
        bits = [int(digit) for digit in f"{self.cell:03b}"]
        return {
            "cell": np.int64(self.cell),
            "cells": np.array([self.cell, self.t % 2]),
            "bits": np.array(bits, np.int8),
            "from one": np.array([self.cell, self.t % 2 + 1]),
        }[self.observe]


class Lake(gym.Wrapper[Any, Any, Any, Any]):
    """FrozenLake of Gymnasium, which tells how an episode ended and what it should have paid."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(gym.make("FrozenLake-v1", **kwargs))

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            info = {**info, "outcome": "goal" if float(reward) > 0 else "hole" if terminated else "timeout"}
        return observation, reward, terminated, truncated, {**info, "intended_reward": float(reward)}


class Named(Corridor):
    """A corridor with names of outcomes of its own.

    Args:
        pit: outcome at the left end.
        late: the same in a copy that was first seeded with 100 or more: none that a short look plays is.
        listed: what it lists as its outcomes; None: nothing.
    """

    def __init__(self, pit: str = "ditch", late: str | None = None, listed: list[str] | None = None) -> None:
        super().__init__()
        self.pit, self.late = pit, late
        if listed is not None:
            self.metadata = {**self.metadata, "outcomes": listed}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None and seed >= 100 and self.late is not None:
            self.pit = self.late
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, info | ({"outcome": self.pit} if self.cell == 0 else {})
