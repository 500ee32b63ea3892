"""The run folder: where every file is, and reading and writing that leaves files whole or absent.

Everything is written aside and renamed, so a reader never sees half a file and a killed process leaves
none behind under its final name. On an object store (remote.py) the finished file is one upload, and appears whole
too. Finished pieces of a stage wait in `.parts/` until the stage merges them.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.dataset import Dataset, dataset
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import DiskFullError, InputError, RunFolderError
from .limits import MOST_JSON_BYTES, MOST_WINDOWS, parse_json, read_text
from .parquet import TooLargeError, read_parquet, require_python_values
from .remote import as_path, asking, exist, remote, remove_folder, require_reachable

if TYPE_CHECKING:
    from upath import UPath

_ZSTD_LEVEL = 3
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NOT_ALLOWED = (errno.EACCES, errno.EPERM, errno.EROFS)
_LOOKED_FOR = 20_000  # windows whose files are looked for at once
FINAL = "final.safetensors"
_WRITTEN: ContextVar[Callable[[Path, Path], None] | None] = ContextVar("written", default=None)


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run (docs/run-folder.md). Nothing is created until something is written."""

    root: Path

    @classmethod
    def at(cls, where: str | Path | RunFolder) -> RunFolder:
        """Return the run folder at a path or an address, which is asked for.

        Raises:
            InputError: an address that cannot be one of a run folder, or whose store does not answer.
        """
        if isinstance(where, RunFolder):
            return where
        root = as_path(where).resolve()  # workers may have another working directory
        require_reachable(root)
        return cls(root)

    @property
    def manifest_path(self) -> Path:
        """`run.json`."""
        return self.root / "run.json"

    def transitions_path(self, seed: int, window: int) -> Path:
        """Transitions of one window."""
        return self.transitions_folder(seed) / f"window={window:05d}.parquet"

    def transitions_folder(self, seed: int) -> Path:
        """Folder of the transitions of one seed."""
        return self.root / "transitions" / f"seed={seed}"

    def checkpoint_path(self, seed: int, window: int) -> Path:
        """Parameters that collected one window."""
        return self.checkpoints_folder(seed) / f"window={window:05d}.safetensors"

    def final_path(self, seed: int) -> Path:
        """The evaluated policy of one seed; it appears last, so it marks a finished training."""
        return self.checkpoints_folder(seed) / FINAL

    def checkpoints_folder(self, seed: int) -> Path:
        """Folder of the checkpoints of one seed."""
        return self.root / "checkpoints" / f"seed={seed}"

    def replay_path(self, seed: int, window: int) -> Path:
        """Draws from the replay buffer in one window of an off-policy training."""
        return self.replay_folder(seed) / f"window={window:05d}.parquet"

    def replay_folder(self, seed: int) -> Path:
        """Folder of the replay draws of one seed."""
        return self.root / "replay" / f"seed={seed}"

    def evaluation_path(self, set_name: str, table: str) -> Path:
        """`episodes` or `steps` of an evaluation set."""
        return self.root / "evaluations" / set_name / f"{table}.parquet"

    def influence_path(self, set_name: str, table: str) -> Path:
        """`transitions` (top-k), `groups` (sums) or `null` (sums of permuted influence) of an evaluation set."""
        return self.root / "influence" / set_name / f"{table}.parquet"

    def bank_path(self, set_name: str, table: str) -> Path:
        """`masks`, `outcomes` or `learning` of an evaluation set's counterfactual bank."""
        return self.root / "bank" / set_name / f"{table}.parquet"

    def validation_path(self, set_name: str) -> Path:
        """Scores of a validation."""
        return self.root / "validation" / set_name / "validation.json"

    def reports_folder(self, set_name: str) -> Path:
        """Folder of the pages of an evaluation set."""
        return self.root / "reports" / set_name

    def frames_folder(self, set_name: str) -> Path:
        """Folder of the pictures of an evaluation set's failures."""
        return self.root / "frames" / set_name

    def parts_folder(self, *names: str) -> Path:
        """Folder of the finished pieces of a stage."""
        return self.root.joinpath(".parts", *names)

    def window_count(self, seed: int) -> int:
        """Return the number of windows a finished training recorded; 0 if it is not finished.

        Raises:
            RunFolderError: the file holds no such number.
        """
        path = self.final_path(seed)
        if not path.exists():
            return 0
        text = read_tensor_metadata(path).get("windows", "")
        if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) <= MOST_WINDOWS):
            raise _damaged(path, ValueError(f"windows are {text[:20]!r}, expected a number up to {MOST_WINDOWS:,}"))
        return int(text)

    def missing_files(self, seed: int) -> list[Path]:
        """Return files that a finished training of `seed` should have and has not: those of the first such windows."""
        if not self.final_path(seed).exists():
            return [self.final_path(seed)]
        windows = range(self.window_count(seed))
        for some in (windows[first : first + _LOOKED_FOR] for first in windows[::_LOOKED_FOR]):
            paths = [path(seed, w) for w in some for path in (self.transitions_path, self.checkpoint_path)]
            if missing := [path for path, there in zip(paths, exist(paths), strict=True) if not there]:
                return missing
        return []


@contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """Give a temporary path next to `path`; rename it to `path` on success, remove it on failure.

    For an object store the temporary file is local, and uploaded on success.

    Raises:
        DiskFullError: there is no space to write it.
        RunFolderError: this user may not write there.
    """
    if (there := remote(path)) is not None:
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / path.name
            with written_aside(whole) as aside:
                yield aside
            _tell(path, whole)
            with asking(path):
                there.fs.put_file(str(whole), there.path)
        return
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield aside
        _tell(path, aside)
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        if (code := _error_number(error)) in _NO_SPACE:
            raise DiskFullError(
                f"{path} cannot be written: {os.strerror(code).lower()}. Nothing of it is left and finished pieces are "
                "kept: make space (or raise the quota) there and run the same command again"
            ) from error
        if code in _NOT_ALLOWED:
            raise RunFolderError(
                f"{path} cannot be written: {os.strerror(code).lower()}. Expected a folder that this user may write to"
            ) from error
        raise
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def on_write(tell: Callable[[Path, Path], None]) -> Iterator[None]:
    """Within the block, call `tell` with path and finished contents of every file before this process puts it there."""
    token = _WRITTEN.set(tell)
    try:
        yield
    finally:
        _WRITTEN.reset(token)


def _tell(path: Path, whole: Path) -> None:
    if (tell := _WRITTEN.get()) is not None:
        tell(path, whole)


@contextmanager
def at_hand(path: Path) -> Iterator[Path]:
    """Give a local file with the contents of `path`: itself, or a copy for the time of the block.

    Raises:
        RunFolderError: the file is missing, is something else than a file, or may not be read.
    """
    if (there := remote(path)) is None:
        try:
            if not path.is_file():
                raise _missing(path) if not path.exists() else _damaged(path, ValueError("it is not a file"))
        except PermissionError as error:
            raise _damaged(path, error) from error
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        with asking(path):
            try:
                there.fs.get_file(there.path, str(copy))
            except FileNotFoundError as error:
                raise _missing(path) from error
        yield copy


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file.

    Raises:
        RunFolderError: it is missing.
    """
    with at_hand(path) as file, file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _error_number(error: Exception) -> int:
    """Return the system's number of an error, 0 if it has none; safetensors gives it only in the message."""
    match = re.search(r"os error (\d+)", str(error))
    return getattr(error, "errno", None) or (int(match[1]) if match else 0)


_PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, IndexError, MemoryError)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a table as Parquet (zstd), whole or not at all."""
    with written_aside(path) as aside:
        pq.write_table(table, aside, compression="zstd", compression_level=_ZSTD_LEVEL)


def read_table(path: Path, columns: Sequence[str] | None = None, most_rows: int | None = None) -> pa.Table:
    """Read a Parquet table.

    Args:
        path: the file.
        columns: those that are read; None: all.
        most_rows: that it can have; None: any number.

    Raises:
        RunFolderError: the file is missing or damaged, takes more memory than `limits.read_limit`, or has more rows.
    """
    with at_hand(path) as file:
        try:
            return read_parquet(file, columns or None, most_rows)
        except TooLargeError as error:
            raise RunFolderError(f"{path} {error}") from error
        except InputError:
            raise
        except _PARQUET_ERRORS as error:
            raise _damaged(path, error) from error


def require_rows(path: Path, table: pa.Table) -> pa.Table:
    """Return a table of which rows or columns are to become Python values, which take about ten times as much.

    Args:
        path: where it was read.
        table: it, or what of it becomes Python values.

    Raises:
        RunFolderError: they take more memory than `limits.read_limit`.
    """
    try:
        require_python_values(table)
    except TooLargeError as error:
        raise RunFolderError(f"{path}, row by row, {error}") from error
    return table


def read_table_schema(path: Path) -> pa.Schema:
    """Read the schema of a Parquet table, with its metadata.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    with at_hand(path) as file:
        try:
            return pq.read_schema(file)
        except _PARQUET_ERRORS as error:
            raise _damaged(path, error) from error


