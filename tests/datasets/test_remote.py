"""Addresses of run folders, and files of a store that appear whole or not at all (fsspec's in-memory store)."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import cast

import pyarrow as pa
import pytest
import torch
from upath import UPath

from aitia.datasets.errors import InputError, RunFolderError
from aitia.datasets.files import remote
from aitia.datasets.files.remote import as_path, exist, local_path, relative_link, remove_folder, stamp
from aitia.datasets.files.store import (
    RunFolder,
    publish_folder,
    read_json,
    read_table,
    read_table_schema,
    read_tensor_metadata,
    read_tensors,
    write_json,
    write_table,
    write_tensors,
    written_aside,
)


@pytest.fixture
def store() -> Path:
    """An empty folder of a store that only this process sees."""
    folder = UPath("memory://bucket/run")
    if folder.exists():
        folder.fs.rm(folder.path, recursive=True)
    return cast(Path, folder)


def test_local_paths_stay_what_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert as_path("runs/mine") == Path("runs/mine") and as_path(tmp_path) == tmp_path
    assert as_path("file:///runs/my run") == as_path(Path("file:///runs/my run")) == Path("/runs/my run")
    assert as_path("C:/runs") == Path("C:/runs"), "a drive is no protocol"
    assert as_path("a:b/c") == Path("a:b/c") and as_path("ab:/c") == Path("ab:/c"), "a colon is no address"
    assert RunFolder.at("runs").root == tmp_path / "runs"


def test_addresses_keep_their_slashes_and_their_options() -> None:
    path = as_path("s3://bucket/runs/mine")
    assert str(path.resolve() / "run.json") == "s3://bucket/runs/mine/run.json" and path.name == "mine"
    assert as_path(path) == path and hash(as_path(path)) == hash(path)
    mine = as_path(cast(Path, UPath("s3://bucket/run", endpoint_url="http://127.0.0.1:1")))
    assert cast(UPath, mine).storage_options == {"endpoint_url": "http://127.0.0.1:1", "use_listings_cache": False}


@pytest.mark.parametrize(
    "given", ["https://host/run", "simplecache::s3://bucket/run", "memory://run", "s3://", "ftp://host/x"]
)
def test_other_addresses_are_refused(given: str) -> None:
    with pytest.raises(InputError, match="expected a local path, file:///FOLDER, s3://BUCKET/RUN or gs://BUCKET/RUN"):
        as_path(given)


def test_credentials_in_an_address_are_refused_and_not_repeated() -> None:
    with pytest.raises(InputError, match="without credentials") as caught:
        as_path("s3://mykey:mysecret@bucket/run")
    assert "mysecret" not in str(caught.value)


def test_an_address_that_pathlib_has_shortened_is_said() -> None:
    with pytest.raises(InputError, match="give `s3://bucket/run` as text"):
        as_path(Path("s3://bucket/run"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for address, hint in (("s3://b/run", r's3fs.*"aitia\[s3\]"'), ("gs://b/run", r'gcsfs.*"aitia\[gs\]"')):
        with pytest.raises(InputError, match=hint):
            as_path(address)


def test_what_must_be_local_says_so(tmp_path: Path) -> None:
    assert local_path(tmp_path, "the task file") == tmp_path
    with pytest.raises(InputError, match=r"s3://bucket/task\.yaml was given as the task file, expected a local path"):
        local_path("s3://bucket/task.yaml", "the task file")


def test_tables_tensors_and_json_come_back(store: Path) -> None:
    table = pa.table({"a": [1, 2], "b": ["x", "y"]})
    write_table(store / "t.parquet", table)
    write_tensors(store / "t.safetensors", {"w": torch.arange(3.0)}, {"windows": "2"})
    write_json(store / "t.json", {"a": [1, None]})
    assert read_table(store / "t.parquet").equals(table)
    assert read_table(store / "t.parquet", ["b"]).column_names == ["b"]
    assert read_table_schema(store / "t.parquet").names == ["a", "b"]
    assert read_tensors(store / "t.safetensors")["w"].tolist() == [0.0, 1.0, 2.0]
    assert read_tensor_metadata(store / "t.safetensors") == {"windows": "2"}
    assert read_json(store / "t.json") == {"a": [1, None]}
    with pytest.raises(RunFolderError, match=r"memory://.*none.parquet is missing: `aitia train` writes it"):
        read_table(store / "none.parquet")
    cast(UPath, store / "t.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(RunFolderError, match=r"t\.parquet cannot be read"):
        read_table(store / "t.parquet")


def test_an_interrupted_write_leaves_the_old_file(store: Path) -> None:
    write_json(store / "run.json", 1)
    with pytest.raises(KeyboardInterrupt), written_aside(store / "run.json") as aside:
        aside.write_text("half")
        raise KeyboardInterrupt
    assert read_json(store / "run.json") == 1 and not aside.exists()
    assert [path.name for path in store.iterdir()] == ["run.json"]


def test_a_published_folder_replaces_the_old_one_and_its_mark_comes_last(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("final.safetensors", "window=00000.safetensors", "window=00001.safetensors"):
        (tmp_path / name).write_text(name)
    final = store / "checkpoints" / "seed=0"
    write_json(final / "window=00007.safetensors", "old")
    there = remote.remote(final)
    assert there is not None
    put, uploads = there.fs.put, list[list[str]]()

    def fails_second(sources: list[str], targets: list[str]) -> None:
        uploads.append(targets)
        if len(uploads) == 2:
            raise ConnectionError("gone")
        put(sources, targets)

    monkeypatch.setattr(type(there.fs), "put", lambda self, *arguments: fails_second(*arguments))
    with pytest.raises(InputError, match="does not do what it is asked \\(gone\\)"):
        publish_folder(tmp_path, final)
    assert not RunFolder(store).final_path(0).exists(), "half a folder is marked as whole"
    assert sorted(path.name for path in final.iterdir()) == ["window=00000.safetensors", "window=00001.safetensors"]
    publish_folder(tmp_path, final)
    assert RunFolder(store).final_path(0).exists() and len(uploads) == 4


def test_what_pathlib_has_no_word_for(store: Path, tmp_path: Path) -> None:
    for folder in (store, tmp_path):
        paths = [folder / "a/1.json", folder / "a/2.json", folder / "b/1.json"]
        write_json(paths[0], 1)
        assert exist(paths) == [True, False, False]
        before = stamp(paths[0])
        assert stamp(paths[0]) == before
        write_json(paths[0], [1, 2])
        assert stamp(paths[0]) != before
        remove_folder(folder / "a")
        remove_folder(folder / "nothing")
        assert exist(paths) == [False, False, False]


def test_links_are_relative_within_a_store(tmp_path: Path) -> None:
    here, there = as_path("s3://bucket/a/reports/test"), as_path("s3://bucket/b/reports/test/compare/a")
    assert relative_link(here / "index.html", there) == "../../../../../a/reports/test/index.html"
    assert relative_link(tmp_path / "a/index.html", tmp_path / "b") == "../a/index.html"
    assert relative_link(here / "index.html", as_path("s3://other/b")) == "s3://bucket/a/reports/test/index.html"
    assert relative_link(here / "index.html", tmp_path) == "s3://bucket/a/reports/test/index.html"
    assert relative_link(tmp_path / "index.html", there) == (tmp_path / "index.html").as_uri()
