"""Shared fixtures: one Dask cluster and one small finished run for the whole session."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from command_line import Finished
from distributed import LocalCluster

from aitia.workflows import commands
from aitia.workflows.cli import main

torch.set_num_threads(1)

SMALL_TASK: dict[str, Any] = {
    "name": "small-outer",
    "env": "aitia/ArrowMaze-v0",
    "train_kwargs": {"size": 4, "levels": 24, "moved": 12, "bug": 12, "harmless": 6},
    "test_kwargs": {"size": 4, "levels": 100, "moved": 100, "level_seed": 1},
    "outcomes": {"desired": ["arrow"], "misbehaved": ["corner"]},
    "agent": {
        "total_timesteps": 4096,
        "n_envs": 4,
        "hyperparameters": {
            "n_steps": 128, "batch_size": 128, "n_epochs": 8, "learning_rate": 0.003, "gamma": 0.97,
            "gae_lambda": 0.95, "ent_coef": 0.01,
        },
    },
    "seeds": 5,
    "evaluation": {"episodes": 12, "repeats": 4},
    "verify": {"seeds": 5, "points": 1},
}  # fmt: skip


@pytest.fixture(scope="session")
def scheduler() -> Iterator[str]:
    """Address of a Dask cluster of two processes."""
    with LocalCluster(
        n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
    ) as cluster:
        yield str(cluster.scheduler_address)


@pytest.fixture
def write_task(tmp_path: Path) -> Callable[..., Path]:
    """Write the small task with some keys replaced, and return the file."""

    def write(**changes: Any) -> Path:
        path = tmp_path / "task.yaml"
        path.write_text(yaml.safe_dump({**SMALL_TASK, **changes}))
        return path

    return write


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, scheduler: str) -> Path:
    """A finished run of the small outer task: read it, do not change it."""
    folder = tmp_path_factory.mktemp("small")
    (folder / "task.yaml").write_text(yaml.safe_dump(SMALL_TASK))
    commands.run(folder / "task.yaml", folder / "run", scheduler=scheduler)
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
