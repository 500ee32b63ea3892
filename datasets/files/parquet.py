"""Reading Parquet that somebody sent: what a table takes in memory is known before it is decoded.

A footer may say anything, and run lengths and dictionaries make a few bytes stand for gigabytes. So the headers of the
pages are read, which the decoder itself goes by: a page has as many values, and as many bytes, as its header states.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ..words import counted
from .limits import GIB, READ_LIMIT, read_limit

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}
_LEVEL = 2  # bytes of a value's definition level, and of its repetition level where it is in a list
_OFFSET, _VIEW = 8, 16  # bytes of where a list or a text begins; of a text kept as a view
_PYTHON_VALUE = 100  # bytes of a value as a Python object, and of its place in a row
_DELTA_BYTE_ARRAY = 7
_ENCODING = {5: 2, 7: 2, 8: 4}  # field that holds the encoding: of a data page, a dictionary, a data page of version 2
_STOP, _TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _STRUCT = 0, 1, 2, 3, 7, 8, 12
_INTEGERS = (4, 5, 6)


class TooLargeError(ValueError):
    """The table takes more memory than `read_limit`."""


class _Bounds(NamedTuple):
    """Bytes of a column in memory.

    Attributes:
        known: at least.
        texts: at most, further, if every value is as long as its whole dictionary.
    """

    known: int
    texts: int


def read_parquet(path: Path, columns: Sequence[str] | None, most_rows: int | None = None) -> pa.Table:
    """Read a local Parquet file, whole or some of its columns.

    Args:
        path: the file.
        columns: those that are read; None: all.
        most_rows: that it can have; None: any number.

    Raises:
        TooLargeError: it takes more memory than `read_limit`, or has more rows.
        pa.ArrowInvalid, OSError, ValueError: it is damaged.
    """
    limit, file = read_limit(), pq.ParquetFile(path, memory_map=False)
    rows = file.metadata.num_rows  # no more are decoded, whatever the pages hold
    if most_rows is not None and rows > most_rows:
        raise TooLargeError(f"has {counted(rows, 'row')}, expected at most {most_rows:,}")
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        bounds = _bounds(file.metadata, file.schema_arrow, data, columns)
    known = sum(bound.known for bound in bounds.values())
    _require(known, limit)
    names = list(columns) if columns is not None else None
    if known + sum(bound.texts for bound in bounds.values()) <= limit:
        return file.read(columns=names)
    texts = [name for name, bound in bounds.items() if bound.texts]
    table = pq.ParquetFile(path, memory_map=False, read_dictionary=texts).read(columns=names)
    _require(known + sum(_text_bytes(chunk) for column in table.columns for chunk in column.chunks), limit)
    plain = file.schema_arrow
    return table.cast(pa.schema([plain.field(name) for name in table.column_names], plain.metadata))


def _require(size: int, limit: int) -> None:
    if size > limit:
        raise TooLargeError(
            f"takes {size / GIB:.1f} GiB of memory, at most {limit / GIB:g} GiB are read: if you trust who made it and "
            f"have the memory, set {READ_LIMIT}={size // GIB + 1}"
        )


def _bounds(metadata: Any, arrow: pa.Schema, data: mmap.mmap, columns: Sequence[str] | None) -> dict[str, _Bounds]:
    """Return the bounds of each leaf column that is read: as wide as it is stored, or as it is in memory."""
    bounds: dict[str, _Bounds] = {}
    leaves = [leaf for field in arrow for leaf in _leaves(field.type)]
    if len(leaves) != metadata.num_columns:
        raise ValueError(f"{len(leaves)} columns are described, {metadata.num_columns} are stored")
    for leaf, (kind, times) in enumerate(leaves):
        described = metadata.schema.column(leaf)
        name = described.path
        if columns is not None and not any(name == c or name.startswith(f"{c}.") for c in columns):
            continue
        width = described.length or _WIDTHS.get(described.physical_type)
        nested = described.max_repetition_level
        taken = _LEVEL * (2 if nested else 1) + times * max(width or 0, _width(kind)) + _OFFSET * nested
        known = texts = 0
        for group in range(metadata.num_row_groups):
            chunk = metadata.row_group(group).column(leaf)
            start, dictionary, values = chunk.data_page_offset, 0, 0
            if chunk.has_dictionary_page and 0 < chunk.dictionary_page_offset < start:
                start = chunk.dictionary_page_offset
            stored = chunk.total_compressed_size if chunk.num_values else 0  # without values no page is read
            for page in _pages(data, start, stored):
                if page.is_dictionary:
                    dictionary += page.size
                values += 0 if page.is_dictionary else page.values
                needed = 0 if page.is_dictionary else page.values * taken
                known += max(page.size, needed) if width else page.size + needed
            texts += 0 if width else values * dictionary
        bounds[name] = _Bounds(known, texts)
    return bounds


def _leaves(kind: pa.DataType, times: int = 1) -> list[tuple[pa.DataType, int]]:
    """Return the types of a column's leaves, in the order in which Parquet stores them.

    With each the values that one stored value may stand for: a list of fixed size has them all where it is null.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return _leaves(kind.storage_type, times)
    if pa.types.is_map(kind):
        return [*_leaves(kind.key_type, times), *_leaves(kind.item_type, times)]
    if pa.types.is_struct(kind):
        return [leaf for field in kind for leaf in _leaves(field.type, times)]
    if pa.types.is_fixed_size_list(kind):
        return _leaves(kind.value_type, times * max(kind.list_size, 1))
    return _leaves(kind.value_type, times) if pa.types.is_nested(kind) else [(kind, times)]


