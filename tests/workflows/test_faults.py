"""Faults: killed processes, a full disk, damaged files, a lost scheduler. The result is that of an undisturbed run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from command_line import Finished
from faults import ROOMS, differences, make_deadly

from aitia.workflows import commands
from aitia.workflows.workers import Workers

pytestmark = pytest.mark.slow
Command = Callable[..., Finished]
STAGES = ("train", "evaluate", "attribute", "verify", "report", "validate")


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rooms") / "task.yaml"
    path.write_text(yaml.safe_dump(ROOMS))
    return path


@pytest.fixture(scope="module")
def undisturbed(task: Path, scheduler: str) -> Path:
    """A run of all stages to which nothing happened."""
    run = task.parent / "run"
    commands.run(task, run, scheduler=scheduler)
    commands.validate(run, masks=4, scheduler=scheduler)
    bank = sorted(path.name for path in (run / ".parts/bank/test").iterdir())
    assert len(bank) == 9, "nothing is trained again: the tests are empty"
    return run


@pytest.fixture
def copy(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def test_a_worker_killed_in_every_stage_changes_nothing(
    task: Path, undisturbed: Path, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, run = tmp_path / "orders", tmp_path / "run"
    orders.mkdir()
    given = ("train-within", "train-after", "evaluate-after", "attribute-after", "verify-within", "report-within",
             "validate-after")  # fmt: skip
    for order in given:
        (orders / order).touch()
    monkeypatch.setattr(Workers, "map", make_deadly(orders))
    commands.run(task, run, scheduler=scheduler)
    commands.validate(run, masks=4, scheduler=scheduler)
    left = {path.name for path in orders.iterdir()}
    assert not left.intersection(given), "nobody was killed: the test is empty"
    assert {name for name in left if name.endswith(("kept", "redone"))} == {
        f"{stage}-kept" for stage in ("train", "evaluate", "attribute", "validate")
    }  # fmt: skip
    assert not differences(run, undisturbed)
