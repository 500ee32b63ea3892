"""From a script to a verdict: recordings are taken over where they fit the task, and refused by name where not."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from torch import nn
from toy_environments import Corridor, Kinds

from aitia.datasets.errors import InputError, RunFolderError
from aitia.datasets.files.store import RunFolder, read_tensor_metadata
from aitia.datasets.rewards import recorded_whole, reward_summary
from aitia.training.agents.spec import AgentSpec
from aitia.training.environments.spec import EnvSpec
from aitia.training.recording.recorder import Recorder
from aitia.training.retraining.replay import replay
from aitia.workflows import commands
from aitia.workflows.runs.adopt import recording_notes
from aitia.workflows.runs.begin import begin_run
from aitia.workflows.runs.run import Run

HYPERPARAMETERS: dict[str, Any] = {
    "n_steps": 32, "batch_size": 32, "n_epochs": 2, "learning_rate": 0.001, "gamma": 0.97, "gae_lambda": 0.95,
    "ent_coef": 0.01,
}  # fmt: skip
TASK: dict[str, Any] = {
    "name": "mine",
    "env": "toy_environments:Corridor",
    "train_kwargs": {"intended_error": 0.5},
    "outcomes": {"desired": ["goal"], "misbehaved": ["pit"]},
    "agent": {"total_timesteps": 100, "n_envs": 2, "hyperparameters": HYPERPARAMETERS},
    "seeds": [0, 1],
    "evaluation": {"episodes": 4, "repeats": 2},
    "verify": {"seeds": 2, "points": 0},
}


def _env() -> VecEnv:
    return DummyVecEnv([lambda: Corridor(intended_error=0.5)] * 2)


def _script(out: Path, seed: int = 0, steps: int = 100, env: VecEnv | None = None, **changes: Any) -> PPO:
    """What a user's script does."""
    model = PPO("MlpPolicy", env or _env(), seed=seed, device="cpu", **{**HYPERPARAMETERS, **changes})
    model.learn(steps, callback=Recorder(out, seed))
    return model


def _begin(folder: Path, **changes: Any) -> Run:
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({**TASK, **changes}))
    return begin_run(path, folder / "run")


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_script_gets_its_verdict_and_its_recording_is_kept(tmp_path: Path) -> None:
    _script(tmp_path / "run", seed=1)
    (tmp_path / "run" / "model.zip").write_text("mine")
    before = _files(tmp_path / "run")
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(TASK))
    summary = commands.run(tmp_path / "task.yaml", tmp_path / "run", workers=0)["test"]
    assert summary["verdict"]
    after = _files(tmp_path / "run")
    assert {path: after[path] for path in before} == before, "something that the script wrote is lost"
    folder = RunFolder(tmp_path / "run")
    trained_by = [read_tensor_metadata(folder.final_path(seed))["trained_by"] for seed in (0, 1)]
    assert trained_by == ["aitia", "script"]
    assert "A script trained seed 1" in (tmp_path / "run/reports/test/index.html").read_text()
    with pytest.raises(InputError, match="whole training of seed 1"):
        _script(tmp_path / "run", seed=1)


@pytest.mark.slow
def test_recordings_without_a_manifest_come_to_the_same_verdict(small_run: Path, tmp_path: Path) -> None:
    shutil.copytree(small_run, tmp_path / "run")
    (tmp_path / "run/run.json").unlink()
    shutil.rmtree(tmp_path / "run/reports")
    before = _files(tmp_path / "run/transitions") | _files(tmp_path / "run/checkpoints")
    summary = commands.run(small_run.parent / "task.yaml", tmp_path / "run", workers=0)["test"]
    expected = json.loads((small_run / "reports/test/summary.json").read_text())
    assert expected["verdict"] == "outer"
    for name in ("verdict", "rule", "outer_share", "misbehaviour_rate", "ease", "trainings"):
        assert summary[name] == expected[name], name
    assert _files(tmp_path / "run/transitions") | _files(tmp_path / "run/checkpoints") == before


@pytest.mark.parametrize(
    ("script", "task", "difference"),
    [
        ({"gamma": 0.9}, {}, "gamma 0.9, the task has 0.97"),
        ({"n_steps": 16}, {}, "n_steps 16, the task has 32"),
        ({"gae_lambda": 0.5}, {}, "gae_lambda 0.5"),
        ({"learning_rate": 0.1}, {}, "learning_rate 0.1, the task has 0.001"),
        ({"learning_rate": lambda left: 0.001 * left}, {}, r"learning_rate \[0.001, 0.0005, 0.0\]"),
        ({"batch_size": 64}, {}, "batch_size 64"),
        ({"steps": 200}, {}, "total_timesteps 256, the task has 128"),
        ({"policy_kwargs": {"net_arch": [8]}}, {}, r"mlp_extractor.policy_net.0.weight of shape \[8, 2\]"),
        ({"policy_kwargs": {"activation_fn": nn.ReLU}}, {}, "activation_fn"),
        ({"env": "normalised"}, {}, "VecNormalize"),
        ({}, {"train_kwargs": {"cells": 5}}, r"observation_shape \[2\], the task has \[5\]"),
        ({"env": "silent"}, {}, "info.'intended_reward'. not told, the task has told"),
        ({"env": "box"}, {}, r"action_shape \[2\], the task has None"),
        ({}, {"seeds": [3, 4]}, "recordings of seeds .0., the task has .3, 4."),
    ],
)
def test_a_recording_that_does_not_fit_is_refused_by_name(
    script: dict[str, Any], task: dict[str, Any], difference: str, tmp_path: Path
) -> None:
    envs: dict[str, Callable[[], VecEnv]] = {
        "silent": lambda: DummyVecEnv([lambda: Corridor(tell=("outcome",))] * 2),
        "normalised": lambda: VecNormalize(_env()),
        "box": lambda: DummyVecEnv([lambda: Kinds(act="box")] * 2),
    }
    if "env" in script:
        script = {**script, "env": envs[script["env"]]()}
    _script(tmp_path / "run", **script)
    before = _files(tmp_path / "run")
    with pytest.raises(RunFolderError, match=difference):
        _begin(tmp_path, **task)
    assert _files(tmp_path / "run") == before


