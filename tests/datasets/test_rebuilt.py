"""A folder that is written anew replaces the old one as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aitia.datasets.rebuilt import foreign, rebuilt


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A folder with something to keep."""
    (tmp_path / "pages/kept").mkdir(parents=True)
    (tmp_path / "pages/old.html").write_text("old")
    (tmp_path / "pages/kept/a.html").write_text("kept")
    return tmp_path / "pages"


def test_only_what_is_kept_survives(old: Path) -> None:
    with rebuilt(old, keep=["kept"]) as fresh:
        assert fresh.parent == old.parent and not any(fresh.iterdir())
        (fresh / "new.html").write_text("new")
        assert names(old) == ["kept/a.html", "old.html"], "readers see the old one until all is written"
    assert names(old) == ["kept/a.html", "new.html"] and list(old.parent.iterdir()) == [old]


def test_a_failure_leaves_the_old_one(old: Path) -> None:
    with pytest.raises(KeyError), rebuilt(old, keep=["kept"]) as fresh:
        (fresh / "new.html").write_text("new")
        raise KeyError
    assert names(old) == ["kept/a.html", "old.html"] and list(old.parent.iterdir()) == [old]


def test_what_a_killed_process_left_is_taken_up(old: Path) -> None:
    dead = 2**22 + 1  # no process has such a number
    old.rename(old.with_name(f".pages.{dead}.old"))
    old.with_name(f".pages.{dead}.new").mkdir()
    alive = old.with_name(f".pages.{os.getppid()}.new")
    alive.mkdir()
    with rebuilt(old, keep=["kept"]) as fresh:
        (fresh / "new.html").write_text("new")
    assert names(old) == ["kept/a.html", "new.html"]
    assert sorted(old.parent.iterdir()) == sorted([old, alive]), "another process is writing there"


def test_a_foreign_file_is_found(old: Path) -> None:
    assert foreign(old, ["kept", "*.html"]) is None
    assert foreign(old, ["kept"]) == "old.html"
