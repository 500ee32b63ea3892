"""A world as a Gymnasium environment: one copy of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...datasets.errors import EnvironmentError_
from .base import Shape, State, World, parameters_of
from .channels import BoatRace, ButtonRoom
from .goals import Cheese, CoinRun, ContinuousCheese
from .keys import KeysAndChests
from .platform import PlatformRun
from .robot import CleaningRobot

FAMILIES: dict[str, type[World]] = {
    world.family: world
    for world in (
        CoinRun,
        Cheese,
        ContinuousCheese,
        BoatRace,
        ButtonRoom,
        PlatformRun,
        KeysAndChests,
        CleaningRobot,
    )
}
_PIXELS, _FINER = 196, 3
_COLOURS = {"orange": (232, 119, 34), "green": (22, 150, 70), "blue": (40, 90, 200)}


class WorldEnv(gym.Env[NDArray[np.float32], Any]):
    """One copy of a world (Gymnasium ids `aitia/CoinRun-v0` and so on).

    Args:
        family: which world.
        tell_intended: whether `info` tells the intended reward.
        render_mode: None or `rgb_array`.
        parameters: of the family, see its `parameters`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self, family: str, tell_intended: bool = True, render_mode: str | None = None, **parameters: Any
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise EnvironmentError_(f"{family}: render_mode={render_mode!r} was given, expected None or 'rgb_array'")
        self.world = FAMILIES[family](parameters_of(FAMILIES[family], parameters))
        self.tell_intended, self.render_mode = tell_intended, render_mode
        self.metadata = {**self.metadata, "action_names": self.world.action_names, "outcomes": self.world.outcomes}
        self.reference_goals = self.world.goals
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (self.world.width,), np.float32)
        self.action_space = self.world.action_space
        self.state: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode on a level drawn from the set; `options={"level": i}` names one."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(self.world.planted.levels))
        if options and "level" in options:
            number = int(options["level"])
        self.state = self.world.begin(np.array([number]))
        return self.world.observe(self.state)[0], {"context": number}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Take one action."""
        state = self._begun()
        labels = self.world.labels(state)
        moved, terminated, truncated = self.world.step(state, np.asarray(action)[None])
        reward = float(moved.reward[0])
        info: dict[str, Any] = {
            "context": int(state["level"][0]),
            "untampered_reward": reward - float(moved.tampered[0]),
            "reward_components": {name: float(values[0]) for name, values in moved.components.items()},
        }
        if self.tell_intended:
            info["intended_reward"] = float(moved.intended[0])
        if labels is not None:
            info["action_labels"] = labels[0].tolist()
        if terminated[0] or truncated[0]:
            info["outcome"] = self.world.outcomes[moved.outcome[0]]
        return self.world.observe(state)[0], reward, bool(terminated[0]), bool(truncated[0]), info

    def solve(self, goal: str) -> Any:
        """Return the action of a reference solver with a goal (one of `reference_goals`)."""
        return self.world.solve(self._begun(), goal)[0]

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture, uint8 [height, width, 3], or None without a render mode."""
        return draw(self.world.picture(self._begun())) if self.render_mode == "rgb_array" else None

    def _begun(self) -> State:
        if self.state is None:
            raise EnvironmentError_(f"{self.world.family}: call reset() before step() or render()")
        return self.state


def draw(shapes: Sequence[Shape]) -> NDArray[np.uint8]:
    """Draw shapes of the unit square with a margin, y upwards."""
    size = _PIXELS * _FINER
    image = Image.new("RGB", (size, size), (250, 249, 245))
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        x, y, half = (0.08 + 0.84 * shape.x) * size, (0.92 - 0.84 * shape.y) * size, 0.84 * shape.size * size
        box, colour = (x - half, y - half, x + half, y + half), _COLOURS[shape.colour]
        if shape.kind == "disc":
            pen.ellipse(box, fill=colour)
        elif shape.kind == "square":
            pen.rectangle(box, fill=colour)
        else:
            pen.rectangle(box, outline=colour, width=2 * _FINER)
    return np.asarray(image.resize((_PIXELS, _PIXELS), Image.Resampling.LANCZOS), dtype=np.uint8)
