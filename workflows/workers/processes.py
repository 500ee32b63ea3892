"""Worker processes of this machine are forked from one that has imported all they need, on Linux.

It begins with the command and imports next to it; memory that importing takes is shared. Elsewhere each worker imports
by itself, as Dask does by default.
"""

from __future__ import annotations

import os
import sys
import warnings
from multiprocessing import forkserver

FORKED = sys.platform == "linux"
SAFE_PATH = "PYTHONSAFEPATH"
_IMPORTED = ["aitia.workflows.commands", "distributed.nanny"]
# One thread a worker. glibc keeps memory: by Dask's default it gives it back after every large array, and a quarter of
# attribution's time is spent on paging it in again. What the caller's environment says goes first.
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "MALLOC_TRIM_THRESHOLD_": str(2**30),
    "MALLOC_MMAP_THRESHOLD_": str(2**25),
}
# New processes begin with `python -c`, which would look in the working directory first, even for Python's own modules.
BEGINNING = {**ENVIRONMENT, SAFE_PATH: "1"}


def begin_importing() -> None:
    """Start the process that workers are forked from, unless there is one; it imports while the caller goes on."""
    if not FORKED:
        return
    forkserver.set_forkserver_preload(_IMPORTED)
    given = {name: value for name, value in BEGINNING.items() if name not in os.environ}
    os.environ.update(given)
    try:
        forkserver.ensure_running()
    finally:
        for name in given:
            del os.environ[name]


def silence_pygame() -> None:
    """Keep pygame, where an environment imports it, from printing its version and `pkg_resources`' deprecation."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated", module="pygame")
