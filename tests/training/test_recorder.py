"""The recorder: what it writes is what Stable-Baselines3 learned from, and recording changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_environments import Corridor

from aitia.datasets.arrays import array_format, decode_arrays
from aitia.datasets.errors import EnvironmentError_, InputError
from aitia.datasets.files.store import RunFolder, read_table, read_tensor_metadata, read_tensors
from aitia.datasets.schema import metadata_of
from aitia.training.agents.spec import AgentSpec
from aitia.training.environments.spec import EnvSpec
from aitia.training.recording.buffers import Membership
from aitia.training.recording.recorder import Recorder
from aitia.training.retraining.live import train_agent, train_recorded

STEPS, ENVS, EPOCHS, BATCH = 16, 3, 2, 12
SPEC = AgentSpec(
    total_timesteps=4 * STEPS * ENVS, n_envs=ENVS,
    hyperparameters={"n_steps": STEPS, "batch_size": BATCH, "n_epochs": EPOCHS, "gamma": 0.9, "gae_lambda": 0.8},
)  # fmt: skip
CORRIDOR = EnvSpec("toy_environments:Corridor", {"step_reward": 0.1, "limit": 3, "length": 6})


class _Spy(BaseCallback):
    """Copies SB3's rollout buffer, and the parameters that collected it, at the end of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[dict[str, NDArray[Any]]] = []
        self.parameters: list[dict[str, torch.Tensor]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        names = (
            "observations",
            "actions",
            "rewards",
            "values",
            "log_probs",
            "advantages",
            "returns",
            "episode_starts",
        )
        flat = {name: getattr(buffer, name).swapaxes(0, 1).reshape(STEPS * ENVS, -1).copy() for name in names}
        self.buffers.append(flat)
        self.parameters.append({k: v.clone() for k, v in self.model.policy.state_dict().items()})


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, _Spy]:
    folder, spy = RunFolder(tmp_path_factory.mktemp("run")), _Spy()
    train_agent(SPEC, CORRIDOR, 3, callback=CallbackList([Recorder(folder, 3), spy]))
    return folder, spy


def test_every_row_equals_sb3s_own_rollout_buffer(recorded: tuple[RunFolder, _Spy]) -> None:
    folder, spy = recorded
    assert folder.window_count(3) == len(spy.buffers) == 4
    for window, buffer in enumerate(spy.buffers):
        table = read_table(folder.transitions_path(3, window))
        columns = {"value": "values", "log_prob": "log_probs", "advantage": "advantages", "return": "returns"}
        for column, name in {**columns, "action": "actions"}.items():
            np.testing.assert_array_equal(table[column].to_numpy(), buffer[name][:, 0], err_msg=column)
        observations = decode_arrays(table["observation"], array_format(table.schema, "observation"))
        np.testing.assert_array_equal(observations, buffer["observations"])
        assert table["env"].to_pylist() == sorted(table["env"].to_pylist()), "row is env * n_steps + step"
        assert table["step"].to_pylist() == list(range(STEPS)) * ENVS


def test_rewards_are_the_environments_own_and_not_bootstrapped_ones(recorded: tuple[RunFolder, _Spy]) -> None:
    """SB3 adds gamma V(terminal) to its rewards where the time limit ends an episode, in place."""
    folder, spy = recorded
    tables = [read_table(folder.transitions_path(3, window)) for window in range(4)]
    truncated = np.concatenate([t["truncated"].to_numpy() for t in tables])
    recorded_rewards = np.concatenate([t["reward"].to_numpy() for t in tables])
    learned = np.concatenate([b["rewards"][:, 0] for b in spy.buffers])
    assert truncated.sum() > 5
    assert (learned[truncated] != recorded_rewards[truncated].astype(np.float32)).all(), "the test is blind"
    np.testing.assert_array_equal(recorded_rewards[~truncated].astype(np.float32), learned[~truncated])
    assert set(np.round(recorded_rewards, 5)) <= {0.1, 1.1}


def test_a_reward_as_intended_is_not_wrong_by_rounding(recorded: tuple[RunFolder, _Spy]) -> None:
    """0.1 in float32 is not 0.1: paid and intended must be rounded alike."""
    table = read_table(recorded[0].transitions_path(3, 0))
    np.testing.assert_array_equal(table["reward"].to_numpy(), table["intended_reward"].to_numpy())


def test_checkpoints_are_the_parameters_that_collected_the_window(recorded: tuple[RunFolder, _Spy]) -> None:
    folder, spy = recorded
    for window, expected in enumerate(spy.parameters):
        found = read_tensors(folder.checkpoint_path(3, window))
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_recording_changes_nothing_bit_for_bit(recorded: tuple[RunFolder, _Spy]) -> None:
    plain = train_agent(SPEC, CORRIDOR, 3)
    final = read_tensors(recorded[0].final_path(3))
    assert all(torch.equal(final[name], value) for name, value in plain.policy.state_dict().items())


