"""Every algorithm from its task file to the summary: trained, attributed, corrected and trained again, reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from aitia.datasets.errors import InputError
from aitia.workflows import commands

pytestmark = pytest.mark.slow
WriteTask = Callable[..., Path]
PPO: dict[str, Any] = {"n_steps": 64, "batch_size": 128, "n_epochs": 4, "learning_rate": 0.02, "ent_coef": 0.0}
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "A2C": ("Bonus", 2048, {"n_steps": 64, "learning_rate": 0.005}),
    "MaskablePPO": ("Gated", 768, PPO),
    "RecurrentPPO": ("Bonus", 768, {**PPO, "policy_kwargs": {"lstm_hidden_size": 8, "net_arch": [8]}}),
}


@pytest.mark.parametrize("algorithm", CASES)
def test_a_wrong_bonus_is_found_and_corrected_with_every_algorithm(
    algorithm: str, tmp_path: Path, write_task: WriteTask
) -> None:
    """The corridor wrongly pays 2 at the pit; corrected, agents go to the goal."""
    env, steps, hyperparameters = CASES[algorithm]
    agent = {"algorithm": algorithm, "total_timesteps": steps, "n_envs": 4, "hyperparameters": hyperparameters}
    task = write_task(
        env=f"toy_environments:{env}", train_kwargs={}, test_kwargs={}, group_by="component", agent=agent,
        outcomes={"desired": ["goal"], "misbehaved": ["pit"]}, evaluation={"episodes": 2, "repeats": 8},
        verify={"seeds": 5, "points": 0},
    )  # fmt: skip
    summary = commands.run(task, tmp_path / "run", workers=0)["test"]
    assert summary["verdict"] == "outer" and summary["estimator"] == "trak"
    assert summary["misbehaviour_rate"]["uncorrected"]["value"] > 0.8
    assert summary["misbehaviour_rate"]["all_corrected"]["value"] < 0.2
    entry = json.loads((tmp_path / "run/reports/test/verdicts.json").read_text())[0]
    assert entry["top_groups"][0]["group"] == "bonus" and entry["top_groups"][0]["effect"] < 0.0
    masks = pq.read_table(tmp_path / "run/bank/test/masks.parquet").to_pylist()
    assert all(row["corrected"] > 0 for row in masks if row["order"] == "all")
    assert json.loads((tmp_path / "run/reports/test/summary.json").read_text()) == summary
    if algorithm == "RecurrentPPO":
        with pytest.raises(InputError, match="trak-updates was given for a recurrent policy"):
            commands.attribute(tmp_path / "run", estimator="trak-updates", workers=0)
    if algorithm == "MaskablePPO":
        commands.attribute(tmp_path / "run", failure=[entry["failure"]], estimator="trak-updates", workers=0)
        sums = pq.read_table(tmp_path / "run/influence/test/groups.parquet").to_pylist()
        assert any(row["estimator"] == "trak-updates" and row["effect"] < 0.0 for row in sums)
