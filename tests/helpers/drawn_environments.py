"""Corridors that draw themselves in other ways; named by tasks as `drawn_environments:Written`."""

from __future__ import annotations

from typing import Any

import numpy as np
from toy_environments import Bonus


class Written(Bonus):
    """Draws itself as text only."""

    metadata = {"render_modes": ["ansi"], "action_names": ["left", "right"]}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None) -> None:
        super().__init__(cells=7, length=6, limit=12)
        self.render_mode = render_mode

    def render(self) -> Any:
        return "".join("A" if cell == self.cell else "." for cell in range(self.length + 1))


class Broken(Written):
    """Says that it draws itself, and fails."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def render(self) -> Any:
        raise RuntimeError("no display")


class Huge(Written):
    """Draws pictures that are far too large, and never the same twice."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def render(self) -> Any:
        return np.random.default_rng(self.age).integers(0, 255, (700, 1400, 3), np.uint8)
