"""Rows behind figures and tables, as text that neither a page nor a spreadsheet takes for instructions."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from ...datasets.plain import plain

Cell = str | int | float | None
_FORMULA = re.compile(r"[\s\x00-\x1f\u200b-\u200f\u2060\ufeff]*[=+\-@＝＋－＠]|[\t\r\n]")  # also in full width
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ISLAND = {ord(character): f"\\u{ord(character):04x}" for character in "<>&'\u2028\u2029"}


@dataclass(frozen=True)
class Rows:
    """A small table.

    Attributes:
        columns: their names.
        rows: one cell a column; None where there is no value.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def as_csv(self) -> str:
        """Return it as CSV; text that a spreadsheet would take for a formula gets an apostrophe before it.

        Source: OWASP, "CSV Injection".
        """
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow([_plain(name) for name in self.columns])
        writer.writerows([[_plain(cell) for cell in row] for row in self.rows])
        return buffer.getvalue()


def rows_of(columns: Sequence[str], values: Sequence[Sequence[Cell]]) -> Rows:
    """Return a table from lists."""
    return Rows(tuple(columns), tuple(tuple(row) for row in values))


def _plain(cell: Cell) -> Cell:
    if isinstance(cell, str) and _FORMULA.match(cell) and not _NUMBER.fullmatch(cell):
        return "'" + cell
    return cell


def island(value: Any) -> Markup:
    """Return JSON for a script element: no character in it can end the element, open a tag, end or reorder a line."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_ISLAND)
    return Markup(plain(text, backslash="\\\\"))


def printable(cell: Cell) -> Cell:
    """Return a cell without characters that a picture cannot hold (SVG has no control characters) or cannot show."""
    return plain(_NOT_IN_XML.sub("\ufffd", cell)) if isinstance(cell, str) else cell