def test_every_epoch_uses_every_row_once_in_minibatches_of_the_right_size(
    recorded: tuple[RunFolder, _Spy],
) -> None:
    for window in range(4):
        epochs = np.array(read_table(recorded[0].transitions_path(3, window))["minibatches"].to_pylist())
        assert epochs.shape == (STEPS * ENVS, EPOCHS)
        for epoch in epochs.T:
            assert np.bincount(epoch).tolist() == [BATCH] * (STEPS * ENVS // BATCH)
        assert (epochs[:, 0] != epochs[:, 1]).any()


def test_minibatches_are_the_ones_that_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[NDArray[np.float32]] = []
    original = Membership._get_samples

    def spy(self: Membership, batch_inds: NDArray[np.int64], *rest: Any) -> Any:
        samples = original(self, batch_inds, *rest)
        used.append(samples.old_log_prob.numpy().copy())
        return samples

    monkeypatch.setattr(Membership, "_get_samples", spy)
    folder = RunFolder(tmp_path)
    train_recorded(SPEC, CORRIDOR, 0, folder)
    table = read_table(folder.transitions_path(0, 1))
    epochs, log_prob = np.array(table["minibatches"].to_pylist()), table["log_prob"].to_numpy()
    per_epoch = STEPS * ENVS // BATCH
    for epoch in range(EPOCHS):
        for batch in range(per_epoch):
            trained = used[per_epoch * EPOCHS + epoch * per_epoch + batch]
            np.testing.assert_array_equal(np.sort(log_prob[epochs[:, epoch] == batch]), np.sort(trained))


def test_episodes_are_unique_and_continue_across_windows(recorded: tuple[RunFolder, _Spy]) -> None:
    tables = [read_table(recorded[0].transitions_path(3, window)) for window in range(4)]
    last: dict[int, tuple[int, int, bool]] = {}
    seen: set[int] = set()
    crossed = 0
    for window, table in enumerate(tables):
        for row in table.select(["env", "step", "episode", "t", "terminated", "truncated"]).to_pylist():
            before = last.get(row["env"])
            if before is None or before[2]:
                assert row["t"] == 0 and row["episode"] not in seen
            else:
                assert (row["episode"], row["t"]) == (before[0], before[1] + 1)
                crossed += row["step"] == 0 and window > 0
            seen.add(row["episode"])
            last[row["env"]] = (row["episode"], row["t"], row["terminated"] or row["truncated"])
    assert crossed > 0, "no episode crossed a window: the test is blind"


def test_outcome_stands_on_the_last_row_of_an_episode_only(recorded: tuple[RunFolder, _Spy]) -> None:
    table = read_table(recorded[0].transitions_path(3, 0))
    ended = table["terminated"].to_numpy() | table["truncated"].to_numpy()
    assert [outcome is not None for outcome in table["outcome"].to_pylist()] == ended.tolist()


def test_three_lines_record_any_script_and_vecnormalize_is_undone(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv([lambda: Corridor(step_reward=0.25)] * 2), clip_reward=0.5)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
    recorder = Recorder(tmp_path / "mine", seed=7)
    model.learn(128, callback=recorder)
    assert recorder.published
    folder = RunFolder(tmp_path / "mine")
    table = read_table(folder.transitions_path(7, 1))
    assert set(table["reward"].to_pylist()) <= {0.25, 1.25}, "raw rewards, not VecNormalize's"
    scale = table["reward_scale"].to_numpy()
    assert (scale == 0).any() and ((scale > 0) & (scale != 1)).any(), "clipped rewards have scale 0"
    assert "vecnormalize.return.var" in read_tensors(folder.checkpoint_path(7, 1))


def test_a_recorder_records_one_training(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", DummyVecEnv([Corridor]), n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    recorder = Recorder(tmp_path, seed=0)
    model.learn(16, callback=recorder)
    with pytest.raises(InputError, match="one `learn` a recorder"):
        model.learn(16, callback=recorder)
    assert RunFolder(tmp_path).missing_files(0) == [], "the first recording must stay whole"


def test_a2c_is_recorded_without_advantage_normalisation(tmp_path: Path) -> None:
    spec = AgentSpec(algorithm="A2C", total_timesteps=30, n_envs=2, hyperparameters={"n_steps": 5})
    folder = RunFolder(tmp_path)
    assert train_recorded(spec, CORRIDOR, 0, folder) == 3
    table = read_table(folder.transitions_path(0, 0))
    assert metadata_of(table.schema)["normalize_advantage"] == "false"
    assert read_tensor_metadata(folder.final_path(0))["algorithm"] == A2C.__name__


def test_a_nan_reward_names_window_and_step_and_leaves_nothing(tmp_path: Path) -> None:
    env = EnvSpec("toy_environments:Corridor", {"nan_after": 40})
    with pytest.raises(EnvironmentError_, match=r"window 2, env 0, step 8.*nan"):
        train_recorded(SPEC, env, 0, RunFolder(tmp_path / "run"))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_components_are_recorded_as_columns(tmp_path: Path) -> None:
    env = EnvSpec("toy_environments:Corridor", {"components": 1.0})
    folder = RunFolder(tmp_path)
    train_recorded(SPEC, env, 0, folder)
    table = read_table(folder.transitions_path(0, 0))
    np.testing.assert_allclose(table["component_a"].to_numpy() + table["component_b"].to_numpy(), table["reward"])
