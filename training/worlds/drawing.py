"""Pictures of worlds: shapes of the unit square, drawn three times larger and reduced for smooth edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

_PIXELS, FINER = 196, 3  # drawn so many times larger and reduced: smooth edges
COLOURS = {"orange": (232, 119, 34), "green": (22, 150, 70), "blue": (40, 90, 200)}


class Shape(NamedTuple):
    """Something drawn: `disc`, `square` or `frame`, its centre and size in the unit square, its colour."""

    kind: str
    x: float
    y: float
    size: float
    colour: str


def draw(shapes: Sequence[Shape]) -> NDArray[np.uint8]:
    """Draw shapes of the unit square with a margin, y upwards."""
    size = _PIXELS * FINER
    image = Image.new("RGB", (size, size), (250, 249, 245))
    pen = ImageDraw.Draw(image)
    for shape in shapes:
        x, y, half = (0.08 + 0.84 * shape.x) * size, (0.92 - 0.84 * shape.y) * size, 0.84 * shape.size * size
        box, colour = (x - half, y - half, x + half, y + half), COLOURS[shape.colour]
        if shape.kind == "disc":
            pen.ellipse(box, fill=colour)
        elif shape.kind == "square":
            pen.rectangle(box, fill=colour)
        else:
            pen.rectangle(box, outline=colour, width=2 * FINER)
    return np.asarray(image.resize((_PIXELS, _PIXELS), Image.Resampling.LANCZOS), dtype=np.uint8)
