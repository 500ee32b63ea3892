"""How training episodes end is counted by window, the same whether an agent is recorded, stacked or trained alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest

from aitia.datasets.errors import RunFolderError
from aitia.datasets.files.store import RunFolder, read_table, write_table
from aitia.datasets.learning import keep_training_outcomes, learning_rows, training_outcomes
from aitia.training.agents.spec import AgentSpec
from aitia.training.edits.edit import RewardEdit
from aitia.training.environments.spec import EnvSpec
from aitia.training.retraining.arrays import Member
from aitia.training.retraining.live import train_recorded
from aitia.training.retraining.stack import members_at_once, train_members

CORRIDOR = EnvSpec("toy_environments:Corridor", {"cells": 5})
WINDOWS = 4


def agent(**changes: object) -> AgentSpec:
    steps = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}}
    return AgentSpec(n_envs=2, total_timesteps=32 * 2 * WINDOWS, hyperparameters={**steps, **changes})


def recorded(folder: RunFolder, spec: AgentSpec) -> dict[str, list[int]]:
    """Return numbers of episodes by outcome and window, of a training that was recorded with rewards as paid."""
    train_recorded(spec, CORRIDOR, 0, folder)
    counts: dict[str, list[int]] = {}
    for row in training_outcomes(folder, 0).to_pylist():
        counts.setdefault(row["outcome"], [0] * WINDOWS)[row["window"]] = row["episodes"]
    return counts


def test_an_agent_trained_alone_has_the_counts_of_its_record(tmp_path: Path) -> None:
    alone = agent(target_kl=None, sde_sample_freq=4)  # a hyperparameter that the stack does not have
    assert members_at_once(alone, CORRIDOR)[1] is not None
    expected = recorded(RunFolder(tmp_path), alone)
    (found,) = train_members(alone, CORRIDOR, [Member(0, RewardEdit(frozenset()))])
    assert found.outcomes == expected and sum(expected["goal"]) > 0


def test_a_stack_counts_every_episode_in_the_window_in_which_it_ended(tmp_path: Path) -> None:
    spec = agent()
    assert members_at_once(spec, CORRIDOR)[1] is None
    one, other = train_members(spec, CORRIDOR, [Member(0, RewardEdit(frozenset())), Member(1, None)])
    for found in (one, other):
        assert {len(numbers) for numbers in found.outcomes.values()} == {WINDOWS}
        assert set(found.outcomes) <= {"goal", "pit", "timeout"}
        ended = np.array(list(found.outcomes.values())).sum(axis=0)
        assert (ended >= 64 // 6).all(), "an episode has at most 6 steps, a window 64"
    assert one.outcomes != other.outcomes, "seeds differ"


def test_the_record_counts_every_outcome_once_and_sums_whole_returns(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    train_recorded(agent(), CORRIDOR, 0, folder)
    found = training_outcomes(folder, 0)
    tables = [read_table(folder.transitions_path(0, window)) for window in range(folder.window_count(0))]
    assert pc.sum(found["episodes"]).as_py() == sum(len(t["outcome"].drop_null()) for t in tables)
    by_outcome = found.group_by("outcome").aggregate([("episodes", "sum"), ("reward", "sum")]).to_pylist()
    for row in by_outcome:  # only the goal pays, 1
        assert row["reward_sum"] == (row["episodes_sum"] if row["outcome"] == "goal" else 0.0)


def test_what_was_kept_is_read_and_reading_alone_writes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    train_recorded(agent(), CORRIDOR, 0, folder)
    before = sorted(tmp_path.rglob("*"))
    computed = training_outcomes(folder, 0)
    assert sorted(tmp_path.rglob("*")) == before
    keep_training_outcomes(folder, 0)
    (path,) = tmp_path.rglob("learning/training/seed=0.parquet")
    assert training_outcomes(folder, 0).equals(computed)
    write_table(path, computed.slice(0, 1))
    assert training_outcomes(folder, 0).num_rows == 1, "it is computed once"


def test_counts_of_different_lengths_are_refused() -> None:
    with pytest.raises(
        RunFolderError, match=r"member a: expected one number a window of each, \{'goal': 2, 'pit': 1\} was found"
    ):
        learning_rows("member a", {"goal": [1, 2], "pit": [1]})