def _width(kind: pa.DataType) -> int:
    """Return the bytes of a value of a leaf in memory, of a text without its letters."""
    if pa.types.is_dictionary(kind):
        return _width(kind.index_type)  # what it points to is counted as texts
    try:
        return (int(kind.bit_width) + 7) // 8
    except ValueError:  # texts
        if kind in (pa.string_view(), pa.binary_view()):
            return _VIEW
        return _OFFSET if kind in (pa.large_string(), pa.large_binary()) else _OFFSET // 2


class _Page(NamedTuple):
    """What a page's header states: bytes without compression, number of values, whether they are a dictionary."""

    size: int
    values: int
    is_dictionary: bool


def _pages(data: mmap.mmap, at: int, size: int) -> Iterator[_Page]:
    """Yield the pages of a column chunk."""
    end = at + size
    if not 0 <= at <= end <= len(data):
        raise ValueError("a column lies outside the file")
    while at < end:
        header, at = _struct(data, at)
        plain, stored = header.get(2, -1), header.get(3, -1)
        about = {key: about for key in _ENCODING if isinstance(about := header.get(key), dict)}
        values = max((fields.get(1, 0) for fields in about.values()), default=0)
        if not all(isinstance(number, int) and number >= 0 for number in (plain, stored, values)):
            raise ValueError("a page has no size")
        if any(fields.get(_ENCODING[key]) == _DELTA_BYTE_ARRAY for key, fields in about.items()):
            raise ValueError("a page repeats the beginnings of texts (DELTA_BYTE_ARRAY), which aitia does not write")
        yield _Page(plain, values, header.get(1) == 2)
        at += stored


def _struct(data: mmap.mmap, at: int, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Read a struct of Thrift's compact protocol, and where it ends: integers and structs, by the number of the field.

    Source: Apache Thrift, "Thrift Compact protocol encoding"; the header of a page is in parquet.thrift.
    """
    fields: dict[int, Any] = {}
    field = 0
    while (head := data[at]) != _STOP:
        at, kind = at + 1, head & 15
        if head >> 4:
            field += head >> 4
        else:
            field, at = _integer(data, at)
        if kind in _INTEGERS:
            fields[field], at = _integer(data, at)
        elif kind == _STRUCT and depth < 3:
            fields[field], at = _struct(data, at, depth + 1)
        elif kind == _BINARY:
            length, at = _varint(data, at)
            at += length
        elif kind in (_TRUE, _FALSE, _BYTE, _DOUBLE):
            at += {_BYTE: 1, _DOUBLE: 8}.get(kind, 0)
        else:
            raise ValueError("a page has a header that is none of Parquet's")
    return fields, at + 1


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while shift < 70:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
    raise ValueError("a page has a header that is none of Parquet's")


def _integer(data: mmap.mmap, at: int) -> tuple[int, int]:
    value, at = _varint(data, at)
    return (value >> 1) ^ -(value & 1), at


def _text_bytes(array: pa.Array) -> int:
    """Return what the texts of a column take when each is written out."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        lengths = pc.binary_length(array.dictionary).cast(pa.int64())
        return int(pc.sum(lengths.take(array.indices)).as_py() or 0)
    if pa.types.is_map(kind):
        return _text_bytes(array.keys) + _text_bytes(array.items)
    if pa.types.is_nested(kind):
        parts = array.flatten()
        return sum(map(_text_bytes, parts)) if isinstance(parts, list) else _text_bytes(parts)
    return 0


def require_python_values(table: pa.Table) -> None:
    """Check what a table takes when all of it is made Python values: about ten times as much.

    Raises:
        TooLargeError: they take more memory than `read_limit`.
    """
    values = sum(_values(chunk) for column in table.columns for chunk in column.chunks)
    _require(table.nbytes + values * _PYTHON_VALUE, read_limit())


def _values(array: pa.Array) -> int:
    """Return the number of values of a column, with those of its lists and structs."""
    if pa.types.is_map(array.type):
        return len(array) + _values(array.keys) + _values(array.items)
    if pa.types.is_nested(array.type):
        parts = array.flatten()
        return len(array) + (sum(map(_values, parts)) if isinstance(parts, list) else _values(parts))
    return len(array)
