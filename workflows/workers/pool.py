"""Where pieces of work run: what stages use of it, and the processes, or the one process, behind it.

A stage cuts its work into pieces, calls `map`, and reads the files that the pieces wrote. Pieces take turns in this
process here; `cluster` runs them on Dask workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Protocol, Self

from ...training.retraining.timing import as_a_worker
from .pieces import Piece, Progress, Result, run_piece
from .processes import silence_pygame


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
