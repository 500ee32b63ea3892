"""Pieces of work: running one where its code is current, and the progress of many."""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from tqdm import tqdm

from ...datasets.errors import InputError
from ...datasets.files.store import RunFolder
from ...datasets.manifest import Manifest
from ...datasets.plain import one_line
from ..runs.changes import remember_modules, require_current_modules

Piece = TypeVar("Piece")
Result = TypeVar("Result")
_LOG_SECONDS = 10.0

log = logging.getLogger("aitia")


def run_piece(function: Callable[[Piece], Result], piece: Piece) -> Result:
    """Run a piece in a process that has perhaps run pieces of other commands, and may be on another machine.

    Raises:
        InputError: it does not see the run folder, or has imported older versions of the run's modules.
    """
    root = getattr(first_of(piece), "root", None)
    if root is None:
        return function(piece)
    folder = RunFolder(root)
    if not folder.manifest_path.exists():
        raise InputError(
            f"a Dask worker on {socket.gethostname()} does not see the run folder {root}. Expected storage that every "
            "machine reaches under the same name: a shared folder, or an address such as s3://BUCKET/RUN"
        )
    manifest = Manifest.read(folder)
    require_current_modules(manifest)
    try:
        return function(piece)
    finally:  # a piece that fails has imported them, too
        remember_modules(manifest)


def first_of(piece: object) -> object:
    """Return a piece, or the first of those that are done together."""
    return piece[0] if isinstance(piece, Sequence) and piece else piece


class Progress:
    """A progress bar on a terminal, plain log lines elsewhere."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._done = label, total, 0
        self._began = self._logged = time.monotonic()
        self._bar = tqdm(total=total, desc=one_line(label), unit="piece", leave=True) if sys.stderr.isatty() else None
        if self._bar is None:
            log.info("%s: 0/%d", label, total)

    def advance(self) -> None:
        """Count one piece as done."""
        self._done += 1
        if self._bar is not None:
            self._bar.update()
            return
        now = time.monotonic()
        if now - self._logged >= _LOG_SECONDS or self._done == self._total:
            self._logged = now
            log.info("%s: %d/%d (%.0f s)", self._label, self._done, self._total, now - self._began)

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()