def open_tables(paths: Sequence[Path]) -> Dataset:
    """Return Parquet tables of one schema, one after the other, as a lazy dataset: only the first one's schema is read.

    Raises:
        RunFolderError: that file is missing or damaged.
    """
    schema, first = read_table_schema(paths[0]), remote(paths[0])
    if first is None:
        return dataset([str(path) for path in paths], schema, "parquet")
    return dataset([cast("UPath", path).path for path in paths], schema, "parquet", first.fs)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write named tensors as safetensors, whole or not at all (shared storage is copied)."""
    copies = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    with written_aside(path) as aside:
        save_file(copies, aside, metadata=dict(metadata))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read named tensors.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    with at_hand(path) as file:
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error


def read_tensor_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file.

    Raises:
        RunFolderError: the file is missing or damaged.
    """
    with at_hand(path) as file:
        try:
            with safe_open(file, framework="pt") as opened:
                return dict(opened.metadata() or {})
        except (SafetensorError, OSError) as error:
            raise _damaged(path, error) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be in another encoding


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes, whole or not at all."""
    with written_aside(path) as aside:
        aside.write_bytes(data)


def write_json(path: Path, value: object) -> None:
    """Write JSON (no NaN: values that do not exist are null), whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, most: int = MOST_JSON_BYTES) -> Any:
    """Read JSON of up to `most` bytes.

    Raises:
        RunFolderError: the file is missing or damaged, or has more bytes, values or levels than are read.
    """
    with at_hand(path) as file:
        try:
            return parse_json(read_text(file, most))
        except (ValueError, OSError) as error:
            raise _damaged(path, error) from error


def publish_folder(staged: Path, final: Path) -> None:
    """Move a finished folder to its final place, replacing what is there; to a store, the file that marks it last."""
    remove_folder(final)
    if (there := remote(final)) is None:
        final.parent.mkdir(parents=True, exist_ok=True)
        staged.replace(final)
        return
    files = sorted(staged.iterdir(), key=lambda path: path.name == FINAL)
    for some in (files[:-1], files[-1:]):
        with asking(final):
            there.fs.put([str(path) for path in some], [(there / path.name).path for path in some])


def begin_folder(path: Path) -> Path:
    """Mark that the files of a folder are in the making, and return where they are to be written.

    That is the folder itself. For an object store it is a local one, and `path` an object that says so: whoever
    removes it (as `remove_folder` does) has given up what is in the making.
    """
    if remote(path) is None:
        path.mkdir(parents=True)
        return path
    write_text(path, "")
    return Path(tempfile.mkdtemp(prefix="aitia-"))


def _missing(path: Path) -> RunFolderError:
    return RunFolderError(f"{path} is missing: {_writer(path)} writes it. Run that first (finished pieces are kept)")


def _writer(path: Path) -> str:
    """Return the command that writes a file of a run folder."""
    stages = {
        "transitions": "train", "checkpoints": "train", "evaluations": "evaluate", "influence": "attribute",
        "frames": "illustrate", "plays": "evaluate", "reward_sums": "attribute", "groups": "attribute",
        "learning": "evaluate",
        "bank": "verify", "policies": "verify", "reports": "report", "validation": "validate",
    }  # fmt: skip
    stage = next((stages[part] for part in reversed(path.parts) if part in stages), "train")
    return f"`aitia {stage}`"


def _damaged(path: Path, error: Exception) -> RunFolderError:
    if _error_number(error) in _NOT_ALLOWED:
        return RunFolderError(
            f"{path} may not be read by this user (permission denied); whether it is whole is not known. Expected "
            "read permission: ask its owner for it (chmod a+r), or copy the run"
        )
    return RunFolderError(
        f"{path} cannot be read ({error}): it is damaged or was not written by aitia. "
        f"Delete it and run {_writer(path)} again (finished pieces are kept)"
    )
