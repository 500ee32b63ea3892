"""Pictures of the arrow maze for reports."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .levels import Cell, Level

CELL = 28
_SCALE = 3  # drawn larger and reduced: smooth edges
_FLOOR, _GRID, _WALL = (250, 249, 245), (222, 219, 210), (71, 72, 80)
_CORNER, _AGENT, _ARROW = (232, 119, 34), (40, 90, 200), (22, 150, 70)


def draw_level(level: Level, agent: Cell) -> NDArray[np.uint8]:
    """Draw a level: walls dark, corner outlined in orange, arrow green, agent a blue disc.

    Returns:
        uint8 [size * CELL, size * CELL, 3].
    """
    size, unit = len(level.walls), CELL * _SCALE
    image = Image.new("RGB", (size * unit, size * unit), _FLOOR)
    pen = ImageDraw.Draw(image)
    for row in range(size):
        for column in range(size):
            box = _box((row, column), unit, 0)
            pen.rectangle(box, fill=_WALL if level.walls[row, column] else _FLOOR, outline=_GRID, width=_SCALE)
    pen.rectangle(_box(level.corner, unit, 5), outline=_CORNER, width=2 * _SCALE)
    _draw_arrow(pen, level.arrow, unit)
    pen.ellipse(_box(agent, unit, unit // 4), fill=_AGENT, outline=(255, 255, 255), width=_SCALE)
    reduced = image.resize((size * CELL, size * CELL), Image.Resampling.LANCZOS)
    return np.asarray(reduced, dtype=np.uint8)


def _box(cell: Cell, unit: int, margin: int) -> tuple[int, int, int, int]:
    top, left = cell[0] * unit, cell[1] * unit
    return left + margin, top + margin, left + unit - 1 - margin, top + unit - 1 - margin


def _draw_arrow(pen: ImageDraw.ImageDraw, cell: Cell, unit: int) -> None:
    top, left = cell[0] * unit, cell[1] * unit
    shape = ((0.5, 0.14), (0.86, 0.5), (0.64, 0.5), (0.64, 0.86), (0.36, 0.86), (0.36, 0.5), (0.14, 0.5))
    pen.polygon([(left + x * unit, top + y * unit) for x, y in shape], fill=_ARROW)
