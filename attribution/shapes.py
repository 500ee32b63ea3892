"""Checks of the records that hold arrays, made when they are made."""

from __future__ import annotations

from collections.abc import Sized

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
