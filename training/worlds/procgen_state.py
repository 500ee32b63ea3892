"""The state that procgen gives out as bytes, for CoinRun and Maze: read, checked, and edited in place.

Procgen 0.10.7 writes every field one after the other (`get_state`): 32-bit little-endian integers and floats, and
texts as their length and their bytes. The three random generators are texts of varying length, so nothing has a
fixed place and everything before a field is walked over (docs/procgen.md has the whole order). Every reading checks
version, game, the sizes of the grid and the mark at the end: another build's bytes are an error, not a wrong agent.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...datasets.errors import EnvironmentError_

VERSION = 0
FREE = 100
_PLAYER = 0
_END = 0xCAFECAFE
_ENTITY_FIELDS = 31  # x, y, vx, vy, rx, ry, type and 24 more
_TYPE = 6
_TAIL = {"coinrun": 7, "maze": 2}  # fields after the grid
_TOUCH = 0.001  # what procgen takes off a body before it asks which cells it touches

Cell = tuple[int, int]


class Body(NamedTuple):
    """Where a body is: centre and half sizes, in cells from the lower left."""

    x: float
    y: float
    rx: float
    ry: float

    @property
    def cell(self) -> Cell:
        """The cell of its centre, (column, row)."""
        return int(self.x), int(self.y)

    def touches(self, cell: Cell) -> bool:
        """Return whether it overlaps a cell (column, row), as procgen itself asks."""
        sides = ((self.x, self.rx, cell[0]), (self.y, self.ry, cell[1]))
        return all(int(at - half + _TOUCH) <= place <= int(at + half - _TOUCH) for at, half, place in sides)


class ProcgenState:
    """One state of CoinRun or Maze; `bytes(state)` is what `set_state` takes.

    Args:
        data: what `get_state` gave.
        game: `coinrun` or `maze`.

    Attributes:
        level: the number of the level, its seed.
        time: steps since the level began.
        entities: float32 [E, 31], agent first; columns x, y, vx, vy, rx, ry, then others. A view: writing edits.
        grid: int32 [rows, columns] of object types, row 0 the lowest. A view: writing edits.

    Raises:
        EnvironmentError_: the bytes are not laid out as procgen 0.10.7 does.
    """

    def __init__(self, data: bytes, game: str) -> None:
        self._data = bytearray(data)
        self._at = 0
        try:
            problem = self._read(game)
        except (struct.error, ValueError, IndexError) as error:
            problem = f"they end too early ({error})"
        if problem:
            raise EnvironmentError_(
                f"procgen {game}: the state of {len(data)} bytes cannot be read: {problem}. Expected the layout of "
                'procgen-mirror 0.10.7; install that version: pip install "aitia[procgen]"'
            )

    def _read(self, game: str) -> str | None:
        """Walk over all fields; return what is wrong, or None."""
        version, name = self._integer(), self._text()
        if (version, name) != (VERSION, game.encode()):
            return f"version {version} of the game {name!r}"
        self._skip(12 + 1)  # options; grid_step
        self._levels_at = self._skip(2)
        self._skip(2)  # game_type, game_n
        self._skip_generator()
        self._skip_generator()
        self._skip(3 + 1)  # reward, done, level_complete; action
        self._timeout_at = self._skip(1)
        self.level = self._integer()
        self._skip(3 + 3 + 1)  # previous level, episodes; last rewards, default action; asset seed
        self.time = self._integer()
        self._skip(1)
        grid_size, entities = self._integer(), self._integer()
        at = self._skip(entities * _ENTITY_FIELDS)
        self.entities: NDArray[np.float32] = np.frombuffer(
            self._data, np.float32, entities * _ENTITY_FIELDS, at
        ).reshape(entities, _ENTITY_FIELDS)
        self._skip(4 + 7 + 3 + 2 + 3)  # background; movement; action; centre; start and step
        self._skip_generator()
        self._skip(3 + 6)  # world size, outside object; drawing
        width, height, cells = self._integer(), self._integer(), self._integer()
        if not width * height == cells == grid_size:
            return f"a grid of {width} x {height} in {cells} cells where {grid_size} were said"
        self.grid: NDArray[np.int32] = np.frombuffer(self._data, np.int32, cells, self._skip(cells)).reshape(
            height, width
        )
        self._skip(_TAIL[game])
        end = self._integer() & 0xFFFFFFFF
        if end != _END or self._at != len(self._data):
            return f"{end:#x} stands at byte {self._at - 4}, where the mark of the end is expected"
        if not entities or self.entities.view(np.int32)[0, _TYPE] != _PLAYER:
            return "the first entity is not the agent"
        return None

    def _integer(self) -> int:
        value: int = struct.unpack_from("<i", self._data, self._at)[0]
        self._at += 4
        return value

    def _text(self) -> bytes:
        length = self._integer()
        start = self._at
        self._at += length
        return bytes(self._data[start : self._at])

    def _skip(self, fields: int) -> int:
        """Pass over 32-bit fields; return where they begin."""
        start = self._at
        self._at += 4 * fields
        return start

    def _skip_generator(self) -> None:
        self._skip(1)  # whether it is seeded
        self._text()

    def __bytes__(self) -> bytes:
        return bytes(self._data)

    @property
    def agent(self) -> Body:
        """The agent's body."""
        x, y, _, _, rx, ry = self.entities[0, :6].tolist()
        return Body(x, y, rx, ry)

    def occupied(self) -> set[Cell]:
        """Return the cells (column, row) of all entities but the agent: saws, enemies, crates."""
        return {(int(x), int(y)) for x, y in self.entities[1:, :2].tolist()}

    def cells(self, kind: int) -> list[Cell]:
        """Return the cells (column, row) that hold an object type, from the lowest row up."""
        return [(int(column), int(row)) for row, column in np.argwhere(self.grid == kind)]

    def set_next_level(self, number: int) -> None:
        """Let the next level be this one."""
        struct.pack_into("<ii", self._data, self._levels_at, number, number + 1)

    def set_timeout(self, steps: int) -> None:
        """Set the step at which procgen itself ends the episode."""
        struct.pack_into("<i", self._data, self._timeout_at, steps)
