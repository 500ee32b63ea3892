"""Checksums of the tables that reports rest on, so that a page can say that one was changed by hand.

They stand in `run.json` and are written there before their table appears, by the stage that writes it. They show
mistakes and tampering with tables; whoever also rewrites `run.json` leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import RunFolderError
from .remote import is_inside, name_in
from .store import RunFolder, sha256_of

_KEPT = ("evaluations", "influence", "bank", "validation", "frames")


def is_checked(name: str) -> bool:
    """Return whether a file of a run, named relative to its folder, has a checksum: tables that reports read."""
    parts = name.split("/")
    if parts[0] == "frames":
        return parts[-1] == "index.json"  # pictures are named by theirs
    return parts[0] in _KEPT or parts[:2] in ([".parts", "reward_sums"], [".parts", "learning"])


def noting(folder: RunFolder, note: Callable[[str, str], None]) -> Callable[[Path, Path], None]:
    """Return what `store.on_write` takes: it notes name and checksum of each checked file of a run.

    Args:
        folder: the run.
        note: takes both, before the file has its place.
    """

    def written(path: Path, aside: Path) -> None:
        if is_inside(path, folder.root) and is_checked(name := name_in(path, folder.root)):
            note(name, sha256_of(aside))

    return written


class Checked(NamedTuple):
    """Result of a comparison with the checksums: files that differ, and files without a checksum."""

    changed: list[str]
    unrecorded: list[str]


def check(folder: RunFolder, recorded: Mapping[str, str], paths: Sequence[Path]) -> Checked:
    """Compare files with their checksums; those that are not there are left out."""
    result = Checked([], [])
    for path in paths:
        name = name_in(path, folder.root)
        try:
            if name in recorded and sha256_of(path) != recorded[name]:
                result.changed.append(name)
            elif name not in recorded and path.exists():
                result.unrecorded.append(name)
        except RunFolderError:
            continue
    return result
