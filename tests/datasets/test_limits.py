"""What a file takes in memory is known before it is decoded, whatever the file itself says of it."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aitia.datasets.errors import InputError, RunFolderError
from aitia.datasets.files.limits import parse_json, read_yaml
from aitia.datasets.files.store import read_json, read_table

MIXED = pa.table(
    {
        "number": pa.array([1.0, None, 3.0]),
        "flag": pa.array([True, None, False]),
        "text": pa.array(["up", None, "up"]),
        "known": pa.array(["a", "b", "a"]).dictionary_encode(),
        "bytes": pa.array([b"abc", b"def", b"abc"], pa.binary(3)),
        "groups": pa.array([["a", "b"], [], None], pa.list_(pa.string())),
        "values": pa.array([[1.0], None, [2.0, 3.0]], pa.list_(pa.float64())),
        "extensions": pa.array([[("a", 1.0)], [], None], pa.map_(pa.string(), pa.float64())),
    }
).replace_schema_metadata({"about": "this"})


@pytest.fixture
def one_mib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AITIA_READ_GIB", str(1 / 1024))


def refused(path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"takes .* GiB of memory.*AITIA_READ_GIB"):
        read_table(path)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("limit", ["4", "0.00000055"], ids=["at once", "texts counted"])
def test_a_table_is_read_as_it_was_written(
    version: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where texts could be too long, dictionaries are read first, and written out when their lengths are known."""
    monkeypatch.setenv("AITIA_READ_GIB", limit)
    path = tmp_path / "table.parquet"
    pq.write_table(MIXED, path, data_page_version=version, compression="zstd")
    found = read_table(path, ["text", "known"]) if limit != "4" else read_table(path)
    expected = MIXED.select(["text", "known"]) if limit != "4" else MIXED
    assert found.equals(expected) and found.schema.metadata == expected.schema.metadata


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(0, 300), width=st.integers(0, 300), distinct=st.integers(1, 5))
def test_texts_are_counted_exactly(
    tmp_path_factory: pytest.TempPathFactory, rows: int, width: int, distinct: int
) -> None:
    """A table that fits is read whichever way it is counted; one far above is refused."""
    path = tmp_path_factory.mktemp("texts") / "table.parquet"
    table = pa.table({"text": [str(row % distinct) * width for row in range(rows)]})
    pq.write_table(table, path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AITIA_READ_GIB", str((rows * (width + 16) + 2_000) / 2**30))
        assert read_table(path).equals(table)
        if rows * width > 10 * (distinct * width + rows * 8 + 1_000):
            patch.setenv("AITIA_READ_GIB", str(rows * width / 2 / 2**30))
            refused(path)


@pytest.mark.usefixtures("one_mib")
@pytest.mark.parametrize(
    "column",
    [
        pa.array(["x" * 1_000] * 5_000),
        pa.DictionaryArray.from_arrays(pa.array([0] * 5_000, pa.int32()), pa.array(["x" * 1_000])),
        pa.array([0.0] * 500_000),
        pa.array([b"\0" * 1_000] * 5_000, pa.binary(1_000)),
        pa.array([[0.0] * 500_000], pa.list_(pa.float64())),
        pa.array([["x" * 1_000] * 5_000], pa.list_(pa.string())),
        pa.array([Decimal(1)] * 50_000, pa.decimal256(2, 0)),
        pa.array([[]] * 100_000, pa.list_(pa.int8())),
        pa.nulls(100, pa.list_(pa.int8(), 20_000)),
        pa.array([[("x" * 1_000, 1.0)] * 5_000], pa.map_(pa.string(), pa.float64())),
    ],
    ids=[
        "texts",
        "dictionary",
        "numbers",
        "fixed width",
        "list",
        "list of texts",
        "decimals",
        "empty lists",
        "lists of fixed size",
        "map",
    ],
)
def test_columns_of_every_kind_have_a_bound(column: pa.Array, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"column": column}), path, compression="zstd")
    assert path.stat().st_size < 20_000
    refused(path)


@pytest.mark.usefixtures("one_mib")
def test_what_the_footer_says_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"column": ["x" * 2_000_000]}), path, compression="zstd")
    said = pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size
    data = path.read_bytes()
    lie = varint(8_193)
    assert len(lie) < len(varint(said)) == 4
    head, size = data[:-8], int.from_bytes(data[-8:-4], "little")
    pages, footer = head[:-size], head[-size:]
    path.write_bytes(pages + footer.replace(varint(said), lie[:-1] + bytes([lie[-1] | 128, 0])) + data[-8:])
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).total_uncompressed_size == 8_193
    refused(path)


def varint(number: int) -> bytes:
    number, found = number << 1, []
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


@pytest.mark.parametrize("at", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_a_damaged_table_is_said_to_be_damaged(at: float, tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(pa.table({"column": [float(n) for n in range(1_000)]}), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[4:40] = b"\xff" * 36  # the header of the first page
    path.write_bytes(data)
    with pytest.raises(RunFolderError, match="is damaged"):
        read_table(path)
    path.write_bytes(data[: int(len(data) * at)])
    with pytest.raises(RunFolderError, match="is damaged"):
        read_table(path)


def test_texts_that_repeat_beginnings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    table = pa.table({"column": ["x" * 1_000] * 1_000})
    pq.write_table(table, path, use_dictionary=False, column_encoding={"column": "DELTA_BYTE_ARRAY"})
    with pytest.raises(RunFolderError, match="DELTA_BYTE_ARRAY"):
        read_table(path)


@pytest.mark.parametrize("given_", ["many", "-1", "0", "nan", "inf"])
def test_a_limit_that_is_none_is_said(given_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.parquet"
    pq.write_table(MIXED, path)
    monkeypatch.setenv("AITIA_READ_GIB", given_)
    with pytest.raises(InputError, match="expected a positive number of GiB"):
        read_table(path)


def test_a_hundred_levels_are_read_and_no_more(tmp_path: Path) -> None:
    assert parse_json("[" * 99 + "]" * 99) is not None
    for levels in (101, 900, 100_000):
        with pytest.raises(ValueError, match="more than 100 levels"):
            parse_json("[" * levels + "]" * levels)


@pytest.mark.parametrize(
    "text",
    ["a: 2020-13-45", "a: " + "9" * 5_000, "a: !!int x", "a: !!bool x", "a: !!float x", "a: !!timestamp x",
     "a: !!binary x", "a: !!python/object:os.system x", "a: \0", "? [a]\n: b"],
)  # fmt: skip
def test_yaml_of_any_kind_is_read_or_refused_in_one_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_aliases_that_stand_for_little_are_read(tmp_path: Path) -> None:
    path = tmp_path / "task.yaml"
    path.write_text("a: &a {size: 7, levels: 24}\nb: *a\nc: {<<: *a, size: 9}\n", encoding="utf-8")
    assert read_yaml(path) == {
        "a": {"size": 7, "levels": 24},
        "b": {"size": 7, "levels": 24},
        "c": {"size": 9, "levels": 24},
    }


def test_a_folder_in_place_of_a_file_is_said(tmp_path: Path) -> None:
    (tmp_path / "run.json").mkdir()
    with pytest.raises(RunFolderError, match="not a file"):
        read_json(tmp_path / "run.json")
