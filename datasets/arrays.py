"""Arrays kept as fixed-size binary in one column: shape and dtype live in the schema metadata.

A dictionary observation is a structured array: one field a key, so that a row is one value everywhere
(`pack`, `fields`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib.recfunctions import structured_to_unstructured
from numpy.typing import NDArray

from .errors import RunFolderError, shown
from .files.limits import parse_json
from .schema import metadata_of

Array = NDArray[Any]


class ArrayFormat(NamedTuple):
    """Shape and dtype of the arrays kept as fixed-size binary in one column."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def width(self) -> int:
        """Bytes of one array."""
        return int(np.prod(self.shape, dtype=np.int64)) * _dtype_of(self.dtype).itemsize


def array_metadata(column: str, form: ArrayFormat) -> dict[str, str]:
    """Return the schema metadata that hold shape and dtype of a binary column."""
    return {f"{column}_shape": json.dumps(list(form.shape)), f"{column}_dtype": form.dtype}


def array_format(schema: pa.Schema, column: str) -> ArrayFormat:
    """Read shape and dtype of a binary column from schema metadata.

    Raises:
        RunFolderError: the metadata is missing, or names another width than the column has.
    """
    metadata = metadata_of(schema)
    try:
        shape = tuple(int(size) for size in parse_json(metadata[f"{column}_shape"]))
        form = ArrayFormat(shape, metadata[f"{column}_dtype"])
        _dtype_of(form.dtype)  # is one
    except KeyError as error:
        raise RunFolderError(
            f"the table has no {error} in its schema metadata, so column `{column}` cannot be decoded: "
            "it was not written by aitia, or was rewritten without its metadata"
        ) from error
    except (TypeError, ValueError) as error:
        raise RunFolderError(
            f"the schema metadata of column `{column}` tell no shape ({shown(str(error))}); expected numbers: "
            "the table was not written by aitia, or is damaged"
        ) from error
    if column in schema.names:
        _require_width(schema.field(column).type, form, f"column `{column}`")
    return form


def _require_width(kind: pa.DataType, form: ArrayFormat, what: str) -> None:
    """Check that a binary column holds as many bytes a row as its arrays take."""
    width = kind.byte_width if pa.types.is_fixed_size_binary(kind) else None
    if width != form.width:
        raise RunFolderError(
            f"{what} holds {'values of type ' + str(kind) if width is None else f'{width} bytes a row'}, but its shape "
            f"{list(form.shape)} and dtype {form.dtype} take {form.width} bytes: it was written with other schema "
            "metadata than it has now"
        )


def array_format_of(values: Array) -> ArrayFormat:
    """Return the format of one row of an array [N, ...]."""
    return ArrayFormat(tuple(values.shape[1:]), _dtype_text(values.dtype))


def encode_arrays(values: Array) -> pa.Array:
    """Pack arrays [N, ...] as N fixed-size binaries (row-major bytes)."""
    rows = len(values)
    width = int(values[:1].nbytes) if rows else int(np.prod(values.shape[1:])) * values.itemsize
    data = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.binary(width), rows, [None, pa.py_buffer(data.tobytes())])


def decode_arrays(column: pa.ChunkedArray | pa.Array, form: ArrayFormat) -> Array:
    """Unpack fixed-size binaries into an array [N, *shape] (the inverse of `encode_arrays`).

    Raises:
        RunFolderError: the column has another width than the format.
    """
    _require_width(column.type, form, "a column of arrays")
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = []
    for chunk in chunks:
        data = chunk.buffers()[1]
        start = chunk.offset * form.width
        raw = memoryview(data)[start : start + len(chunk) * form.width] if data is not None else b""
        parts.append(np.frombuffer(raw, dtype=_dtype_of(form.dtype)).reshape(len(chunk), *form.shape))
    return np.concatenate(parts) if parts else np.empty((0, *form.shape), dtype=_dtype_of(form.dtype))


def pack(parts: Mapping[str, Array]) -> Array:
    """Return one structured array [N] of several arrays [N, ...], one field a key."""
    rows = len(next(iter(parts.values())))
    packed = np.empty(rows, dtype=[(name, values.dtype, values.shape[1:]) for name, values in parts.items()])
    for name, values in parts.items():
        packed[name] = values
    return packed


def fields(values: Array) -> dict[str, Array] | None:
    """Return the arrays that a structured array packs; None for a plain one."""
    names = values.dtype.names
    return None if names is None else {name: np.ascontiguousarray(values[name]) for name in names}


def flat_numbers(values: Array) -> NDArray[np.float64]:
    """Return an array [N, ...], plain or structured, as numbers [N, D]."""
    plain = values if values.dtype.names is None else structured_to_unstructured(values)
    return np.asarray(plain, dtype=np.float64).reshape(len(values), -1)


def whole_numbers(values: Array) -> Array:
    """Return integers, of any width, as int64, by which torch picks; other values as they are."""
    return values.astype(np.int64) if np.issubdtype(values.dtype, np.integer) else values


def row_bytes(values: Array) -> NDArray[np.uint8]:
    """Return the bytes of each row of an array [N, ...], uint8 [N, B]."""
    return np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)


def _dtype_text(dtype: np.dtype[Any]) -> str:
    if dtype.names is None:
        return str(dtype)
    parts = [(name, dtype[name]) for name in dtype.names]
    return json.dumps([[name, str(part.base), list(part.shape)] for name, part in parts])


def _dtype_of(text: str) -> np.dtype[Any]:
    if not text.startswith("["):
        return np.dtype(text)
    return np.dtype([(name, base, tuple(shape)) for name, base, shape in parse_json(text)])


def encode_actions(actions: Array) -> tuple[pa.Array, dict[str, str]]:
    """Return the column of actions and its metadata: plain integers [N], or arrays [N, K] as binary."""
    if actions.ndim == 1:
        return pa.array(actions.astype(np.int64)), {}
    return encode_arrays(actions), array_metadata("action", array_format_of(actions))


def decode_actions(table: pa.Table) -> Array:
    """Return the actions of a table, int64 [N] or [N, K] (the inverse of `encode_actions`)."""
    if pa.types.is_integer(table.schema.field("action").type):
        return np.array(table["action"].to_numpy(), dtype=np.int64)  # a copy: torch wants it writable
    return decode_arrays(table["action"], array_format(table.schema, "action"))
