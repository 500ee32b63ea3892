"""Folders of rl-zoo3 and zips of other versions: read by value, and nothing in them is run."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_environments import Corridor, Kinds

from aitia.datasets.errors import InputError, TaskError
from aitia.datasets.files.store import RunFolder
from aitia.training.agents.spec import build_model
from aitia.training.agents.zoo import read_saved_model, read_zoo_folder
from aitia.training.recording.recorder import Recorder
from aitia.workflows.runs.adopt import recording_notes

# as rl-zoo3 writes them (`yaml.dump` of an OrderedDict)
CONFIG: dict[str, Any] = {
    "batch_size": 64, "clip_range": "lin_0.2", "gamma": 0.98, "learning_rate": "lin_0.001", "n_envs": 2, "n_epochs": 3,
    "n_steps": 32, "n_timesteps": 1000.0, "normalize": False, "policy": "MlpPolicy",
}  # fmt: skip
ARGS: dict[str, Any] = {
    "algo": "ppo",
    "env": "Corridor-v0",
    "env_kwargs": None,
    "n_timesteps": -1,
    "seed": 5,
    "gym_packages": [],
}


class _Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _zoo(folder: Path, config: dict[str, Any], args: dict[str, Any] = ARGS) -> Path:
    inner = folder / "ppo" / "Corridor-v0_1" / "Corridor-v0"
    inner.mkdir(parents=True)
    for name, values in (("config", config), ("args", args)):
        pairs = [f"- - {key}\n    - {json.dumps(value)}\n" for key, value in values.items()]
        rows = "- " + "  ".join(pairs)
        (inner / f"{name}.yml").write_text(f"!!python/object/apply:collections.OrderedDict\n{rows}")
    (inner / "vecnormalize.pkl").write_bytes(pickle.dumps(_Bomb(folder / "bomb")))
    return inner.parent


def test_a_zoo_folder_is_the_agent_block_of_a_task(tmp_path: Path) -> None:
    spec = read_zoo_folder(
        _zoo(tmp_path, {**CONFIG, "policy_kwargs": "dict(net_arch=[dict(pi=[8], vf=[8])], ortho_init=False)"})
    )
    assert (spec.algorithm, spec.policy, spec.n_envs, spec.total_timesteps) == ("PPO", "MlpPolicy", 2, 1000)
    assert spec.hyperparameters == {
        "batch_size": 64, "clip_range": "lin_0.2", "gamma": 0.98, "learning_rate": "lin_0.001", "n_epochs": 3,
        "n_steps": 32, "policy_kwargs": {"net_arch": {"pi": [8], "vf": [8]}, "ortho_init": False},
        "gae_lambda": 0.95, "ent_coef": 0.0,
    }, "what is not named is Stable-Baselines3's default, as in rl-zoo3"  # fmt: skip
    model = build_model(spec, Corridor, 0)
    model.learn(64)
    assert model.policy.mlp_extractor.policy_net[0].out_features == 8
    assert not (tmp_path / "bomb").exists()


def test_what_the_arguments_say_goes_first(tmp_path: Path) -> None:
    spec = read_zoo_folder(
        _zoo(tmp_path, {"n_timesteps": 1e5, "policy": "MlpPolicy"}, {"algo": "a2c", "n_timesteps": 200})
    )
    assert (spec.algorithm, spec.total_timesteps, spec.n_envs) == ("A2C", 200, 1)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"normalize": True}, "normalize: True"),
        ({"normalize": "dict(norm_obs=True, norm_reward=False)"}, "normalize: dict"),
        ({"env_wrapper": ["stable_baselines3.common.atari_wrappers.AtariWrapper"]}, "AtariWrapper"),
        ({"frame_stack": 4}, "frame_stack: 4"),
        ({"use_sde": True, "sde_sample_freq": 4}, "use_sde"),
        ({"policy_kwargs": "dict(activation_fn=nn.ReLU)"}, r"policy_kwargs.activation_fn: nn\.ReLU"),
        ({"policy_kwargs": "__import__('os').system('true')"}, "policy_kwargs"),
    ],
)
def test_what_a_task_cannot_say_is_named_and_can_be_left_out(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    folder = _zoo(tmp_path, {**CONFIG, **changes})
    with pytest.raises(InputError, match=named):
        read_zoo_folder(folder)
    if "system" in str(changes):
        return
    left_out = [*changes, "policy_kwargs.activation_fn"]
    assert not set(left_out) & set(read_zoo_folder(folder, ignore=left_out).hyperparameters) - {"sde_sample_freq"}


def test_an_expression_is_never_run(tmp_path: Path) -> None:
    mine = f"dict(net_arch=__import__('os').mkdir({str(tmp_path / 'bomb')!r}))"
    with pytest.raises(InputError, match=r"policy_kwargs\.net_arch"):
        read_zoo_folder(_zoo(tmp_path, {**CONFIG, "policy_kwargs": mine}))
    assert not (tmp_path / "bomb").exists()


def test_other_tags_are_refused(tmp_path: Path) -> None:
    folder = _zoo(tmp_path, CONFIG)
    (folder / "Corridor-v0" / "config.yml").write_text(f"!!python/object/apply:os.mkdir ['{tmp_path / 'bomb'}']\n")
    with pytest.raises(InputError, match=r"python/object/apply:os\.mkdir"):
        read_zoo_folder(folder)
    assert not (tmp_path / "bomb").exists()


def test_algorithms_and_folders_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="`ARS` is not supported"):
        read_zoo_folder(_zoo(tmp_path / "a", {"n_timesteps": 10, "policy": "MlpPolicy"}, {"algo": "ars"}))
    with pytest.raises(InputError, match=r"has 0 config\.yml"):
        read_zoo_folder(tmp_path)
    with pytest.raises(InputError, match="no 'policy'"):
        read_zoo_folder(_zoo(tmp_path / "b", {"n_timesteps": 10}))
    with pytest.raises(TaskError, match="MlpPolice"):
        read_zoo_folder(_zoo(tmp_path / "c", {**CONFIG, "policy": "MlpPolice"}))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PPO]:
    folder = tmp_path_factory.mktemp("saved")
    model = PPO("MlpPolicy", DummyVecEnv([Corridor] * 2), n_steps=32, batch_size=64, n_epochs=3, device="cpu", seed=0)
    model.learn(64)
    model.save(folder / "Corridor-v0.zip")
    return folder / "Corridor-v0.zip", model


def _rewritten(path: Path, out: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            new.writestr(name, members.get(name.split(".")[0].lstrip("_"), old.read(name)))
    return out


def test_a_saved_model_is_read_trained_further_and_recorded(
    saved: tuple[Path, PPO], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, model = saved
    found = read_saved_model(path)
    assert not caplog.records, "the same version needs no warning"
    expected = model.policy.state_dict()
    assert found.parameters.keys() == expected.keys() and found.num_timesteps == 64
    assert all(torch.equal(found.parameters[name], value) for name, value in expected.items())
    folder = _zoo(tmp_path, CONFIG)
    shutil.copy(path, folder)
    further = build_model(read_zoo_folder(folder), Corridor, 0)
    further.policy.load_state_dict(found.parameters)
    further.num_timesteps = found.num_timesteps
    further.learn(64, callback=Recorder(tmp_path / "run", 0), reset_num_timesteps=False)
    assert "begins after 64 steps" in recording_notes(RunFolder(tmp_path / "run"), [0])[1]


def test_another_version_is_said(saved: tuple[Path, PPO], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    system = b"- OS: Linux\n- Python: 3.8.10\n- Stable-Baselines3: 1.6.2\n- Gym: 0.21.0\n"
    old = _rewritten(saved[0], tmp_path / "old.zip", stable_baselines3_version=b"1.6.2", system_info=system)
    with caplog.at_level(logging.WARNING, "aitia"):
        assert read_saved_model(old).version == "1.6.2"
    assert "Stable-Baselines3 1.6.2 (Python: 3.8.10, Gym: 0.21.0)" in caplog.text
    assert "Gymnasium" in caplog.text
    folder = _zoo(tmp_path, CONFIG)
    shutil.copy(old, folder / "Corridor-v0.zip")
    caplog.clear()
    with caplog.at_level(logging.WARNING, "aitia"):
        read_zoo_folder(folder)
    assert "1.6.2" in caplog.text


def test_a_policy_that_is_more_than_tensors_is_not_loaded(saved: tuple[Path, PPO], tmp_path: Path) -> None:
    bomb = _rewritten(saved[0], tmp_path / "bomb.zip", policy=pickle.dumps(_Bomb(tmp_path / "bomb"), protocol=2))
    with pytest.raises(InputError, match="tensors alone"):
        read_saved_model(bomb)
    assert not (tmp_path / "bomb").exists()
    (tmp_path / "none.zip").write_text("no zip")
    with pytest.raises(InputError, match="expected a zip"):
        read_saved_model(tmp_path / "none.zip")


def test_names_of_older_versions_are_read_and_shared_layers_refused(tmp_path: Path) -> None:
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}, "net_arch": [4]}
    model = A2C("CnnPolicy", DummyVecEnv([lambda: Kinds("image")]), policy_kwargs=kwargs, device="cpu")
    model.save(tmp_path / "new.zip")
    expected = model.policy.state_dict()
    old = {name: value for name, value in expected.items() if not name.startswith(("pi_features", "vf_features"))}
    torch.save(old, tmp_path / "policy.pth")
    old_zip = _rewritten(tmp_path / "new.zip", tmp_path / "old.zip", policy=(tmp_path / "policy.pth").read_bytes())
    found = read_saved_model(old_zip).parameters
    assert len(old) < len(expected) and found.keys() == expected.keys()
    model.policy.load_state_dict(found)
    torch.save({**old, "mlp_extractor.shared_net.0.weight": torch.zeros(1)}, tmp_path / "policy.pth")
    shared = _rewritten(tmp_path / "new.zip", tmp_path / "shared.zip", policy=(tmp_path / "policy.pth").read_bytes())
    with pytest.raises(InputError, match="actor and critic share"):
        read_saved_model(shared)
