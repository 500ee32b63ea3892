"""Verify beyond corrections: arbitrary edits, coverage, biases and sets of the user's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from command_line import Finished
from small_task import SMALL_TASK

from aitia.workflows import commands

pytestmark = pytest.mark.slow
WriteTask = Callable[..., Path]
TRAIN: dict[str, Any] = SMALL_TASK["train_kwargs"]


@pytest.fixture
def copy(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished small run, to change."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


def masks_of(run: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(run / "bank/test/masks.parquet").to_pylist()
    return found


def test_without_an_intended_reward_bounded_edits_are_searched(tmp_path: Path, write_task: WriteTask) -> None:
    """The small outer twin, whose designer does not say what should have been paid: 12 of 24 levels cause it."""
    task = write_task(
        train_kwargs={**TRAIN, "tell_intended": False}, verdict={"few": 0.6}, verify={"seeds": 5, "points": 1}
    )
    summary = commands.run(task, tmp_path / "run", workers=0)["test"]
    assert summary["rule"] == 5 and summary["basis"] == "arbitrary"
    rows = masks_of(tmp_path / "run")
    edits = [row for row in rows if row["order"] == "arbitrary"]
    assert edits and all(set(row["values"]) <= {0.0, 2.5} and row["corrected"] > 0 for row in edits)
    assert not any(row["order"] in ("all", "attribution", "random") for row in rows)
    (budget,) = summary["budgets"]
    assert budget["budget"] == "arbitrary"
    page = (tmp_path / "run/reports/test/index.html").read_text()
    assert "arbitrary: rewards within the range seen" in page and "What would have prevented it?" in page
    if budget["removes"]:
        assert any(row["order"] == "placebo" for row in rows) and budget["placebo"]["value"] is not None
    assert summary["verdict"] in ("outer", "undetermined")
    verdicts = json.loads((tmp_path / "run/reports/test/verdicts.json").read_text())
    assert {entry["basis"] for entry in verdicts} == {"arbitrary"}


def test_coverage_biases_and_own_sets_stand_beside_the_corrections(copy: Path, write_task: WriteTask) -> None:
    before = json.loads((copy / "reports/test/summary.json").read_text())
    causal = "aitia.training.worlds.maze:causal_levels"
    task = write_task(
        biases={"deep": {"hyperparameters": {"policy_kwargs": {"net_arch": [16, 16, 16]}}},
                "planes": {"env_kwargs": {"observation": "planes"}}, "init": {"initial_seed": 100}},
        verify={"seeds": 5, "points": 0, "coverage": {"levels": 60, "moved": 48},
                "sets": {"causal": causal, "two": [1, 2]}},
    )  # fmt: skip
    summary = commands.run(task, copy, workers=0)["test"]
    assert summary["verdict"] == before["verdict"] and summary["misbehaviour_rate"] == before["misbehaviour_rate"]
    points = {point["order"]: point for point in summary["correction_curve"]}
    assert points["causal"]["groups"] == 12 and points["two"]["groups"] == 2
    assert points["causal"]["misbehaviour_rate"] < 0.5 * points["none"]["misbehaviour_rate"]
    found = {budget["budget"]: budget for budget in summary["budgets"]}
    assert set(found) == {"corrective", "coverage"} and found["coverage"]["groups"] is None
    factorial = summary["factorial"]
    assert set(factorial["biases"]) == {"as it is", "deep", "planes", "init"} and factorial["seeds"] >= 2
    assert sum(share["value"] for share in factorial["shares"].values()) == pytest.approx(1.0)
    rows = masks_of(copy)
    assert {(row["order"], row["variant"]) for row in rows if row["variant"]} == {
        ("none", "coverage"), *((order, bias) for order in ("none", "all") for bias in ("deep", "planes", "init"))
    }  # fmt: skip
    page = (copy / "reports/test/index.html").read_text()
    assert "Rewards or inductive bias?" in page and "the coverage budget above separates them" in page


def test_an_edit_of_an_unknown_group_is_refused(
    copy: Path, write_task: WriteTask, aitia_command: Callable[..., Finished]
) -> None:
    task = write_task(verify={"seeds": 5, "points": 0, "sets": {"mine": ["1", "231"]}})
    done = aitia_command("run", task, "--out", copy, "--workers", 0)
    assert done.code == 2 and "verify.sets.mine" in done.err and "`231`" in done.err and "`23`" in done.err


def test_an_environment_that_cannot_be_seeded_is_said(
    tmp_path: Path, write_task: WriteTask, aitia_command: Callable[..., Finished]
) -> None:
    task = write_task(
        env="toy_environments:Unseeded", train_kwargs={"intended_error": 1.0}, test_kwargs={}, seeds=2,
        outcomes={"desired": ["goal"], "misbehaved": ["pit"]}, verify={"seeds": 2, "points": 0},
        agent={"total_timesteps": 128, "n_envs": 2, "hyperparameters": {"n_steps": 32, "batch_size": 32}},
    )  # fmt: skip
    done = aitia_command("run", task, "--out", tmp_path / "run", "--workers", 0)
    assert done.code == 0, done.err
    assert "does not repeat itself" in done.err
    assert "does not repeat itself" in (tmp_path / "run/reports/test/index.html").read_text()
