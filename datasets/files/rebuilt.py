"""Folders that are written anew as a whole: in an empty folder next to the old one, which it then replaces."""

from __future__ import annotations

import glob
import os
import socket
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from ..errors import RunFolderError
from .remote import asking, remote, remove_folder

_OF_SYSTEMS = (".DS_Store", "Thumbs.db", "desktop.ini")  # what file managers leave in any folder


@contextmanager
def rebuilt(final: Path, own: Sequence[str], keep: Sequence[str] = (), last: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty folder; when the block ends, it takes the place of `final`. On failure `final` stays as it was.

    On an object store the files are uploaded then, and those of `own` that are no more there removed.

    Args:
        final: the folder, which need not be there; no link.
        own: names (patterns) of what such a folder has; on an object store nothing else is removed.
        keep: names of what stays of the old one.
        last: names of the files that an object store gets last.

    Raises:
        RunFolderError: nothing can be written there.
    """
    if remote(final) is not None:
        with tempfile.TemporaryDirectory() as folder:
            fresh = Path(folder) / "fresh"
            fresh.mkdir()
            yield fresh
            _upload(fresh, final, own, keep, last)
        return
    mark = f".{final.name}.{_machine()}.{os.getpid()}.{uuid.uuid4().hex[:8]}"
    fresh, old = final.with_name(f"{mark}.new"), final.with_name(f"{mark}.old")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(final, keep)
        fresh.mkdir()
    except OSError as error:
        raise RunFolderError(
            f"{final} cannot be written ({error.strerror or error}): expected a folder where you may write. Give "
            "--out FOLDER elsewhere"
        ) from error
    try:
        yield fresh
        if final.exists():
            final.replace(old)
        fresh.replace(final)
        _take_back(old, final, keep)
    finally:
        remove_folder(fresh)


def foreign(folder: Path, own: Sequence[str]) -> str | None:
    """Return the first thing in a folder that is not among `own` (patterns of names); None where there is none.

    What file managers leave in any folder does not count.
    """
    names = sorted(path.name for path in folder.iterdir())
    return next((name for name in names if not _is_among(name, (*own, *_OF_SYSTEMS))), None)


def _is_among(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _machine() -> str:
    """Return what names this machine among those that may write to the same folder."""
    return uuid.uuid5(uuid.NAMESPACE_DNS, socket.gethostname()).hex[:8]


def _clear_up(final: Path, keep: Sequence[str]) -> None:
    """Remove what killed processes of this machine left; what is to stay of folders that they replaced is taken back.

    Whether those of other machines are still at work is not known: theirs stays.
    """
    for left in sorted(final.parent.glob(f".{glob.escape(final.name)}.{_machine()}.*.*.*")):
        number, _, kind = left.name.split(".")[-3:]
        if kind == "old" and not _alive(number):
            _take_back(left, final, keep)
        elif kind == "new" and not _alive(number):
            remove_folder(left)


def _take_back(old: Path, final: Path, keep: Sequence[str]) -> None:
    """Move what is to stay of a folder that was replaced into its successor, and remove it."""
    for name in keep:
        if (old / name).exists() and not (final / name).exists():
            final.mkdir(exist_ok=True)
            (old / name).replace(final / name)
    remove_folder(old)


def _alive(number: str) -> bool:
    """Return whether a process of this machine has a number; where that cannot be asked, it counts as alive."""
    if os.name != "posix":
        return True
    try:
        os.kill(int(number), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _upload(fresh: Path, final: Path, own: Sequence[str], keep: Sequence[str], last: Sequence[str]) -> None:
    there = remote(final)
    assert there is not None
    files = sorted(path for path in fresh.rglob("*") if path.is_file())
    files.sort(key=lambda path: path.relative_to(fresh).as_posix() in last)
    with asking(final):
        before = there.fs.find(there.path)
        names = [path.relative_to(fresh).as_posix() for path in files]
        split = sum(name not in last for name in names)
        for some in (slice(0, split), slice(split, None)):
            if files[some]:
                there.fs.put([str(path) for path in files[some]], [f"{there.path}/{name}" for name in names[some]])
        start = f"{there.path.rstrip('/')}/"
        earlier = [path.removeprefix(start) for path in before if path.startswith(start)]
        removed = [name for name in earlier if _is_among(top := name.split("/")[0], own) and top not in keep]
        gone = [start + name for name in removed if name not in names]
        if gone:
            there.fs.rm(gone)
