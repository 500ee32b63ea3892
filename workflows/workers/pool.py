"""Where pieces of work run: what stages use of it, and the processes, or the one process, behind it.

A stage cuts its work into pieces, calls `map`, and reads the files that the pieces wrote. Pieces take turns in this
process here; `cluster` runs them on Dask workers.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self, TypeVar

from tqdm import tqdm

from ...datasets.errors import InputError
from ...datasets.files.store import RunFolder
from ...datasets.manifest import Manifest
from ...datasets.plain import one_line
from ...training.retraining.timing import as_a_worker
from ..runs.changes import remember_modules, require_current_modules
from .processes import silence_pygame

Piece = TypeVar("Piece")
Result = TypeVar("Result")
_LOG_SECONDS = 10.0

log = logging.getLogger("aitia")


class Workers(Protocol):
    """What the stages use; one thread computes each piece, so that results are the same bits wherever it runs."""

    @property
    def count(self) -> int:
        """How many pieces run at once."""

    def begin_importing(self) -> None:
        """Let processes that will be needed import what they need; the caller goes on."""

    def map(self, function: Callable[[Piece], Result], pieces: Sequence[Piece], label: str) -> list[Result]:
        """Run `function` on every piece and return the results in the order of the pieces.

        The first failure ends the call and is raised here; files of finished pieces stay on disk.

        Args:
            function: takes one piece; both can be pickled.
            pieces: independent of each other.
            label: the stage and the task, for progress.
        """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class InProcess:
    """Pieces take turns in this process: for a debugger, a notebook, and runs so small that processes cost more."""

    count = 1

    def begin_importing(self) -> None:
        """Nothing: this process has imported what it needs."""

    def map(self, function: Callable[[Piece], Result], pieces: Sequence[Piece], label: str) -> list[Result]:
        """Run `function` on every piece in turn; what it raises is raised here."""
        if not pieces:
            return []
        silence_pygame()
        progress, results = Progress(label, len(pieces)), []
        try:
            with as_a_worker():
                for piece in pieces:
                    results.append(run_piece(function, piece))
                    progress.advance()
        finally:
            progress.close()
        return results

    def __enter__(self) -> InProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing was started."""


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
