"""Whose code runs: commands that compute ask for --trust where a run was made elsewhere, and remember it."""

from __future__ import annotations

import json
import logging
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Finished

from aitia.datasets.errors import InputError
from aitia.datasets.files.store import RunFolder
from aitia.datasets.manifest import Manifest
from aitia.workflows.runs.trust import remember, require_trusted, state_folder

Command = Callable[..., Finished]
ENV = """
from pathlib import Path

import gymnasium

import beside

Path(__file__).with_suffix(".ran").touch()


def make(**kwargs):
    return gymnasium.make("aitia/ArrowMaze-v0", **kwargs)
"""
COMPUTING = (
    ("evaluate",),
    ("attribute",),
    ("verify",),
    ("validate", "--masks", "4"),
    ("illustrate", "1"),
)


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of each test's own."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/aitia"


def written(run: Path, **changes: Any) -> tuple[RunFolder, Manifest]:
    """Return a run folder and the manifest that it has."""
    task = {"name": "t", "env": "their_env:make", "target": "auto"}
    manifest = Manifest(
        **{"task": task, "hashes": {}, "seeds": [0], "task_folder": str(run.parent / "code"), **changes}
    )
    folder = RunFolder(run)
    folder.manifest_path.unlink(missing_ok=True)
    manifest.write(folder)
    return folder, Manifest.read(folder)


def test_a_run_begun_here_needs_nothing_also_where_its_code_changes(tmp_path: Path, own_state: Path) -> None:
    folder, manifest = written(tmp_path / "run")
    (tmp_path / "code").mkdir()
    remember(folder, manifest)
    require_trusted(folder, manifest, trust=False)
    (tmp_path / "code/their_env.py").write_text(ENV)
    require_trusted(folder, manifest, trust=False)
    shutil.copytree(folder.root, tmp_path / "moved")
    require_trusted(RunFolder(tmp_path / "moved"), manifest, trust=False)
    assert stat.S_IMODE(own_state.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in own_state.iterdir()] == [0o600]


@pytest.mark.parametrize(
    "changes",
    [
        {"task": {"name": "t", "env": "their_env:make", "target": "their_env:target"}},
        {"task": {"name": "t", "env": "os:system", "target": "auto"}},
        {"task": {"name": "t", "env": "their_env:make", "target": "auto", "train_kwargs": {"command": "true"}}},
        {"task_folder": "/tmp"},
        {"task_folder": None},
    ],
)
def test_another_task_or_another_folder_of_its_modules_is_not_trusted(tmp_path: Path, changes: dict[str, Any]) -> None:
    folder, manifest = written(tmp_path / "run")
    remember(folder, manifest)
    require_trusted(*written(tmp_path / "run"), trust=True)
    other, changed = written(tmp_path / "run", **changes)
    with pytest.raises(InputError, match="--trust"):
        require_trusted(other, changed, trust=False)


@pytest.mark.parametrize("changed", ["their_env.py", "beside.py", "further/__init__.py"])
def test_what_was_trusted_is_asked_for_again_where_its_code_changes(tmp_path: Path, changed: str) -> None:
    folder, manifest = written(tmp_path / "run")
    code = tmp_path / "code"
    (code / "further").mkdir(parents=True)
    (code / "their_env.py").write_text(ENV)
    (code / "beside.py").write_text("from further import thing\n")
    (code / "further/__init__.py").write_text("thing = 1\n")
    with pytest.raises(InputError, match="`their_env:make`"):
        require_trusted(folder, manifest, trust=False)
    require_trusted(folder, manifest, trust=True)
    require_trusted(folder, manifest, trust=False)
    (code / "unrelated.py").write_text("nothing names it\n")
    require_trusted(folder, manifest, trust=False)
    (code / changed).write_text("print('something else')\n")
    with pytest.raises(InputError, match="--trust"):
        require_trusted(folder, manifest, trust=False)


def test_code_inside_a_run_begun_here_is_asked_for_again_where_it_changes(tmp_path: Path) -> None:
    """The folder may have been to somebody else and come back."""
    folder, manifest = written(tmp_path / "run", task_folder=str(tmp_path / "run"))
    (tmp_path / "run/their_env.py").write_text(ENV)
    remember(folder, manifest)
    require_trusted(folder, manifest, trust=False)
    (tmp_path / "run/their_env.py").write_text("print('something else')\n")
    with pytest.raises(InputError, match="--trust"):
        require_trusted(folder, manifest, trust=False)


