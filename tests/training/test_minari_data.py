"""Minari: what goes out comes back, and what a dataset does not have is said."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from gymnasium import spaces

from aitia.attribution.estimators.window import read_window
from aitia.datasets.arrays import array_format, decode_actions, decode_arrays
from aitia.datasets.errors import InputError, RunFolderError
from aitia.datasets.files.store import RunFolder, read_table
from aitia.datasets.schema import metadata_of
from aitia.training.agents.spec import AgentSpec
from aitia.training.environments.spec import EnvSpec
from aitia.training.recording.minari import export_minari, import_minari
from aitia.training.retraining.live import train_recorded
from aitia.workflows.runs.begin import begin_run

minari = importlib.import_module("minari")  # untyped
EpisodeBuffer = importlib.import_module("minari.data_collector").EpisodeBuffer


@pytest.fixture(autouse=True)
def _local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))


def _train(folder: RunFolder, env: EnvSpec, policy: str = "MlpPolicy", seed: int = 0) -> None:
    kwargs: dict[str, Any] = {}
    if policy != "MlpPolicy":
        key = "features_dim" if policy == "CnnPolicy" else "cnn_output_dim"
        kwargs = {"features_extractor_kwargs": {key: 8}, "net_arch": [4]}
    hyperparameters = {"n_steps": 12, "batch_size": 12, "n_epochs": 1, "policy_kwargs": kwargs}
    spec = AgentSpec(policy=policy, total_timesteps=48, n_envs=2, hyperparameters=hyperparameters)
    train_recorded(spec, env, seed, folder)


def _rows(folder: RunFolder, seed: int) -> pa.Table:
    """Return a training's rows, episode after episode in the order in which they ended."""
    paths = sorted(folder.transitions_folder(seed).glob("*.parquet"))
    table = pa.concat_tables([read_table(path) for path in paths], promote_options="default")
    return table.append_column("row", pa.array(np.arange(table.num_rows)))


@pytest.mark.parametrize(
    ("env", "policy"),
    [
        (
            EnvSpec("toy_environments:Corridor", {"limit": 3, "length": 6, "intended_error": 0.5, "components": 1.0}),
            "MlpPolicy",
        ),
        (EnvSpec("toy_environments:Kinds", {"act": "box"}), "MlpPolicy"),
        (EnvSpec("toy_environments:Kinds", {"observe": "dict", "act": "multi"}), "MultiInputPolicy"),
        (EnvSpec("toy_environments:Kinds", {"observe": "image", "act": "binary"}), "CnnPolicy"),
        (EnvSpec("toy_environments:Kinds", {"observe": "cell"}), "MlpPolicy"),
    ],
    ids=["components", "box", "dict", "image", "cell"],
)
def test_what_goes_out_comes_back(env: EnvSpec, policy: str, tmp_path: Path) -> None:
    folder, back = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "back")
    _train(folder, env, policy)
    dataset = export_minari(folder, "toy/corridor-v0", env)
    assert dataset.total_steps == 48
    made = env.make()
    assert dataset.observation_space == made.observation_space and dataset.action_space == made.action_space
    first = next(iter(dataset.iterate_episodes()))
    assert len(first.rewards) + 1 == len(first.infos["seed"])
    assert import_minari("toy/corridor-v0", back, seed=3, rows=20) == 3
    sent, found = _rows(folder, 0), _rows(back, 3)
    assert found.num_rows == 48 and metadata_of(found.schema)["n_envs"] == "1"
    order = _ended_first(sent)
    cut = {(row["env"], row["episode"]): row["row"] for row in sent.select(["env", "episode", "row"]).to_pylist()}
    last = set(cut.values())
    for name in ("reward", "intended_reward", "context", "outcome", "t", "terminated", *_components(sent)):
        assert found[name].to_pylist() == sent[name].take(order).to_pylist(), name
    expected_cut = [
        row in last and not end
        for row, end in zip(order.to_pylist(), sent["terminated"].take(order).to_pylist(), strict=True)
    ]
    assert found["truncated"].to_pylist() == expected_cut, "an episode ends where it ended, or where the training did"
    kept, seen = (decode_arrays(t["observation"], array_format(t.schema, "observation")) for t in (sent, found))
    np.testing.assert_array_equal(seen, kept[order.to_numpy()])
    drawn = decode_actions(sent)[order.to_numpy()]
    if isinstance(made.action_space, spaces.Box):  # as the environment got them
        drawn = np.clip(drawn, made.action_space.low, made.action_space.high)
    np.testing.assert_array_equal(decode_actions(found), drawn)
    for name in ("value", "log_prob", "advantage", "return"):
        assert found[name].null_count == 48, "a dataset has no policy"


