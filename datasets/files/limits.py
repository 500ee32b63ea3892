"""How much of a file is read: budgets that are checked before it is decoded (docs/run-folder.md, Limits).

A run folder or a task file may come from somebody else, and a few hundred bytes can stand for many gigabytes.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any, NoReturn

import yaml

from ..errors import InputError

READ_LIMIT = "AITIA_READ_GIB"
MIB, GIB = 2**20, 2**30
MOST_JSON_BYTES, MOST_MANIFEST_BYTES, MOST_YAML_BYTES = 256 * MIB, 16 * MIB, 4 * MIB
MOST_WINDOWS = 1_000_000  # of one training
_DEFAULT_GIB = 4.0
_MOST_VALUES = 5_000_000  # of a JSON file
_MOST_NODES = 100_000  # values of a YAML file, and lines and commas
_MOST_DEPTH = 100


def read_limit() -> int:
    """Return how many bytes one table may have in memory.

    Raises:
        InputError: the environment variable is no positive number.
    """
    setting = os.environ.get(READ_LIMIT, str(_DEFAULT_GIB))
    try:
        limit = float(setting)
    except ValueError:
        limit = math.nan
    if not 0 < limit < math.inf:
        raise InputError(f"{READ_LIMIT}={setting[:40]} was given, expected a positive number of GiB such as 8")
    return int(limit * GIB)


def read_text(path: Path, most: int) -> str:
    """Read a local file of UTF-8 text.

    Raises:
        ValueError: it is longer than `most` bytes, or is not UTF-8.
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"it has more than {most / MIB:g} MiB, the most that is read")
    return data.decode("utf-8")


def parse_json(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: it is not JSON, or has too many values or levels.
    """
    if (values := sum(map(text.count, ",[{"))) > _MOST_VALUES:
        raise ValueError(f"it has up to {values:,} values, the most that are read are {_MOST_VALUES:,}")
    try:
        parsed = json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    level = [parsed]
    for _ in range(_MOST_DEPTH):
        level = [
            item
            for value in level
            if isinstance(value, dict | list)
            for item in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return parsed
    raise ValueError(_TOO_DEEP)


_TOO_MANY = f"it has more than {_MOST_NODES:,} values or lines"
_TOO_DEEP = f"it is nested more than {_MOST_DEPTH} levels deep"


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"it has {name}, which is not JSON")


class BoundedLoader(yaml.SafeLoader):
    """PyYAML's safe loader for a file from anywhere: few levels, and no aliases that stand for more than is there."""

    _nodes = _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read one node, and count it."""
        self._nodes += 1
        self._depth += 1
        if self._nodes > _MOST_NODES:
            raise yaml.YAMLError(_TOO_MANY)
        if self._depth > _MOST_DEPTH:
            raise yaml.YAMLError(_TOO_DEEP)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def get_single_node(self) -> yaml.Node | None:
        """Read the document; what aliases stand for is counted before anything is built of it."""
        root = super().get_single_node()
        waiting: list[tuple[Any, int]] = [(root, 0)]
        size = 0
        while waiting:
            node, depth = waiting.pop()
            if isinstance(node, yaml.ScalarNode):
                size += len(node.value)
            elif isinstance(node, yaml.CollectionNode):
                if depth == _MOST_DEPTH:
                    raise yaml.YAMLError(_TOO_DEEP)
                for item in node.value:
                    waiting += [(child, depth + 1) for child in (item if isinstance(item, tuple) else (item,))]
            size += 1
            if size > MOST_YAML_BYTES:
                raise yaml.YAMLError(f"its aliases stand for more than {MOST_YAML_BYTES / MIB:g} MiB")
        return root


_OF_CONSTRUCTORS = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)  # `!!int x`, 2020-13-45


def read_yaml(path: Path, loader: type[BoundedLoader] = BoundedLoader) -> Any:
    """Read a local YAML file of plain values.

    Raises:
        ValueError: it is not YAML, or too large; the message is one line.
        OSError: it cannot be read.
    """
    text = read_text(path, MOST_YAML_BYTES)
    if text.count("\n") + text.count(",") > _MOST_NODES:
        raise ValueError(_TOO_MANY)  # at once: PyYAML takes a minute for them
    try:
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, *_OF_CONSTRUCTORS) as error:
        raise ValueError(" ".join(str(error).split())) from error
