"""A folder that is written anew replaces the old one as a whole, or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from aitia.datasets.files.rebuilt import _machine, foreign, rebuilt


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
    with rebuilt(old, ["*"], keep=["kept"]) as fresh:
        assert fresh.parent == old.parent and not any(fresh.iterdir())
        (fresh / "new.html").write_text("new")
        assert names(old) == ["kept/a.html", "old.html"], "readers see the old one until all is written"
    assert names(old) == ["kept/a.html", "new.html"] and list(old.parent.iterdir()) == [old]


def test_a_failure_leaves_the_old_one(old: Path) -> None:
    with pytest.raises(KeyError), rebuilt(old, ["*"], keep=["kept"]) as fresh:
        (fresh / "new.html").write_text("new")
        raise KeyError
    assert names(old) == ["kept/a.html", "old.html"] and list(old.parent.iterdir()) == [old]


def left_by(old: Path, process: int, machine: str = _machine()) -> Path:
    """Return how a process names what it has in the making, but for the ending."""
    return old.with_name(f".{old.name}.{machine}.{process}.0a1b2c3d")


def test_what_a_killed_process_left_is_taken_up(old: Path) -> None:
    dead = 2**22 + 1  # no process has such a number
    old.rename(f"{left_by(old, dead)}.old")
    Path(f"{left_by(old, dead)}.new").mkdir()
    others = [f"{left_by(old, os.getppid())}.new", f"{left_by(old, os.getpid())}.new", f"{left_by(old, dead, 'x')}.new"]
    for other in others:
        Path(other).mkdir()
    with rebuilt(old, ["*"], keep=["kept"]) as fresh:
        (fresh / "new.html").write_text("new")
    assert names(old) == ["kept/a.html", "new.html"]
    assert {*old.parent.iterdir()} == {old, *map(Path, others)}, "others, and other machines, may be writing there"


@pytest.mark.parametrize("name", ["pages[1]", "pa*es", "pages?"])
def test_what_is_kept_survives_under_any_name(old: Path, name: str) -> None:
    mine = old.rename(old.with_name(name))
    with rebuilt(mine, ["*"], keep=["kept"]) as fresh:
        (fresh / "new.html").write_text("new")
    assert names(mine) == ["kept/a.html", "new.html"] and list(mine.parent.iterdir()) == [mine]


def test_two_at_once_do_not_remove_each_other(old: Path) -> None:
    with rebuilt(old, ["*"]) as first:
        (first / "first.html").write_text("first")
        with rebuilt(old, ["*"]) as second:
            (second / "second.html").write_text("second")
        assert first != second and names(old) == ["second.html"]
    assert names(old) == ["first.html"]


def test_what_file_managers_leave_is_nothing_foreign(old: Path) -> None:
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (old / name).touch()
    assert foreign(old, ["kept", "*.html"]) is None


def test_a_foreign_file_is_found(old: Path) -> None:
    assert foreign(old, ["kept", "*.html"]) is None
    assert foreign(old, ["kept"]) == "old.html"
