"""`run.json`: what was run, with what, and how long each stage took."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .errors import RunFolderError
from .schema import SCHEMA_VERSION
from .store import RunFolder, read_json, write_json

_PACKAGES = (
    "aitia",
    "torch",
    "stable-baselines3",
    "sb3-contrib",
    "gymnasium",
    "numpy",
    "pyarrow",
    "dask",
    "traker",
    "safetensors",
)


def digest(value: object) -> str:
    """Return the SHA-256 of a JSON-able value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@lru_cache(maxsize=1)
def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


@lru_cache(maxsize=1)
def source_git_sha() -> str | None:
    """Return the git commit of aitia's own source, `+` appended if it has changes; None outside git."""
    source = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(source), *arguments],
                capture_output=True,
                text=True,
                check=False,
                timeout=10,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "pyproject.toml") is None:
        return None
    sha, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return None if sha is None else sha + ("+" if changes else "")


@dataclass
class Manifest:
    """Contents of `run.json`.

    Attributes:
        task: the task with every default filled in.
        hashes: `task`: SHA-256 of the resolved task; `training`: of the part that training depends on.
        seeds: seeds of the ensemble.
        task_folder: where the task file lies: modules beside it can be named by the task.
        task_file: its name there, for commands on the pages; None: an earlier version did not keep it.
        seconds: wall-clock seconds a stage, summed over the calls that did work.
        versions, git_sha, schema_version, created: provenance.
    """

    task: dict[str, Any]
    hashes: dict[str, str]
    seeds: list[int]
    task_folder: str | None = None
    task_file: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: dict(installed_versions()))
    git_sha: str | None = field(default_factory=source_git_sha)
    schema_version: int = SCHEMA_VERSION
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def write(self, folder: RunFolder) -> None:
        """Write `run.json`."""
        write_json(folder.manifest_path, asdict(self))

    @staticmethod
    def read(folder: RunFolder) -> Manifest:
        """Read `run.json`.

        Raises:
            RunFolderError: the folder is not a run, or of another schema version.
        """
        if not folder.manifest_path.exists():
            raise RunFolderError(
                f"{folder.root} is not a run folder: it has no run.json. Expected a folder made by "
                "`aitia train TASK.yaml --out RUN`"
            )
        values = read_json(folder.manifest_path)
        found = values.get("schema_version") if isinstance(values, dict) else None
        if found != SCHEMA_VERSION:
            raise RunFolderError(
                f"{folder.manifest_path} has schema version {found}, this aitia reads {SCHEMA_VERSION}: "
                "train again, or use the aitia version that wrote it"
            )
        try:
            return Manifest(**values)
        except TypeError as error:
            raise RunFolderError(f"{folder.manifest_path} was not written by aitia ({error})") from error
