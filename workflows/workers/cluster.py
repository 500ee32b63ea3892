"""Dask workers: pieces of work are mapped over processes, results come as they finish.

A piece whose worker is killed is done again on another; pieces whose scheduler is lost are submitted again when it is
back. That is safe because pieces write their files whole or not at all, and skip what is there already.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import Any

from distributed import Client, Future, LocalCluster, as_completed
from distributed.client import ClosedClientError
from distributed.scheduler import KilledWorker

from ...datasets.errors import ClusterError
from ...datasets.words import counted
from .pool import Piece, Progress, Result, first_of, run_piece
from .processes import begin_importing
from .schedulers import NoSchedulerError, connect, prepare_workers, start_cluster

_CONNECT_SECONDS = 10
_RECONNECT_SECONDS = 60
_POLL_SECONDS = 0.02
_LOOK_SECONDS = 10.0
_CONTINUES = "Finished pieces are kept; the same command continues"

log = logging.getLogger("aitia")


class DaskWorkers:
    """A pool of Dask workers, started when the first piece needs it.

    Args:
        workers: processes of a local cluster; None: one a core.
        scheduler: an existing Dask cluster, instead of a local one: its address, or the `.json` file that
            `dask scheduler --scheduler-file` wrote.
    """

    def __init__(self, workers: int | None = None, scheduler: str | None = None) -> None:
        self._count = workers or os.cpu_count() or 1
        self._scheduler = scheduler
        self._cluster: LocalCluster | None = None
        self._client: Client | None = None
        self._owned = contextlib.ExitStack()

    @property
    def count(self) -> int:
        """Processes of a local cluster; of an existing scheduler as many as this machine has cores."""
        return self._count

    def begin_importing(self) -> None:
        """Let the process that local workers are forked from import what they need; the caller goes on."""
        if self._scheduler is None:
            begin_importing()

    def __enter__(self) -> DaskWorkers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()
        self._owned.close()

    def map(self, function: Callable[[Piece], Result], pieces: Sequence[Piece], label: str) -> list[Result]:
        """Run `function` on every piece and return the results in the order of the pieces.

        The first failure cancels what has not begun and is raised here; finished pieces stay on disk.

        Raises:
            ClusterError: a piece's workers were killed again and again, or the scheduler was lost and is not back
                within a minute.
            InputError: no scheduler answers, its workers have other versions, or do not see the run folder.
        """
        results: dict[int, Result] = {}
        if not pieces:
            return []
        progress = Progress(label, len(pieces))
        try:
            while not self._collect(function, pieces, results, progress, label):
                self._find_again(label)
        finally:
            progress.close()
        return [results[index] for index in range(len(pieces))]

    def _collect(
        self, function: Callable[[Piece], Result], pieces: Sequence[Piece], results: dict[int, Result],
        progress: Progress, label: str,
    ) -> bool:  # fmt: skip
        """Run the pieces that have no result; return whether all have one: not where the scheduler was lost."""
        client, waiting = self._connected(), [index for index in range(len(pieces)) if index not in results]
        run = function if self._scheduler is None else partial(run_piece, function)
        futures: dict[Future[Result], int] = {}
        try:
            with contextlib.suppress(ClosedClientError):  # the scheduler was lost: so are all futures
                futures |= {client.submit(run, pieces[index], pure=False): index for index in waiting}
            for future, result in self._ended(client, list(futures), label):
                if future.status == "error":
                    _raise(result[1].with_traceback(result[2]), pieces[futures[future]], label)
                if future.status != "finished":  # cancelled: Dask does so with all when it loses the scheduler
                    return False
                results[futures[future]] = result
                progress.advance()
        except BaseException:
            with contextlib.suppress(Exception):  # the scheduler may be what failed
                client.cancel(list(futures), force=True)
            raise
        return len(results) == len(pieces)

    def _ended(self, client: Client, futures: Sequence[Future[Any]], label: str) -> Iterator[tuple[Future[Any], Any]]:
        """Yield futures as they end, with their results, until all have or the connection is lost."""
        found = as_completed(futures, client.loop, with_results=True, raise_errors=False)
        looked = time.monotonic()
        while not found.is_empty():
            batch = found.next_batch(block=False)
            yield from batch
            if batch:
                continue
            if client.status != "running":
                return
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                self._look_after_workers(client, label)
            time.sleep(_POLL_SECONDS)

    def _look_after_workers(self, client: Client, label: str) -> None:
        if self._cluster is not None:
            self._cluster.scale(self._count)  # it gives up workers that take longer than 15 s to come back
        elif not client.scheduler_info()["workers"]:
            log.warning("%s: waiting, for the Dask scheduler %s has no workers", label, self._scheduler)

    def _find_again(self, label: str) -> None:
        """Connect again to a scheduler that was lost.

        Raises:
            ClusterError: it is not back in time.
        """
        where = self._scheduler or "of this machine"
        log.warning("%s: lost the Dask scheduler %s, waiting up to %d s for it", label, where, _RECONNECT_SECONDS)
        if self._client is not None:
            with contextlib.suppress(Exception):
                self._client.close(timeout=1)
        self._client = None
        try:
            self._connected(_RECONNECT_SECONDS)
        except NoSchedulerError as error:
            raise ClusterError(
                f"{label}: the Dask scheduler {where} was lost and is not back after {_RECONNECT_SECONDS} s. Start it "
                f"and its workers again. {_CONTINUES}"
            ) from error

    def _connected(self, seconds: float = _CONNECT_SECONDS) -> Client:
        if self._client is None:
            if self._scheduler is not None:
                self._client = connect(self._scheduler, seconds)
            else:
                self._cluster = self._cluster or self._owned.enter_context(start_cluster(self._count))
                self._client = Client(self._cluster, set_as_default=False)
            prepare_workers(self._client)
        return self._client


def _raise(error: BaseException, piece: object, label: str) -> None:
    """Raise what ended a piece.

    Raises:
        ClusterError: its workers were killed.
    """
    if not isinstance(error, KilledWorker):
        raise error
    raise ClusterError(
        f"{label}: the worker was killed {counted(error.allowed_failures + 1, 'time')} while it had "
        f"{_in_words(piece)} to do. "
        "Most likely it ran out of memory: give a smaller --workers (fewer pieces at once), or workers with more "
        f"memory. {_CONTINUES}"
    ) from error


def _in_words(piece: object) -> str:
    first = first_of(piece)
    path = getattr(first, "path", None)
    names = [f"{name} {getattr(first, name)}" for name in ("seed", "window") if hasattr(first, name)]
    words = path.stem if path is not None else ", ".join(names) or "a piece"
    others = len(piece) - 1 if isinstance(piece, Sequence) and not isinstance(piece, str) else 0
    return f"{words} and {others} more" if others else words
