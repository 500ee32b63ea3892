"""One command at a time on a run folder: a lock that names its holder, and that a killed holder cannot keep.

On a local (or shared) file system the operating system holds it and lets go when the process ends. An object store
knows no locks: an object names who is at work and until when, and its holder renews it; two commands that begin within
the same instant may both get it there, and the clocks of the machines must agree within two minutes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout

from ..errors import RunFolderError
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
        RunFolderError: another process holds it; the message names it.
    """
    with held(folder.parts_folder() / "lock", folder.root, command):
        yield


@contextlib.contextmanager
def held(path: Path, what: Path, command: str) -> Iterator[None]:
    """Hold a lock; `NAME.json` next to its path names the holder.

    Args:
        path: of the lock file; on an object store there is only `NAME.json`.
        what: what is locked, for messages.
        command: what is done with it.

    Raises:
        RunFolderError: another process holds it.
    """
    with _held_remotely(path, what, command) if remote(path) is not None else _held_locally(path, what, command):
        yield


def is_held(path: Path) -> bool:
    """Return whether some process holds a lock."""
    if remote(path) is not None:
        return _renewed_lately(_about(path))
    if not path.exists():
        return False
    lock = _lock(path)
    try:
        lock.acquire(timeout=0)
    except (Timeout, PermissionError):  # somebody else's, whose lock cannot be tried: perhaps at work
        return True
    except (OSError, NotImplementedError):
        return False
    lock.release()
    return False


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _lock(path: Path) -> BaseFileLock:
    """Return the lock at a path, for whoever may write into its folder; no marker file where a system has no locks."""
    return FileLock(path, mode=path.parent.stat().st_mode & 0o666, fallback_to_soft=False)


@contextlib.contextmanager
def _held_locally(path: Path, what: Path, command: str) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, about = _lock(path), _about(path)
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


@contextlib.contextmanager
def _held_remotely(path: Path, what: Path, command: str) -> Iterator[None]:
    about, ended, mine = _about(path), threading.Event(), {**_holder(command), "token": uuid.uuid4().hex}
    if _renewed_lately(about):
        raise _in_use(what, about, lapses=True)

    def is_mine() -> bool:
        return bool(read_json(about).get("token") == mine["token"])

    def renew() -> None:
        while not ended.wait(_RENEWED):
            with contextlib.suppress(Exception):  # a store that does not answer now may do so the next time
                if is_mine():
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
            if is_mine():
                about.unlink()


def _renewed_lately(about: Path) -> bool:
    """Return whether the holder of a lock on an object store is at work, by the clocks of both machines."""
    if not about.exists():
        return False
    state = read_json(about)
    renewed = state.get("renewed") if isinstance(state, dict) else None
    return isinstance(renewed, int | float) and time.time() - renewed < _LAPSED


def _holder(command: str) -> dict[str, Any]:
    began = datetime.now(UTC).isoformat(timespec="seconds")
    return {"command": command, "process": os.getpid(), "machine": socket.gethostname(), "began": began}


def _in_use(what: Path, about: Path, lapses: bool = False) -> RunFolderError:
    try:
        holder = read_json(about)
        who = f"`{holder['command']}` (process {holder['process']} on {holder['machine']}, since {holder['began']})"
    except (RunFolderError, KeyError, TypeError):  # between taking the lock and saying so
        who = "another command"
    return RunFolderError(
        f"{what} is in use by {who}: two commands at once would remove each other's work. Wait for it, or end it; what "
        "it has finished is kept"
        + (f". If it has ended without saying so, its lock lapses after {_LAPSED:.0f} s" if lapses else "")
    )
