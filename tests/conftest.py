"""Shared fixtures: finished runs that the test processes of a session share; a test that changes one is caught."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import vl_convert
import yaml
from command_line import Finished
from filelock import FileLock
from small_task import SMALL_TASK
from stills import KEPT, empty_still, kept_bundle

from aitia.datasets.files.store import RunFolder
from aitia.datasets.rewards import reward_summary, wrong_groups
from aitia.training.edits.file import Edits, write_edits
from aitia.workflows import commands
from aitia.workflows.cli import main
from aitia.workflows.workers import processes
from aitia.workflows.workers.pool import InProcess

torch.set_num_threads(1)


Share = Callable[[str, Callable[[Path], None]], Path]


def stamps(folder: Path) -> dict[str, list[int]]:
    """Return when each file of a folder was written, and its size."""
    files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): [about.st_mtime_ns, about.st_size] for path, about in files}


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Share]:
    """Make a folder once a session: by the test process that needs it first, while others wait.

    It is in the session's own temporary folder, so nothing of an earlier session is taken for it.
    """
    base, used = tmp_path_factory.getbasetemp(), list[str]()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def shared(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = base / name, base / f"{name}.done"
        with FileLock(base / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of a process that failed
                folder.mkdir()
                make(folder)
                done.write_text(json.dumps(stamps(folder)))
        used.append(name)
        return folder

    yield shared
    for name in used:
        before, after = json.loads((base / f"{name}.done").read_text()), stamps(base / name)
        changed = [path for path in {**before, **after} if before.get(path) != after.get(path)]
        assert not changed, f"tests that read what all share may not change it: {name}, {changed}"


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's state folder of the session's own, also for commands that it starts; every test process adds to it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "state"
    folder.mkdir(exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(folder))
        patch.setenv("SB3_LOGDIR", str(folder.with_name("sb3")))  # else an empty folder a training in /tmp
        patch.setenv(KEPT, str(folder.with_name("vega-bundle.js")))
        patch.setattr(vl_convert, "javascript_bundle", kept_bundle)
        # What every training would import, 1.5 s a process, is imported before workers are forked.
        patch.setattr(processes, "_IMPORTED", [*processes._IMPORTED, "torch._dynamo"])
        yield folder


@pytest.fixture(scope="session", autouse=True)
def pieces_are_pickled() -> Iterator[None]:
    """Pieces that take turns in this process are pickled as if they were sent to a worker, and so are their results."""
    run = InProcess.map

    def sent_map(self: InProcess, function: Any, pieces: Any, label: str) -> list[Any]:
        function, pieces = pickle.loads(pickle.dumps((function, pieces)))
        results = run(self, function, pieces, label)
        return pickle.loads(pickle.dumps(results))  # type: ignore[no-any-return]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InProcess, "map", sent_map)
        yield


@pytest.fixture(scope="module", autouse=True)
def stills_are_empty(request: pytest.FixtureRequest) -> Iterator[None]:
    """Stills of figures take a second a report: tests of reports draw them and look at them, others do not."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in ("workflows", "examples"):
            patch.setattr(vl_convert, "vegalite_to_svg", empty_still)
        yield


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Write the small task with some keys replaced, and return the file."""

    def write(**changes: object) -> Path:
        path = tmp_path / "task.yaml"
        path.write_text(yaml.safe_dump({**SMALL_TASK, **changes}))
        return path

    return write


@pytest.fixture(scope="session")
def small_run(share: Share, state_folder: Path) -> Path:
    """A finished run of the small outer task: read it, do not change it."""

    def make(folder: Path) -> None:
        (folder / "task.yaml").write_text(yaml.safe_dump(SMALL_TASK))
        commands.run(folder / "task.yaml", folder / "run", workers=0)

    return share("small", make) / "run"


@pytest.fixture
def aitia_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Finished]:
    """Run the command line in this process."""

    def call(*arguments: object) -> Finished:
        monkeypatch.setattr(sys, "argv", ["aitia", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        captured = capsys.readouterr()
        return Finished(code, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def fixed_run(small_run: Path, share: Share) -> Path:
    """The small task trained and evaluated with every wrong reward corrected, three seeds: read it only."""

    def make(folder: Path) -> None:
        task, edits = folder / "task.yaml", folder / "edits.yaml"
        rewards = [reward_summary(RunFolder(small_run), seed) for seed in range(5)]
        write_edits(edits, Edits(groups=sorted(wrong_groups(rewards)), correct="intended"))
        task.write_text(yaml.safe_dump({**SMALL_TASK, "seeds": 3}))
        commands.train(task, folder / "fixed", edits, workers=0)
        commands.evaluate(folder / "fixed", workers=0)

    return share("fixed", make) / "fixed"