def test_a_run_without_a_task_file_takes_its_code_from_the_import_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = tmp_path / "installed"
    code.mkdir()
    (code / "their_env.py").write_text(ENV)
    monkeypatch.syspath_prepend(str(code))
    folder, manifest = written(tmp_path / "run", task_folder=None)
    with pytest.raises(InputError, match="with modules from the import path"):
        require_trusted(folder, manifest, trust=False)
    require_trusted(folder, manifest, trust=True)
    require_trusted(folder, manifest, trust=False)
    (code / "their_env.py").write_text(ENV + "# changed\n")
    with pytest.raises(InputError, match="--trust"):
        require_trusted(folder, manifest, trust=False)


def test_a_state_folder_that_others_can_write_to_trusts_nothing(
    tmp_path: Path, own_state: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, manifest = written(tmp_path / "run")
    remember(folder, manifest)
    own_state.chmod(0o777)
    with pytest.raises(InputError, match="--trust"):
        require_trusted(folder, manifest, trust=False)
    with caplog.at_level(logging.WARNING, "aitia"):
        logging.getLogger("aitia").propagate = True
        remember(folder, manifest)
    assert "others can write there" in caplog.text


def test_the_state_folder_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert state_folder() == tmp_path / ".local/state/aitia"


def test_only_what_names_code_is_shown_as_code(tmp_path: Path) -> None:
    task: dict[str, Any] = {
        "name": "maze:v2", "env": "their_env:make", "train_kwargs": {"reward": "their_env:pay"},
        "outcomes": {"desired": ["end:goal"], "misbehaved": ["end:pit"]}, "causes": ["room:3"],
        "verify": {"sets": {"guess": ["room:4"], "asked": "their_env:groups"}},
    }  # fmt: skip
    folder, manifest = written(tmp_path / "run", task=task)
    with pytest.raises(InputError) as refused:
        require_trusted(folder, manifest, trust=False)
    assert "names: `their_env:groups`, `their_env:make`, `their_env:pay`, with modules from" in str(refused.value)
    folder, manifest = written(tmp_path / "run", task={**task, "causes": "their_env:causes"})
    with pytest.raises(InputError, match=r"`their_env:causes`.*`their_env:make`"):
        require_trusted(folder, manifest, trust=False)


@pytest.mark.slow
def test_commands_that_compute_ask_before_they_run_the_code_of_a_run(
    small_run: Path, tmp_path: Path, aitia_command: Command
) -> None:
    copy, code = tmp_path / "copy", tmp_path / "code"
    shutil.copytree(small_run, copy)
    code.mkdir()
    (code / "their_env.py").write_text(ENV)
    (code / "beside.py").write_text("")
    values = json.loads((copy / "run.json").read_text())
    values["task"]["env"], values["task_folder"] = "their_env:make", str(code)
    (copy / "run.json").write_text(json.dumps(values))
    for command, *arguments in COMPUTING:
        done = aitia_command(command, copy, *arguments, "--workers", 0)
        assert done.code == 2 and "--trust" in done.err and "`their_env:make`" in done.err, command
    assert not (code / "their_env.ran").exists()
    done = aitia_command("illustrate", copy, "1", "--trust", "--workers", 0)
    assert done.code == 0, done.err
    assert (code / "their_env.ran").exists()
    done = aitia_command("evaluate", copy, "--workers", 0)
    assert done.code == 0, done.err


@pytest.mark.slow
def test_who_names_the_task_file_needs_no_trust(small_run: Path, tmp_path: Path, aitia_command: Command) -> None:
    shutil.copytree(small_run, tmp_path / "copy")
    assert aitia_command("evaluate", tmp_path / "copy", "--workers", 0).code == 2, "made elsewhere"
    task = small_run.parent / "task.yaml"
    assert aitia_command("train", task, "--out", tmp_path / "copy", "--workers", 0).code == 0
    assert aitia_command("evaluate", tmp_path / "copy", "--workers", 0).code == 0
