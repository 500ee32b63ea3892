"""`aitia check`: in seconds what a task will do; and names that never occur cost no training."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from command_line import Finished
from small_task import SMALL_TASK

import aitia
from aitia.datasets.errors import TaskError
from aitia.datasets.files.store import RunFolder, read_table
from aitia.workflows.runs.outcomes import require_outcomes
from aitia.workflows.runs.run import open_run
from aitia.workflows.runs.task import make_task
from aitia.workflows.stages.check import count_trainings

Command = Callable[..., Finished]
WriteTask = Callable[..., Path]
TINY = {"total_timesteps": 256, "n_envs": 2, "hyperparameters": {"n_steps": 64, "batch_size": 64, "n_epochs": 1}}
NAMED = {"env": "discrete_environments:Named", "train_kwargs": {}, "test_kwargs": {}, "agent": TINY}


def _refused(done: Finished, out: Path, *parts: str) -> None:
    assert done.code == 2 and "Traceback" not in done.err, done.err
    for part in parts:
        assert part in done.err
    assert not out.exists(), "something was written"


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"outcomes": {"desired": ["arrow"], "misbehaved": ["cornr"]}}, ("`cornr`", "Did you mean `corner`")),
        ({"outcomes": {"desired": ["treasure"], "misbehaved": ["corner"]}}, ("`treasure`", "arrow, corner, timeout")),
        ({**NAMED, "outcomes": {"desired": ["gaol"], "misbehaved": ["ditch"]}}, ("`gaol`", "Did you mean `goal`")),
        (
            {**NAMED, "hooks": "toy_hooks:listing", "outcomes": {"desired": ["pond"], "misbehaved": ["ditch"]}},
            ("outcomes.desired: `pond`", "ditch, goal, lake, timeout"),
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "check"])
def test_a_misspelt_outcome_is_refused_before_any_training(
    command: str, changes: dict[str, Any], parts: tuple[str, ...], tmp_path: Path, write_task: WriteTask,
    aitia_command: Command,
) -> None:  # fmt: skip
    """Without a scheduler and with no worker: were one started, this would take much longer."""
    out = ("--out", tmp_path / "run") if command == "train" else ()
    _refused(aitia_command(command, write_task(**changes), *out), tmp_path / "run", *parts)


@pytest.mark.slow
def test_an_outcome_that_only_training_shows_to_be_misspelt_ends_it_after_the_first_window(
    tmp_path: Path, write_task: WriteTask, aitia_command: Command
) -> None:
    changes = {**NAMED, "train_kwargs": {"pit": "timeout", "late": "ditch"}, "test_kwargs": {"pit": "timeout"}}
    task = write_task(**changes, outcomes={"desired": ["goal"], "misbehaved": ["dicth"]}, seeds=[100])
    done = aitia_command("train", task, "--out", tmp_path / "run", "--workers", 0)
    _refused(done, tmp_path / "run", "first window of training", "Did you mean `ditch`")


@pytest.mark.slow
def test_a_rare_outcome_is_not_refused_and_nothing_is_trained_again_on_a_name_that_never_occurs(
    tmp_path: Path, write_task: WriteTask, aitia_command: Command
) -> None:
    outcomes = {"desired": ["treasure"], "misbehaved": ["goal"]}
    evaluation = {"episodes": 4, "repeats": 1}
    task = write_task(**NAMED, outcomes=outcomes, seeds=2, evaluation=evaluation)
    done = aitia_command("run", task, "--out", tmp_path / "run", "--workers", 0)
    assert done.code == 0, done.err
    assert "`treasure` did not occur in a short look" in done.err
    assert "`treasure` did not occur in any episode played" in done.err and "`ditch`, `goal`" in done.err
    with pytest.raises(TaskError, match=r"outcomes\.desired: none of `treasure` ever occurred.*ditch, goal"):
        require_outcomes(open_run(tmp_path / "run"))  # which `verify` asks before it trains again
    folder = RunFolder(tmp_path / "run")
    assert not folder.missing_files(0) and folder.evaluation_path("test", "episodes").exists(), "what is done is kept"
    assert not pq.read_table(folder.bank_path("test", "masks")).num_rows, "an agent was trained again"
    listed = {"listed": ["goal", "ditch", "timeout", "treasure"]}
    changes = {**NAMED, "train_kwargs": listed, "test_kwargs": listed}
    task = write_task(**changes, outcomes=outcomes, seeds=2, evaluation=evaluation)
    done = aitia_command("run", task, "--out", tmp_path / "other", "--workers", 0)
    assert done.code == 0 and "did not occur" not in done.err, done.err


def test_a_check_says_what_is_missing_and_what_it_costs(
    write_task: WriteTask, aitia_command: Command, tmp_path: Path
) -> None:
    changes: dict[str, Any] = {**NAMED, "outcomes": {"desired": ["goal"], "misbehaved": ["ditch"]}, "seeds": 3}
    agent = {**TINY, "algorithm": "A2C", "total_timesteps": 300, "hyperparameters": {"n_steps": 64}}
    done = aitia_command("check", write_task(**changes | {"agent": agent}), "--workers", 2)
    assert done.code == 0, done.err
    for words in (
        "3 trainings of 384 steps in 3 windows",
        "one by one, because the algorithm is A2C",
        "300 steps given; agents make 384, whole windows of 128",
        "3 seeds given, a verdict needs 5",
        "info['context'] is not told: with group_by: context all transitions are one group",
        "min to train",
        "with 2 processes",
    ):
        assert words in done.out, words
    assert "info['intended_reward']" not in done.out and list(tmp_path.iterdir()) == [tmp_path / "task.yaml"]


def test_a_check_measures_and_leaves_generators_as_they_were(write_task: WriteTask) -> None:
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    expected = random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002
    random.seed(3), np.random.seed(3), torch.manual_seed(3)  # noqa: NPY002
    found = aitia.check(write_task(), workers=1)
    assert (random.random(), np.random.rand(), torch.rand(1).item()) == expected  # noqa: NPY002
    assert found["stacked"] == {"at_once": 8, "why_not": None} and found["warnings"] == []
    assert found["keys"]["intended_reward"]["told"] and found["keys"]["context"]["told"]
    assert 0 < found["groups"]["met"] <= 24 and found["outcomes"]["listed"] == ["arrow", "corner", "timeout"]
    assert found["steps"] == {"given": 4096, "trained": 4096, "window": 512, "windows": 8}
    estimate = found["estimate"]
    minutes, measured = estimate["minutes"], estimate["measured"]
    assert minutes["train"] == pytest.approx(5 * 4096 / measured["steps_a_second"] / 60)
    assert all(value > 0 for value in (*minutes.values(), *measured.values(), *estimate["bytes"].values()))


@pytest.mark.slow
def test_what_a_check_foretells_is_what_a_run_does(small_run: Path) -> None:
    """As many trainings; the disk that trainings take within a half, for short windows compress less."""
    found, folder = aitia.check(small_run.parent / "task.yaml"), RunFolder(small_run)
    masks = read_table(folder.bank_path("test", "masks"))
    trained = masks.filter(pc.field("order") != "none").num_rows
    told, clusters = found["trainings"], set(masks["cluster"].drop_null().to_pylist())
    expected = told["bank"] + (5 * len(clusters) if len(clusters) > 1 else 0)
    assert 0 < trained == expected <= told["bank_at_most"], "one size in two orders, and one of each cluster"
    kept = [path for name in ("transitions", "checkpoints") for path in (small_run / name).rglob("*") if path.is_file()]
    assert found["estimate"]["bytes"]["recorded"] == pytest.approx(sum(p.stat().st_size for p in kept), rel=0.5)


def test_trainings_are_counted_from_the_task() -> None:
    def counted(intended: bool = True, **changes: Any) -> tuple[int, int]:
        found = count_trainings(make_task({**SMALL_TASK, **changes}, "task"), intended)
        return found.bank, found.bank_at_most

    assert counted() == (5 + 2 * 5, 5 + (2 + 8) * 5)  # everything, and one size in two orders; of 8 clusters each
    assert counted(verify={"points": 1, "clusters": 1}) == (15, 15)
    assert counted(seeds=8)[0] == 8 + 2 * 5  # with seeds added
    assert counted(verify={"points": 3, "budget": 12}) == (12, 12)
    assert counted(sets={"far": SMALL_TASK["test_kwargs"]})[0] == 5 + 3 * 5  # random order: once for both sets
    assert counted(biases={"wide": {}, "deep": {}})[0] == 15 + 4 * 5
    assert counted(intended=False, verify={"points": 2}) == (30, 30)  # edits and their placebos


def test_the_first_message_comes_before_anything_heavy_is_imported(write_task: WriteTask) -> None:
    code = (
        "import logging, sys\n"
        "from aitia.workflows import cli\n"
        "class First(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        print(record.getMessage(), 'torch' in sys.modules, 'pyarrow' in sys.modules)\n"
        "        sys.exit()\n"
        "log = logging.getLogger('aitia'); log.addHandler(First()); log.setLevel(logging.INFO)\n"
        "cli.cli.main(sys.argv[1:], standalone_mode=False)\n"
    )
    arguments = [sys.executable, "-c", code, "run", str(write_task()), "--out", "nowhere"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("check ") and done.stdout.endswith("False False\n"), done.stdout


def test_the_estimate_of_a_run_is_logged_where_it_takes_a_while(
    write_task: WriteTask, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from aitia.workflows.stages import check
    from aitia.workflows.workers.cluster import DaskWorkers

    task = make_task(SMALL_TASK, "task")
    with caplog.at_level(logging.INFO, "aitia"):
        check.before_training(task, DaskWorkers(1, "tcp://nobody:1"))
        assert "5 trainings of 4,096 steps" in caplog.text and "min to train" not in caplog.text
        monkeypatch.setattr(check, "_MEASURED_FROM", 1)
        check.before_training(task, DaskWorkers(1, "tcp://nobody:1"))
    assert "min to train" in caplog.text and "attribution, pages" in caplog.text