def _ended_first(table: pa.Table) -> pa.Array:
    """Return the rows of whole episodes in the order in which they were exported."""
    episodes: dict[tuple[int, int], list[int]] = {}
    order: list[int] = []
    for window in sorted(set(table["window"].to_pylist())):
        for row in table.select(["window", "env", "episode", "terminated", "truncated", "row"]).to_pylist():
            if row["window"] != window:
                continue
            mine = episodes.setdefault((row["env"], row["episode"]), [])
            mine.append(row["row"])
            if row["terminated"] or row["truncated"]:
                order += episodes.pop((row["env"], row["episode"]))
    return pa.array(order + [row for rows in episodes.values() for row in rows])


def _components(table: pa.Table) -> list[str]:
    return [name for name in table.column_names if name.startswith("component_")]


def test_the_last_observation_of_an_episode_goes_out(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    env = EnvSpec("toy_environments:Corridor", {})
    _train(folder, env)
    _train(folder, env, seed=1)
    dataset = export_minari(folder, "corridor-v0", env, seeds=[1])
    assert dataset.total_steps == 48
    for episode in dataset.iterate_episodes():
        assert set(episode.infos["seed"].tolist()) == {1}
        if episode.terminations[-1]:
            assert episode.observations[-1][0] in (0.0, 1.0), "the cell in which the corridor ends"


def test_a_dataset_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    folder, env = RunFolder(tmp_path / "run"), EnvSpec("toy_environments:Corridor")
    _train(folder, env)
    export_minari(folder, "whole-v0", env)
    with pytest.raises(InputError, match="already exists"):
        export_minari(folder, "whole-v0", env)
    folder.transitions_path(0, 1).write_bytes(b"damaged")
    with pytest.raises(RunFolderError, match="damaged"):
        export_minari(folder, "half-v0", env)
    assert list(minari.list_local_datasets()) == ["whole-v0"]


def test_a_dataset_of_others_is_read_without_outcomes_and_what_follows_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    env = EnvSpec("toy_environments:Corridor").make()
    episodes = [
        EpisodeBuffer(
            observations=np.full((4, 2), 0.25 * number, np.float32), actions=np.array([0, 1, 1]),
            rewards=[0.5, 0.0, 1.0], terminations=[False, False, number == 0], truncations=[False] * 3,
        )
        for number in range(2)
    ]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        minari.create_dataset_from_buffers(
            "others-v0",
            episodes,
            observation_space=env.observation_space,
            action_space=env.action_space,
            data_format="arrow",
        )
    with caplog.at_level(logging.WARNING, "aitia"):
        assert import_minari("others-v0", tmp_path / "run") == 1
    assert "nothing of it can be attributed; it tells no intended reward" in caplog.text
    table = read_table(RunFolder(tmp_path / "run").transitions_path(0, 0))
    assert table["outcome"].null_count == table["intended_reward"].null_count == 6
    assert table["episode"].to_pylist() == [0, 0, 0, 1, 1, 1] and table["t"].to_pylist() == [0, 1, 2, 0, 1, 2]
    assert table["truncated"].to_pylist() == [False] * 5 + [True]
    with pytest.raises(RunFolderError, match="has no advantages"):
        read_window(RunFolder(tmp_path / "run").transitions_path(0, 0))
    (tmp_path / "task.yaml").write_text(
        "{name: mine, env: 'toy_environments:Corridor', outcomes: {desired: [goal], misbehaved: [pit]}}"
    )
    with pytest.raises(RunFolderError, match="have no policy"):
        begin_run(tmp_path / "task.yaml", tmp_path / "run")
    with pytest.raises(InputError, match="exists already"):
        import_minari("others-v0", tmp_path / "run")


def test_what_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="nowhere-v0"):
        import_minari("nowhere-v0", tmp_path / "run")
    with pytest.raises(InputError, match="has trainings of"):
        export_minari(tmp_path / "run", "corridor-v0", EnvSpec("toy_environments:Corridor"))
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(InputError, match=r'pip install "aitia\[minari\]"'):
        import_minari("nowhere-v0", tmp_path / "run")