def test_another_algorithm_is_refused(tmp_path: Path) -> None:
    A2C("MlpPolicy", _env(), n_steps=32, device="cpu").learn(64, callback=Recorder(tmp_path / "run", 0))
    with pytest.raises(RunFolderError, match="algorithm A2C, the task has PPO"):
        _begin(tmp_path)


def test_schedules_are_compared_by_their_values(tmp_path: Path) -> None:
    _script(tmp_path / "run", learning_rate=lambda left: 0.001 * left)
    hyperparameters = {**HYPERPARAMETERS, "learning_rate": "lin_0.001"}
    run = _begin(tmp_path, agent={**TASK["agent"], "hyperparameters": hyperparameters})
    assert run.folder.missing_files(0) == [] and run.folder.missing_files(1)


@pytest.mark.parametrize("lost", ["checkpoints/seed=0/final.safetensors", "transitions/seed=0/window=00001.parquet"])
def test_a_part_of_a_recording_is_refused_and_kept(lost: str, tmp_path: Path) -> None:
    _script(tmp_path / "run")
    (tmp_path / "run" / lost).unlink()
    before = _files(tmp_path / "run")
    with pytest.raises(RunFolderError, match=lost):
        _begin(tmp_path)
    assert _files(tmp_path / "run") == before


def test_a_script_that_still_records_is_waited_for(tmp_path: Path) -> None:
    _script(tmp_path / "run")
    (tmp_path / "run/.parts/train/seed=1-ab").mkdir()
    with pytest.raises(RunFolderError, match=r"seed=1-ab.*still runs"):
        _begin(tmp_path)


def test_a_seed_that_a_script_adds_to_a_run_is_checked_too(tmp_path: Path) -> None:
    _script(tmp_path / "run")
    run = _begin(tmp_path)
    _script(run.folder.root, seed=1, gamma=0.5)
    with pytest.raises(RunFolderError, match=r"seed 1 .* gamma 0.5"):
        _begin(tmp_path)
    _script(tmp_path / "other", seed=1)
    for kind in ("transitions", "checkpoints"):
        shutil.rmtree(run.folder.root / kind / "seed=1")
        shutil.copytree(tmp_path / "other" / kind / "seed=1", run.folder.root / kind / "seed=1")
    assert _begin(tmp_path).folder.missing_files(1) == []


def test_a_training_recorded_from_its_middle_says_so_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = PPO("MlpPolicy", _env(), seed=0, device="cpu", **HYPERPARAMETERS)
    model.learn(64)
    model.save(tmp_path / "half.zip")
    loaded = PPO.load(tmp_path / "half.zip", _env(), device="cpu")
    with caplog.at_level(logging.WARNING, "aitia"):
        loaded.learn(64, callback=Recorder(tmp_path / "run", 0), reset_num_timesteps=False)
    said = [message for message in caplog.messages if "task.yaml" not in message]
    assert len(said) == 1 and "begins after 64 steps of training" in said[0]
    folder = _begin(tmp_path).folder  # 64 earlier steps and 64 recorded ones are the task's 100, rounded up
    assert "seed 0 begins after 64 steps" in recording_notes(folder, [0])[1]
    assert not recorded_whole([reward_summary(folder, 0)]), "rule 6 (no wrong reward) would speak for all of it"
    spec = AgentSpec(**TASK["agent"])
    with pytest.raises(InputError, match="recorded from its first step"):
        replay(spec, EnvSpec(TASK["env"], TASK["train_kwargs"]), 0, folder)


@pytest.mark.parametrize("loaded", [True, False])
def test_counting_steps_anew_hides_no_earlier_training(loaded: bool, tmp_path: Path) -> None:
    model = PPO("MlpPolicy", _env(), seed=0, device="cpu", **HYPERPARAMETERS)
    model.learn(64)
    if loaded:
        model.save(tmp_path / "half.zip")
        model = PPO.load(tmp_path / "half.zip", _env(), device="cpu")
    model.learn(64, callback=Recorder(tmp_path / "run", 0))
    assert "begins after 2 updates" in recording_notes(RunFolder(tmp_path / "run"), [0])[1]


def test_a_recording_from_the_first_step_says_nothing(tmp_path: Path) -> None:
    _script(tmp_path / "run")
    notes = recording_notes(RunFolder(tmp_path / "run"), [0])
    assert len(notes) == 1 and "A script trained seed 0" in notes[0]
    hyperparameters = json.loads(read_tensor_metadata(RunFolder(tmp_path / "run").final_path(0))["hyperparameters"])
    assert hyperparameters["learning_rate"] == 0.001 and hyperparameters["clip_range"] == 0.2


def test_a_recording_without_minibatches_says_how_advantages_count(tmp_path: Path) -> None:
    _script(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    path = folder.transitions_path(0, 0)
    table = pq.read_table(path)
    empty = pa.array([[]] * table.num_rows, table.schema.field("minibatches").type)
    position = table.column_names.index("minibatches")
    pq.write_table(table.set_column(position, "minibatches", empty).cast(table.schema), path)
    assert "not recorded of seed 0: influence takes advantages as normalised over" in recording_notes(folder, [0])[-1]
