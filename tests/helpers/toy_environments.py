"""Tiny environments, each written for one claim; named by tasks as `toy_environments:Corridor`."""

from __future__ import annotations

import itertools
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray


class Corridor(gym.Env[NDArray[np.float32], Any]):
    """Cells 0..length; begin in the middle; right end `goal`, left end `pit`, else `timeout`.

    Args:
        length: index of the right end.
        limit: step limit.
        step_reward: paid at every step, beside 1 at the goal.
        nan_after: pay NaN from this many steps of this instance on; None: never.
        tell: info keys it tells.
        intended_error: what the intended reward differs from the paid one by.
        cells: observe one of so many cells one-hot; 0: as two numbers.
        goal: outcome at the right end.
        components: sum of `reward_components` relative to the reward; None: not told.
    """

    def __init__(
        self,
        length: int = 4,
        limit: int = 6,
        step_reward: float = 0.0,
        nan_after: int | None = None,
        tell: tuple[str, ...] = ("outcome", "intended_reward"),
        intended_error: float = 0.0,
        components: float | None = None,
        cells: int = 0,
        goal: str = "goal",
    ) -> None:
        self.render_mode = None
        self.length, self.limit, self.step_reward = length, limit, step_reward
        self.nan_after, self.tell, self.intended_error, self.components = (
            nan_after,
            tell,
            intended_error,
            components,
        )
        self.one_hot, self.goal = cells, goal
        shape = (cells,) if cells else (2,)
        self.observation_space = gym.spaces.Box(-1.0, 1.0, shape, np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.age = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.cell = self.length // 2 if not self.one_hot else int(self.np_random.integers(1, self.length))
        self.t = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.cell += 1 if int(action) == 1 else -1
        self.t += 1
        self.age += 1
        terminated = self.cell in (0, self.length)
        truncated = not terminated and self.t >= self.limit
        reward = self.step_reward + (1.0 if self.cell == self.length else 0.0)
        if self.nan_after is not None and self.age > self.nan_after:
            reward = float("nan")
        info: dict[str, Any] = {}
        if "intended_reward" in self.tell:
            info["intended_reward"] = reward + self.intended_error
        if "bad_labels" in self.tell:
            info["action_labels"] = 1
        if self.components is not None:
            info["reward_components"] = {"a": reward * self.components, "b": 0.0}
        if (terminated or truncated) and "outcome" in self.tell:
            info["outcome"] = self.goal if self.cell == self.length else "pit" if self.cell == 0 else "timeout"
        return self._observe(), reward, terminated, truncated, info

    def _observe(self) -> NDArray[np.float32]:
        if self.one_hot:
            state = np.zeros(self.one_hot, dtype=np.float32)
            state[self.cell] = 1.0
            return state
        return np.array([self.cell / self.length, 1.0], dtype=np.float32)


class Spoken(Corridor):
    """A corridor that takes text as actions."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Text(3)


class Shifted(Corridor):
    """A corridor whose actions are counted from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = gym.spaces.Discrete(2, start=1)


class Kinds(gym.Env[Any, Any]):
    """A corridor with every kind of observation and action.

    Args:
        observe: vector | cell (Discrete) | image (channels last) | dict (image and vector).
        act: discrete | multi | binary | box.
        intended_error: what the intended reward differs from the paid one by at the goal.
    """

    def __init__(self, observe: str = "vector", act: str = "discrete", intended_error: float = 0.0) -> None:
        self.render_mode = None
        self.observe, self.corridor = observe, Corridor(intended_error=intended_error)
        vector: gym.Space[Any] = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        image: gym.Space[Any] = gym.spaces.Box(0, 255, (36, 40, 1), np.uint8)
        both = gym.spaces.Dict({"image": image, "vector": vector, "cell": gym.spaces.Discrete(5)})
        self.observation_space = {"vector": vector, "cell": gym.spaces.Discrete(5), "image": image, "dict": both}[
            observe
        ]
        self.action_space = {
            "discrete": gym.spaces.Discrete(3), "multi": gym.spaces.MultiDiscrete([2, 3]),
            "binary": gym.spaces.MultiBinary(2), "box": gym.spaces.Box(-0.5, 0.5, (2,)),
        }[act]  # fmt: skip

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.corridor.reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), f"{action!r} is not of {self.action_space}"
        right = int(np.asarray(action).reshape(-1)[0] > 0)
        _, reward, terminated, truncated, info = self.corridor.step(right)
        return self._observe(), reward, terminated, truncated, {**info, "context": self.corridor.t}

    def _observe(self) -> Any:
        vector = self.corridor._observe()
        cell = np.int64(self.corridor.cell)
        image = np.zeros((36, 40, 1), np.uint8)
        image[:, 8 * cell : 8 * cell + 8] = 255
        return {"vector": vector, "cell": cell, "image": image}.get(
            self.observe, {"image": image, "vector": vector, "cell": cell}
        )


