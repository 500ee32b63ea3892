"""Run folders on object stores, `s3://bucket/run` and `gs://bucket/run`, next to local paths.

An address becomes a `UPath` (universal_pathlib, on fsspec), which has pathlib's methods and is passed on as a `Path`;
a local path stays what it is. What pathlib has no word for, or would ask a store once a file, is here. Credentials and
endpoints are fsspec's and the store's own configuration (docs/run-folder.md); none is kept in a run.
"""

from __future__ import annotations

import importlib.util
import os
import posixpath
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import quote

from ..errors import AitiaError, InputError
from ..plain import without_secrets

if TYPE_CHECKING:
    from upath import UPath


class _Store(NamedTuple):
    package: str
    extra: str


# Only stores where a written object appears whole: on others a reader could see half a file.
_STORES = {
    "s3": _Store("s3fs", "s3"),
    "s3a": _Store("s3fs", "s3"),
    "gs": _Store("gcsfs", "gs"),
    "gcs": _Store("gcsfs", "gs"),
}
_SIGNED = re.compile(r"[?&#][^/]*=")  # the query of a signed address
_ADDRESS = re.compile(r"([A-Za-z][\w+.:-]+):(/+)(.*)")  # two letters at least: C:/ is a drive


def as_path(where: str | Path) -> Path:
    """Return a local path, or the `UPath` of an address on an object store; asks no store.

    Raises:
        InputError: an address that is not `file:///...` or of a known object store, or whose package is missing.
    """
    address = _ADDRESS.fullmatch(str(where))
    if address is None:
        return Path(where)
    protocol, slashes, rest = address.groups()
    if protocol == "file" and len(slashes) != 2:
        return Path("/" + rest)
    bucket = rest.partition("/")[0]
    if protocol in _STORES and ("@" in bucket or ":" in bucket or _SIGNED.search(rest)):
        raise InputError(
            f"an address of the kind `{protocol}://` was given with credentials in it, expected "
            f"{protocol}://BUCKET/RUN without credentials (docs/run-folder.md says where they belong)"
        )
    if protocol in _STORES and slashes == "/":
        raise InputError(
            f"{where} was given, a pathlib path, which shortens addresses: give `{protocol}://{rest}` as text"
        )
    if slashes == "/":
        return Path(where)
    if protocol not in _STORES or not bucket:
        raise InputError(
            f"an address of the kind `{protocol}://` was given, expected a local path, file:///FOLDER, s3://BUCKET/RUN "
            "or gs://BUCKET/RUN, without credentials (docs/run-folder.md says where they belong)"
        )
    store = _STORES[protocol]
    if importlib.util.find_spec(store.package) is None:
        raise InputError(f'{where} was given, but {store.package} is not installed: pip install "aitia[{store.extra}]"')
    from upath import UPath

    return cast(Path, UPath(where, use_listings_cache=False))  # other processes write there too


def local_path(where: str | Path, what: str) -> Path:
    """Return a path that must be local.

    Raises:
        InputError: it is an address; the message names it as `what`.
    """
    path = as_path(where)
    if remote(path) is not None:
        raise InputError(f"{path} was given as {what}, expected a local path: only run folders may be on object stores")
    return path


def remote(path: Path) -> UPath | None:
    """Return the path as what it is where it is on an object store; None: it is local."""
    return None if isinstance(path, Path) else cast("UPath", path)


def require_reachable(path: Path) -> None:
    """Ask the store of a path for it, whether it exists or not.

    Raises:
        InputError: no answer, or a refusal.
    """
    with asking(path):
        path.exists()


@contextmanager
def asking(path: Path) -> Iterator[None]:
    """Turn what a store's library raises in the block into one message.

    Raises:
        InputError: the store refuses, or does not answer.
    """
    try:
        yield
    except AitiaError:
        raise
    except Exception as error:  # botocore's and aiohttp's share no base class
        raise InputError(
            f"{path} was given, but its store does not do what it is asked ({without_secrets(str(error))}): check the "
            "bucket, its endpoint "
            "and the credentials (docs/run-folder.md). Finished pieces are kept"
        ) from error


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is a folder or lies in it, by their names; one on a store and a local one never do."""
    ends = remote(path), remote(folder)
    if ends[0] is None or ends[1] is None:
        return ends == (None, None) and path.is_relative_to(folder)
    same = type(ends[0].fs) is type(ends[1].fs)  # s3:// and s3a:// are one store
    return same and PurePosixPath(ends[0].path).is_relative_to(PurePosixPath(ends[1].path))


def name_in(path: Path, folder: Path) -> str:
    """Return a path relative to a folder that it lies in, with slashes."""
    return "/".join(path.parts[len(folder.parts) :])


def exist(paths: Sequence[Path]) -> list[bool]:
    """Return for each path whether there is such a file; on a store each folder is listed once."""
    folders: dict[str, set[str]] = {}
    results = []
    for path in paths:
        if (there := remote(path)) is None:
            results.append(path.exists())
            continue
        parent = there.parent
        if str(parent) not in folders:
            folders[str(parent)] = set(there.fs.find(parent.path, maxdepth=1))
        results.append(there.path in folders[str(parent)])
    return results


def stamp(path: Path) -> str:
    """Return what changes when a file does: its time of change, or the store's key of its content."""
    there = remote(path)
    return str(path.stat().st_mtime_ns) if there is None else str(there.fs.ukey(there.path))


def remove_folder(path: Path) -> None:
    """Remove a folder and all in it, if it is there."""
    if (there := remote(path)) is None:
        shutil.rmtree(path, ignore_errors=True)
    elif files := there.fs.find(there.path):
        there.fs.rm(files)


def relative_link(path: Path, folder: Path) -> str:
    """Return the link from a page in `folder` to a file, quoted: relative, or its address if it is in another store."""
    ends = remote(path), remote(folder)
    if ends == (None, None):
        return quote(Path(os.path.relpath(path, folder)).as_posix(), safe="/")
    if ends[0] is not None and ends[1] is not None and ends[0].parts[0] == ends[1].parts[0]:
        return quote(posixpath.relpath(ends[0].path, ends[1].path), safe="/")
    return path.as_uri() if ends[0] is None else quote(str(path), safe="/:")
