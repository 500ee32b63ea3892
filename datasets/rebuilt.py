"""Folders that are written anew as a whole: in an empty folder beside the old one, which it then replaces."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from .errors import RunFolderError
from .remote import asking, remote, remove_folder


@contextmanager
def rebuilt(final: Path, keep: Sequence[str] = (), last: Sequence[str] = ()) -> Iterator[Path]:
    """Give an empty folder; when the block ends, it takes the place of `final`. On failure `final` stays as it was.

    On an object store the files are uploaded then, and those that are no more there removed.

    Args:
        final: the folder, which need not be there; no link.
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
            _upload(fresh, final, keep, last)
        return
    fresh = final.with_name(f".{final.name}.{os.getpid()}.new")
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        _clear_up(final, keep)
        remove_folder(fresh)
        fresh.mkdir()
    except OSError as error:
        raise RunFolderError(
            f"{final} cannot be written ({error.strerror or error}): expected a folder where you may write. Give "
            "--out FOLDER elsewhere"
        ) from error
    try:
        yield fresh
        if final.exists():
            final.replace(final.with_name(f".{final.name}.{os.getpid()}.old"))
        fresh.replace(final)
        _clear_up(final, keep)
    finally:
        remove_folder(fresh)


def foreign(folder: Path, own: Sequence[str]) -> str | None:
    """Return the first thing in a folder that is not among `own` (patterns of names); None where there is none."""
    names = sorted(path.name for path in folder.iterdir())
    return next((name for name in names if not any(fnmatchcase(name, pattern) for pattern in own)), None)


def _clear_up(final: Path, keep: Sequence[str]) -> None:
    """Take back what is to stay of folders that were replaced, and remove these; also those of killed processes."""
    for old in sorted(final.parent.glob(f".{final.name}.*.old")):
        for name in keep:
            if (old / name).exists() and not (final / name).exists():
                final.mkdir(exist_ok=True)
                (old / name).replace(final / name)
        remove_folder(old)
    for fresh in final.parent.glob(f".{final.name}.*.new"):
        if not _alive(fresh.name.split(".")[-2]):
            remove_folder(fresh)


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


def _upload(fresh: Path, final: Path, keep: Sequence[str], last: Sequence[str]) -> None:
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
        mine = {f"{there.path}/{name}" for name in names}
        kept = tuple(f"{there.path}/{name}/" for name in keep)
        gone = [path for path in before if path not in mine and not path.startswith(kept)]
        if gone:
            there.fs.rm(gone)