class Bonus(Corridor):
    """A corridor that wrongly pays a bonus at the pit, as a reward component of its own."""

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        bonus = 2.0 if self.cell == 0 else 0.0
        info |= {"reward_components": {"goal": reward, "bonus": bonus}, "intended_reward": reward}
        return observation, reward + bonus, terminated, truncated, info


class Gated(Bonus):
    """The same corridor with a third action that is never allowed: taking it is an error.

    Args:
        open: whether the others are allowed.
    """

    def __init__(self, open: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.action_space, self.open = gym.spaces.Discrete(3), open

    def action_masks(self) -> NDArray[np.bool_]:
        return np.array([self.open, self.open, False])

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        assert action != 2, "an action that is not allowed was taken"
        return super().step(action)


class Masked(Kinds):
    """Every kind of action that can be masked: some are forbidden, which depends on the step. Taking one is an error.

    Args:
        told: length of the masks told instead of the right one.
    """

    def __init__(self, told: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.told = told

    def action_masks(self) -> list[bool]:
        t = self.corridor.t
        masks = {
            "Discrete": [True, t % 3 != 1, t % 3 == 2],  # at every third step nothing is left to choose
            "MultiDiscrete": [True, t % 2 == 0, *(t % 3 != k for k in range(3))],
            "MultiBinary": [True, True, t % 2 == 0, True],
        }
        return masks.get(type(self.action_space).__name__, [])[: self.told]

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        mask, sizes = self.action_masks(), {"MultiDiscrete": [2, 3], "MultiBinary": [2, 2]}
        starts = np.cumsum([0, *sizes.get(type(self.action_space).__name__, [])])
        numbers = np.atleast_1d(action)
        assert all(mask[starts[k] + number] for k, number in enumerate(numbers)), "an action that is not allowed"
        return super().step(action)


class Forgetful(Corridor):
    """A corridor whose reward components do not sum to the reward in an instance seeded with `honest` or more."""

    def __init__(self, honest: int) -> None:
        super().__init__(components=1.0)
        self.honest = honest

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.components = 1.0 if seed < self.honest else 0.5
        return super().reset(seed=seed, options=options)


def wrapped(id: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """An environment in a wrapper that changes nothing."""
    return gym.Wrapper(gym.make(id, **kwargs))


class Unseeded(Corridor):
    """A corridor whose start does not follow the seed."""

    _starts = np.random.default_rng(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        _, info = super().reset(seed=seed)
        self.cell = 1 + int(self._starts.integers(self.length - 1))
        return self._observe(), info


_made = itertools.count()


def own_levels(**kwargs: Any) -> gym.Env[Any, Any]:
    """A world of levels of its own each time: copies differ, as where a factory draws parameters at random."""
    return gym.make("aitia/ArrowMaze-v0", disable_env_checker=True, level_seed=next(_made), **kwargs)
