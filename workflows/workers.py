"""Dask workers and progress: pieces of work are mapped over processes, results come as they finish."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from distributed import Client, LocalCluster, WorkerPlugin, as_completed
from tqdm import tqdm

from ..datasets.errors import InputError

Piece = TypeVar("Piece")
Result = TypeVar("Result")
_LOG_SECONDS = 10.0
_CONNECT_SECONDS = 10

log = logging.getLogger("aitia")


class _WorkerSetup(WorkerPlugin):
    """Prepares a worker process: import paths of the caller, one torch thread."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.paths = list(paths)

    def setup(self, worker: Any) -> None:
        """Run once in each worker process."""
        for path in reversed(self.paths):
            if path not in sys.path:
                sys.path.insert(0, path)
        import torch

        torch.set_num_threads(1)


class Workers:
    """A pool of Dask workers, started when the first piece needs it.

    Args:
        workers: processes of a local cluster; None: one a core.
        scheduler: address of an existing Dask cluster, instead of a local one.
    """

    def __init__(self, workers: int | None = None, scheduler: str | None = None) -> None:
        if workers is not None and workers < 1:
            raise InputError(f"--workers {workers} was given, expected at least 1")
        self._count = workers or os.cpu_count() or 1
        self._scheduler = scheduler
        self._cluster: LocalCluster | None = None
        self._client: Client | None = None

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._client is not None:
            self._client.close()
        if self._cluster is not None:
            self._cluster.close()

    def map(self, function: Callable[[Piece], Result], pieces: Sequence[Piece], label: str) -> list[Result]:
        """Run `function` on every piece and return the results in the order of the pieces.

        The first failure cancels what has not begun and is raised here; finished pieces stay on disk.
        """
        if not pieces:
            return []
        client = self._connect()
        futures = [client.submit(function, piece, pure=False, retries=0) for piece in pieces]
        index = {future.key: i for i, future in enumerate(futures)}
        results: list[Any] = [None] * len(pieces)
        progress = Progress(label, len(pieces))
        try:
            for future, result in as_completed(futures, loop=client.loop, with_results=True):
                results[index[future.key]] = result
                progress.advance()
        except BaseException:
            client.cancel(futures, force=True)
            raise
        finally:
            progress.close()
        return results

    def _connect(self) -> Client:
        if self._client is not None:
            return self._client
        if self._scheduler is not None:
            try:
                self._client = Client(self._scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"--scheduler {self._scheduler} was given, but no Dask scheduler answers there ({error}); "
                    "expected an address such as tcp://127.0.0.1:8786"
                ) from error
        else:
            self._cluster = LocalCluster(
                n_workers=self._count,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                silence_logs=logging.CRITICAL,
            )
            self._client = Client(self._cluster, set_as_default=False)
        self._client.register_plugin(_WorkerSetup([str(Path.cwd()), *[path for path in sys.path if path]]))
        return self._client


class Progress:
    """A progress bar on a terminal, plain log lines elsewhere."""

    def __init__(self, label: str, total: int) -> None:
        self._label, self._total, self._done = label, total, 0
        self._began = self._logged = time.monotonic()
        self._bar = tqdm(total=total, desc=label, unit="piece", leave=True) if sys.stderr.isatty() else None
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
