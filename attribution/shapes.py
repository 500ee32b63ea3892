"""Checks of the records that hold arrays, made when they are made; and their distinct rows."""

from __future__ import annotations

from collections.abc import Sequence, Sized

import numpy as np
from numpy.typing import NDArray

from ..datasets.arrays import Array, row_bytes
from ..datasets.errors import InputError
from ..datasets.words import counted


def require_rows(record: str, rows: int, /, **arrays: Sized | None) -> None:
    """Check that arrays have as many rows as they should.

    Args:
        record: what holds them, for the message.
        rows: how many.
        arrays: by name; None is passed over.

    Raises:
        InputError: one has not; names both numbers.
    """
    for name, values in arrays.items():
        if values is not None and len(values) != rows:
            raise InputError(f"{record}: {name} has {counted(len(values), 'row')}, expected {rows}")


def distinct_rows(parts: Sequence[Array]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct rows of some arrays [N, ...] side by side.

    Returns:
        One of the rows that are the same, [U]; which of these each row is, [N]; how often each occurs, [U].
    """
    keys = np.concatenate([row_bytes(part) for part in parts], axis=1)
    whole = keys.view(f"V{keys.shape[1]}")[:, 0]  # compared as one value: 100 times faster than by column
    _, first, row, counts = np.unique(whole, return_index=True, return_inverse=True, return_counts=True)
    return first, row.reshape(-1), counts
