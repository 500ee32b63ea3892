r"""What every table of a run folder holds: column names, types and units (docs/run-folder.md).

Sizes used throughout the package: `W` windows, `N` transitions of a window, `P` parameters, `K`
projected dimensions, `F` failures, `S` seeds, `G` groups, `B` bank members.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .errors import RunFolderError

SCHEMA_VERSION = 1
RANDOM_POLICY_SEED = -1
COMPONENT_PREFIX = "component_"
NO_CONTEXT = "all"

EPISODES = pa.schema(
    [
        ("seed", pa.int32()),  # RANDOM_POLICY_SEED: the random policy
        ("part", pa.string()),  # test | train
        ("episode", pa.int32()),
        ("repeat", pa.int32()),
        ("outcome", pa.string()),
        ("length", pa.int32()),
        ("reward", pa.float64()),  # return of the episode as paid
        ("intended_reward", pa.float64()),
        ("untampered_reward", pa.float64()),
        ("context", pa.string()),
    ]
)

GROUP_EFFECTS = pa.schema(
    [
        ("failure", pa.dictionary(pa.int32(), pa.string())),
        ("group", pa.dictionary(pa.int32(), pa.string())),
        ("seed", pa.int32()),
        ("lambda", pa.float64()),
        ("effect", pa.float64()),  # sum of (intended - paid) * tau; null without an intended reward
        ("effect_raw", pa.float64()),
        ("transitions", pa.int64()),
        ("reward_events", pa.int64()),
        ("estimator", pa.string()),
    ]
)

TOP_TRANSITIONS = pa.schema(
    [
        ("failure", pa.string()),
        ("seed", pa.int32()),
        ("window", pa.int32()),
        ("step", pa.int32()),
        ("env", pa.int32()),
        ("tau", pa.float64()),
        ("tau_raw", pa.float64()),
        ("s", pa.float64()),
        ("reward", pa.float64()),
        ("intended_reward", pa.float64()),
        ("context", pa.string()),
        ("action", pa.int64()),
        ("estimator", pa.string()),
    ]
)

MASKS = pa.schema(
    [
        ("member", pa.string()),
        ("seed", pa.int32()),
        ("order", pa.string()),  # none | all | attribution | random
        ("size", pa.int32()),  # number of corrected groups
        ("groups", pa.list_(pa.string())),
    ]
)

BANK_OUTCOMES = pa.schema(
    [
        ("member", pa.string()),
        ("part", pa.string()),
        ("episode", pa.int32()),
        ("repeat", pa.int32()),
        ("outcome", pa.string()),
    ]
)


class ArrayFormat(NamedTuple):
    """Shape and dtype of the arrays kept as fixed-size binary in one column."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def width(self) -> int:
        """Bytes of one array."""
        return int(np.prod(self.shape, dtype=np.int64)) * np.dtype(self.dtype).itemsize


def array_metadata(column: str, form: ArrayFormat) -> dict[str, str]:
    """Return the schema metadata that tells shape and dtype of a binary column."""
    return {f"{column}_shape": json.dumps(list(form.shape)), f"{column}_dtype": form.dtype}


def array_format(schema: pa.Schema, column: str) -> ArrayFormat:
    """Read shape and dtype of a binary column from schema metadata.

    Raises:
        RunFolderError: the metadata is missing.
    """
    metadata = metadata_of(schema)
    try:
        return ArrayFormat(tuple(json.loads(metadata[f"{column}_shape"])), metadata[f"{column}_dtype"])
    except KeyError as error:
        raise RunFolderError(
            f"the table has no {error} in its schema metadata, so column `{column}` cannot be decoded: "
            "it was not written by aitia, or was rewritten without its metadata"
        ) from error


def metadata_of(schema: pa.Schema) -> dict[str, str]:
    """Return a schema's metadata as text."""
    return {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}


def with_metadata(table: pa.Table, metadata: Mapping[str, str]) -> pa.Table:
    """Return the table with `metadata` added to its schema."""
    return table.replace_schema_metadata({**metadata_of(table.schema), **metadata})


def encode_arrays(values: NDArray[np.generic]) -> pa.Array:
    """Pack arrays [N, ...] as N fixed-size binaries (row-major bytes)."""
    rows = len(values)
    width = int(values[:1].nbytes) if rows else int(np.prod(values.shape[1:])) * values.itemsize
    data = np.ascontiguousarray(values)
    return pa.Array.from_buffers(pa.binary(width), rows, [None, pa.py_buffer(data.tobytes())])


def decode_arrays(column: pa.ChunkedArray | pa.Array, form: ArrayFormat) -> NDArray[np.generic]:
    """Unpack fixed-size binaries into an array [N, *shape] (the inverse of `encode_arrays`)."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts = []
    for chunk in chunks:
        data = chunk.buffers()[1]
        start = chunk.offset * form.width
        raw = memoryview(data)[start : start + len(chunk) * form.width] if data is not None else b""
        parts.append(np.frombuffer(raw, dtype=form.dtype).reshape(len(chunk), *form.shape))
    return np.concatenate(parts) if parts else np.empty((0, *form.shape), dtype=form.dtype)


def failure_id(seed: int, episode: int) -> str:
    """Return the stable id of a failure, `SEED-EPISODE`."""
    return f"{seed}-{episode}"
