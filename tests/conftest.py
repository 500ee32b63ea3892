"""Shared fixtures: one Dask cluster and one small finished run for the whole session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml
from command_line import Finished
from shared_cluster import shared_cluster
from small_task import SMALL_TASK

from aitia.datasets.files.store import RunFolder
from aitia.datasets.rewards import reward_summary, wrong_groups
from aitia.training.edits.file import Edits, write_edits
from aitia.workflows import commands
from aitia.workflows.cli import main

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def state_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A user's state folder of the session's own, also for the commands that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("state")
        patch.setenv("XDG_STATE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """Address of a Dask cluster of two processes."""
    with shared_cluster() as cluster:
        yield str(cluster.scheduler_address)


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Write the small task with some keys replaced, and return the file."""

    def write(**changes: object) -> Path:
        path = tmp_path / "task.yaml"
        path.write_text(yaml.safe_dump({**SMALL_TASK, **changes}))
        return path

    return write


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the small outer task: read it, do not change it."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "task.yaml").write_text(yaml.safe_dump(SMALL_TASK))
    commands.run(folder / "task.yaml", folder / "run", workers=0)
    return folder / "run"


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
def fixed_run(small_run: Path) -> Path:
    """The small task trained and evaluated with every wrong reward corrected, three seeds: read it only."""
    folder = small_run.parent
    task, edits, fixed = folder / "fixed.yaml", folder / "edits.yaml", folder / "fixed"
    rewards = [reward_summary(RunFolder(small_run), seed) for seed in range(5)]
    write_edits(edits, Edits(groups=sorted(wrong_groups(rewards)), correct="intended"))
    task.write_text(yaml.safe_dump({**SMALL_TASK, "seeds": 3}))
    commands.train(task, fixed, edits, workers=0)
    commands.evaluate(fixed, workers=0)
    return fixed
