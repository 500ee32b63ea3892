"""How a command of the command line ended."""

from __future__ import annotations

from typing import NamedTuple


class Finished(NamedTuple):
    """Exit code and what was written to standard output and standard error."""

    code: int
    out: str
    err: str
