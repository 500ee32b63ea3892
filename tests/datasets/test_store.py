"""The run folder: files whole or absent, arrays through Parquet unchanged, errors that name the file."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aitia.datasets.arrays import ArrayFormat, array_format, array_metadata, decode_arrays, encode_arrays
from aitia.datasets.errors import DiskFullError, RunFolderError, nearest
from aitia.datasets.files.store import (
    RunFolder,
    publish_folder,
    read_json,
    read_table,
    read_tensors,
    write_bytes,
    write_json,
    write_table,
    write_tensors,
    written_aside,
)
from aitia.datasets.manifest import Manifest, digest
from aitia.datasets.outcomes import Outcomes, PlayCounts
from aitia.datasets.schema import with_metadata


@given(
    st.integers(0, 5),
    st.sampled_from([(3,), (2, 4), (1, 2, 3)]),
    st.sampled_from(["float32", "uint8", "int64", "bool"]),
)
def test_arrays_come_back_as_they_went_in(rows: int, shape: tuple[int, ...], dtype: str) -> None:
    values = np.random.default_rng(0).integers(0, 200, (rows, *shape)).astype(dtype)
    column = encode_arrays(values)
    np.testing.assert_array_equal(decode_arrays(column, ArrayFormat(shape, dtype)), values)
    if rows > 2:
        np.testing.assert_array_equal(decode_arrays(column.slice(1, 2), ArrayFormat(shape, dtype)), values[1:3])
        chunked = pa.chunked_array([column.slice(0, 1), column.slice(1)])
        np.testing.assert_array_equal(decode_arrays(chunked, ArrayFormat(shape, dtype)), values)


def test_shape_and_dtype_survive_a_file(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
    form = ArrayFormat((2, 3), "float32")
    table = with_metadata(pa.table({"observation": encode_arrays(values)}), array_metadata("observation", form))
    write_table(tmp_path / "t.parquet", table)
    back = read_table(tmp_path / "t.parquet")
    assert array_format(back.schema, "observation") == form
    np.testing.assert_array_equal(decode_arrays(back["observation"], form), values)
    with pytest.raises(RunFolderError, match="other_shape"):
        array_format(back.schema, "other")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), written_aside(path) as aside:
        aside.write_text("half")
        raise RuntimeError("disk full")
    assert read_json(path) == {"a": 1}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"a": float("nan")})
    assert read_json(path) == {"a": 1}


WRITERS: dict[str, Callable[[Path], None]] = {
    "table": lambda path: write_table(path, pa.table({"a": np.random.default_rng(0).random(5000)})),
    "tensors": lambda path: write_tensors(path, {"a": torch.zeros(5000)}, {}),
    "json": lambda path: write_json(path, list(range(5000))),
    "bytes": lambda path: write_bytes(path, bytes(20_000)),
}


@pytest.mark.parametrize("name", WRITERS)
def test_without_space_a_write_names_the_file_and_leaves_the_old_one(tmp_path: Path, name: str) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, unlimited[1]))  # a quota that is used up
    try:
        with pytest.raises(DiskFullError, match=f"{path} cannot be written: file too large"):
            WRITERS[name](path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    WRITERS[name](path)
    assert path.stat().st_size > 10_000


def test_shared_tensors_are_written_and_come_back(tmp_path: Path) -> None:
    weight = torch.arange(6.0).reshape(2, 3)
    write_tensors(tmp_path / "c.safetensors", {"a": weight, "b": weight, "c": weight.T}, {"windows": "3"})
    back = read_tensors(tmp_path / "c.safetensors")
    assert torch.equal(back["a"], weight) and torch.equal(back["b"], weight) and torch.equal(back["c"], weight.T)


@pytest.mark.parametrize("name", ["t.parquet", "t.safetensors", "t.json"])
def test_missing_and_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    read = {"parquet": read_table, "safetensors": read_tensors, "json": read_json}[name.split(".")[1]]
    with pytest.raises(RunFolderError, match=f"{name} is missing"):
        read(tmp_path / name)
    (tmp_path / name).write_bytes(b"garbage{")
    with pytest.raises(RunFolderError, match=f"{name} cannot be read"):
        read(tmp_path / name)


def test_publishing_replaces_a_folder_whole(tmp_path: Path) -> None:
    for name, text in (("staged", "new"), ("final", "old")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{text}.txt").write_text(text)
    publish_folder(tmp_path / "staged", tmp_path / "final")
    assert [p.name for p in (tmp_path / "final").iterdir()] == ["new.txt"] and not (tmp_path / "staged").exists()


def test_the_manifest_says_when_it_is_not_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with pytest.raises(RunFolderError, match=r"no run\.json"):
        Manifest.read(folder)
    Manifest({"name": "x"}, {"task": "h"}, [0]).write(folder)
    assert Manifest.read(folder).task == {"name": "x"}
    write_json(folder.manifest_path, {"schema_version": 99})
    with pytest.raises(RunFolderError, match="schema version 99"):
        Manifest.read(folder)
    write_json(folder.manifest_path, {"schema_version": 1, "what": 2})
    with pytest.raises(RunFolderError, match="not written by aitia"):
        Manifest.read(folder)


def test_digests_do_not_depend_on_key_order() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_play_counts_know_competent_from_incompetent() -> None:
    declared = Outcomes(desired=["a"], misbehaved=["m", "n"])
    counts = PlayCounts.of(["a", "m", "n", "lost", None], declared)
    assert counts == (2, 1, 5)
    assert counts.misbehaviour == pytest.approx(2 / 3) and counts.competent == 0.6 and counts.desired_share == 0.2
    assert PlayCounts.of(["lost"], declared).misbehaviour is None


def test_the_nearest_name_is_suggested_or_nothing() -> None:
    assert nearest("sedes", ["seeds", "name"]) == " Did you mean `seeds`?"
    assert nearest("xyz", ["seeds"]) == ""
