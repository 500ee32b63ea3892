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
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from .errors import RunFolderError, listed
from .files.limits import MOST_MANIFEST_BYTES
from .files.store import RunFolder, read_json, write_json
from .schema import SCHEMA_VERSION

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
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


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
        task_folder: where the task file lies: modules next to it can be named by the task; None: the task was no file.
        task_file: its name there, for commands on the pages; None: it was no file, or an earlier version began the run.
        seconds: wall-clock seconds a stage, summed over the calls that did work.
        sources: SHA-256 of the source of every module that the task names or that these import, by module.
        fingerprints: of the training environment (`train`) and of each evaluation set
            (training/environments/fingerprint.py); null: it does not repeat itself.
        accepted: changes of code or versions that the user accepted while the run was made (`when`, `changes`).
        environments: results of the probes of the training environment (`training`) and of each evaluation set.
        estimator: `name` and `reason` of the estimator that verdicts rest on.
        attribution: digest of target, seeds and grouping that the task asks for: influence tables with another one are
            out of date.
        checksums: SHA-256 of the tables that reports rest on, by their name in the folder.
        versions, git_sha, schema_version, created: provenance.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    task: dict[str, Any]
    hashes: dict[str, str]
    seeds: list[int]
    task_folder: str | None = None
    task_file: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    sources: dict[str, str] | None = None  # None: an earlier version began the run
    fingerprints: dict[str, dict[str, Any] | None] = field(default_factory=dict)
    accepted: list[dict[str, Any]] = field(default_factory=list)
    environments: dict[str, dict[str, Any]] = field(default_factory=dict)
    estimator: dict[str, str] = field(default_factory=dict)
    attribution: str | None = None  # None: an earlier version made the run
    checksums: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: dict(installed_versions()))
    git_sha: str | None = field(default_factory=source_git_sha)
    schema_version: int = SCHEMA_VERSION
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def __post_init__(self) -> None:
        self._as_read: str | None = None  # digest of the file that this one was read from, or was written to

    @property
    def same_again(self) -> bool:
        """Whether a training of this run would be the same again: no code changed, environments repeat themselves."""
        return not self.accepted and bool(self.fingerprints) and None not in self.fingerprints.values()

    def write(self, folder: RunFolder) -> None:
        """Write `run.json`, if it is still what was read.

        Raises:
            RunFolderError: another command wrote it since.
        """
        path = folder.manifest_path
        if path.exists() and digest(read_json(path)) != self._as_read:
            raise RunFolderError(
                f"{path} was changed by another command while this one was at work; it is left as it is now. Finished "
                "pieces are kept: give the same command again"
            )
        values = asdict(self)
        write_json(path, values)
        self._as_read = digest(values)

    @staticmethod
    def read(folder: RunFolder) -> Manifest:
        """Read `run.json`.

        Raises:
            RunFolderError: the folder is not a run, or of a later schema version.
        """
        if not folder.manifest_path.exists():
            raise RunFolderError(
                f"{folder.root} is not a run folder: it has no run.json. Expected a folder made by "
                "`aitia train TASK.yaml --out RUN`"
            )
        values = read_json(folder.manifest_path, MOST_MANIFEST_BYTES)
        number = values.get("schema_version") if isinstance(values, dict) else None
        if not isinstance(number, int) or not 1 <= number <= SCHEMA_VERSION:
            raise RunFolderError(
                f"{folder.manifest_path} has schema version {number}, this aitia reads 1 to {SCHEMA_VERSION}: "
                "train again, or use the aitia version that wrote it"
            )
        try:
            manifest = _checked().validate_json(json.dumps(values))  # strict: types as JSON has them
        except ValidationError as error:
            problems = listed([f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()], "; ")
            raise RunFolderError(f"{folder.manifest_path} was not written by aitia ({problems})") from error
        manifest._as_read = digest(values)
        return manifest


@lru_cache(maxsize=1)
def _checked() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
