"""A table without rows is a table: its columns have dictionaries and no data."""

from __future__ import annotations

from pathlib import Path

import pytest

from aitia.datasets import schema
from aitia.datasets.files.store import read_table, write_table


@pytest.mark.parametrize(
    "name", ["REFERENCES", "EPISODES", "GROUP_EFFECTS", "BANK_LEARNING", "MASKS", "WINDOW_EFFECTS"]
)
def test_a_table_without_rows_is_read_as_it_was_written(tmp_path: Path, name: str) -> None:
    empty = getattr(schema, name).empty_table()
    write_table(tmp_path / "empty.parquet", empty)
    assert read_table(tmp_path / "empty.parquet").equals(empty)
