"""The choice of where pieces of work run: in this process, or on Dask, which is imported only then."""

from __future__ import annotations

from ...datasets.errors import InputError
from .pool import InProcess, Workers


def start_workers(workers: int | None = None, scheduler: str | None = None) -> Workers:
    """Choose where pieces run; processes start when the first piece needs them.

    Args:
        workers: processes of a local Dask cluster; 0: none, the pieces take turns in this process; None: one a core.
        scheduler: an existing Dask cluster, instead of a local one: its address, or the `.json` file that
            `dask scheduler --scheduler-file` wrote.

    Raises:
        InputError: a negative number.
    """
    if workers is not None and workers < 0:
        raise InputError(f"--workers {workers} was given, expected 0 (no processes but this one) or more")
    if workers == 0 and scheduler is None:
        return InProcess()
    from .cluster import DaskWorkers

    return DaskWorkers(workers, scheduler)
