"""Whose code a run folder may run: commands that compute run what its task names, so a run made elsewhere is asked for.

A run folder is data that somebody may have sent. What its task names (environment, hooks, target, ...) and the folder
that these are imported from stand in its `run.json`. Runs that this user began, and runs that were trusted with
`--trust`, are remembered in the user's state folder by a digest of what would be run.
"""

from __future__ import annotations

import json
import logging
import os
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ...datasets.errors import InputError, RunFolderError
from ...datasets.files.remote import remote
from ...datasets.files.store import RunFolder
from ...datasets.manifest import Manifest, digest
from .sources import code_in, hashes_of

log = logging.getLogger("aitia")
_PRIVATE_FOLDER, _PRIVATE_FILE = 0o700, 0o600


def state_folder() -> Path:
    """Return the user's state folder: `$XDG_STATE_HOME/aitia`, else `~/.local/state/aitia`."""
    given = os.environ.get("XDG_STATE_HOME", "")
    return (Path(given) if Path(given).is_absolute() else Path.home() / ".local" / "state") / "aitia"


def remember(folder: RunFolder, manifest: Manifest, how: str = "begun here") -> None:
    """Remember that this user named what a run executes; a state folder that cannot be written is only said."""
    try:
        place = _private(state_folder())
        about = {"run": str(folder.root), "task": manifest.task.get("name"), "how": how}
        about["when"] = datetime.now(UTC).isoformat(timespec="seconds")
        path = place / _key(folder, manifest, trusted=how != "begun here")
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _PRIVATE_FILE)
        with os.fdopen(file, "w", encoding="utf-8") as opened:
            opened.write(json.dumps(about, indent=2) + "\n")
    except (OSError, RuntimeError) as error:
        log.warning("this run could not be remembered as yours (%s): commands on it will ask for --trust", error)


def require_trusted(folder: RunFolder, manifest: Manifest, trust: bool) -> None:
    """Check that what a run executes was named, or trusted, by this user; with `trust` it is from now on.

    Raises:
        InputError: it was not.
    """
    if _is_remembered(folder, manifest):
        return
    if trust:
        remember(folder, manifest, "trusted")
        return
    named = ", ".join(f"`{name}`" for name in code_in(manifest.task)) or "nothing of its own"
    whose = "was not made by you on this machine (or its task, or the code it names, was changed since)"
    also = ""
    if manifest.sources is None:
        whose = "was made by an earlier version of aitia, which does not know whose it is"
        also = " Either also needs --accept-changes, for the code may have changed since"
    raise InputError(
        f"{folder.root} {whose}, and this command runs the code that its run.json names: {named}, with modules "
        f"from {manifest.task_folder or 'the import path'}. Look at them, and give --trust (in Python trust=True) to "
        f"run them (it is remembered), or your own task file: `aitia run TASK.yaml --out RUN`.{also} Reading it "
        "(`aitia report`, `aitia compare`) runs nothing of it"
    )


def require_no_links_outside(folder: RunFolder) -> None:
    """Check that nothing in a local run folder leads out of it, or is no plain file.

    Raises:
        RunFolderError: names what does.
    """
    if remote(folder.root) is not None or not folder.root.is_dir():
        return
    root = folder.root.resolve()
    for where, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(where, name)
            try:
                kind = path.lstat().st_mode
            except FileNotFoundError:  # a command that is at work in the run has removed it since
                continue
            if stat.S_ISLNK(kind) and not path.resolve().is_relative_to(root):
                raise RunFolderError(
                    f"{path} is a link that leads out of the run folder, to {path.resolve()}; expected all of a run "
                    "inside its folder. Remove the link, or move what it leads to there"
                )
            if not (stat.S_ISLNK(kind) or stat.S_ISDIR(kind) or stat.S_ISREG(kind)):
                raise RunFolderError(f"{path} is neither a file nor a folder; expected only these in a run: remove it")


def _is_remembered(folder: RunFolder, manifest: Manifest) -> bool:
    try:
        place = state_folder()
        _require_private(place)
        return any((place / _key(folder, manifest, trusted)).is_file() for trusted in (False, True))
    except (OSError, RuntimeError):
        return False


def _key(folder: RunFolder, manifest: Manifest, trusted: bool) -> str:
    """Return the digest of what a run executes: the whole task and where its modules come from.

    The modules themselves count too, except of a run begun here whose modules are not in its own folder: those are
    the user's own code, which may change.
    """
    found: dict[str, Any] = {"task": manifest.task, "task_folder": manifest.task_folder, "trusted": trusted}
    place = manifest.task_folder
    sent = place is not None and remote(folder.root) is None and Path(place).resolve().is_relative_to(folder.root)
    if trusted or sent:
        found["modules"] = hashes_of(manifest.task, place)
    return digest(found)


def _private(folder: Path) -> Path:
    """Return a folder that is the user's alone, made if it is not there."""
    folder.mkdir(mode=_PRIVATE_FOLDER, parents=True, exist_ok=True)
    _require_private(folder)
    return folder


def _require_private(folder: Path) -> None:
    """Check that nobody else could have written into a folder.

    Raises:
        OSError: somebody could.
    """
    about = folder.stat()
    if os.name == "posix" and (about.st_uid != os.getuid() or about.st_mode & 0o022):
        raise PermissionError(f"{folder} belongs to another user, or others can write there")
