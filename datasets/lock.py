"""One command at a time on a run folder: a lock that names its holder, and that a killed holder cannot keep.

On a local (or shared) file system the operating system holds it and lets go when the process ends. An object store
knows no locks: an object says who is at work and until when, and its holder renews it; two commands that begin within
the same instant may both get it there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .errors import RunFolderError
from .remote import remote
from .store import RunFolder, read_json, write_json

_RENEWED = 30.0  # seconds between two renewals of a lock on an object store
_LAPSED = 4 * _RENEWED  # seconds after which one that was not renewed counts no more
log = logging.getLogger("aitia")


@contextlib.contextmanager
def locked(folder: RunFolder, command: str) -> Iterator[None]:
    """Hold the lock of a run folder, which is made if it is not there.

    Args:
        folder: the run folder.
        command: what is done with it, for others to read.

    Raises:
        RunFolderError: another process holds it; the message says which.
    """
    held = _held_remotely if remote(folder.root) is not None else held_locally
    path = folder.parts_folder() / "lock"
    with held(path, folder.root, command):
        yield


@contextlib.contextmanager
def held_locally(path: Path, what: Path, command: str) -> Iterator[None]:
    """Hold a lock file of the operating system's; beside it `NAME.json` says who does.

    Raises:
        RunFolderError: another process holds it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, about = FileLock(path, mode=0o600), path.with_name(f"{path.name}.json")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise _in_use(what, about) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, PermissionError):
            raise
        log.warning("%s: this file system has no locks (%s): give one command at a time", what, error)
        yield
        return
    try:
        write_json(about, _holder(command))
        yield
    finally:
        with contextlib.suppress(OSError):
            about.unlink(missing_ok=True)
        lock.release()


def is_held(path: Path) -> bool:
    """Return whether some process holds a local lock file."""
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False


@contextlib.contextmanager
def _held_remotely(path: Path, what: Path, command: str) -> Iterator[None]:
    about, ended = path.with_name(f"{path.name}.json"), threading.Event()
    mine = _holder(command)
    if about.exists() and time.time() - float(read_json(about).get("renewed", 0)) < _LAPSED:
        raise _in_use(what, about)

    def renew() -> None:
        while not ended.wait(_RENEWED):
            with contextlib.suppress(Exception):  # a store that does not answer now may do so the next time
                write_json(about, {**mine, "renewed": time.time()})

    write_json(about, {**mine, "renewed": time.time()})
    renewing = threading.Thread(target=renew, name="aitia-lock", daemon=True)
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with contextlib.suppress(Exception):
            about.unlink()


def _holder(command: str) -> dict[str, Any]:
    began = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command, "process": os.getpid(), "machine": socket.gethostname(), "began": began}


def _in_use(what: Path, about: Path) -> RunFolderError:
    try:
        holder = read_json(about)
        who = f"`{holder['command']}` (process {holder['process']} on {holder['machine']}, since {holder['began']})"
    except (RunFolderError, KeyError, TypeError):  # between taking the lock and saying so
        who = "another command"
    return RunFolderError(
        f"{what} is in use by {who}: two commands at once would remove each other's work. Wait for it, or end it; what "
        "it has finished is kept"
    )
