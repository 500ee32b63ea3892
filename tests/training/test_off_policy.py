"""The off-policy recorder: the same run folder, what was drawn as often as it was drawn, and nothing changed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import DQN, PPO, SAC, HerReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_environments import Corridor, Kinds

from aitia.attribution.estimators.window import read_window
from aitia.datasets.arrays import array_format, decode_actions, decode_arrays
from aitia.datasets.errors import EnvironmentError_, InputError, RunFolderError
from aitia.datasets.files.store import RunFolder, read_table, read_tensor_metadata, read_tensors
from aitia.training.agents.spec import AgentSpec
from aitia.training.recording.off_policy import OffPolicyRecorder, RecordingNStepReplayBuffer
from aitia.training.recording.recorder import Recorder

ENVS, STEPS, TOTAL, N_STEPS = 2, 25, 240, 3  # windows of 50 transitions, the last one of 40
KINDS = {
    "dqn, n-step": (DQN, "vector", "discrete", {"n_steps": N_STEPS}),
    "dqn, dictionary": (DQN, "dict", "discrete", {}),
    "sac": (SAC, "vector", "box", {}),
}


def make_model(kind: str) -> OffPolicyAlgorithm:
    """A model whose replay buffer (60 steps) overflows twice, updated every third vector step."""
    algorithm, observe, act, further = KINDS[kind]
    policy = "MultiInputPolicy" if observe == "dict" else "MlpPolicy"
    env = DummyVecEnv([lambda: Kinds(observe, act, intended_error=1.0)] * ENVS)
    model: OffPolicyAlgorithm = algorithm(
        policy, env, seed=0, device="cpu", buffer_size=120, learning_starts=30, batch_size=8, train_freq=3,
        gradient_steps=2, policy_kwargs={"net_arch": [8]}, **further,
    )  # fmt: skip
    return model


class _Spy(BaseCallback):
    """Copies the parameters that chose the actions of every vector step, and their observations."""

    def __init__(self) -> None:
        super().__init__()
        self.parameters: list[dict[str, torch.Tensor]] = []
        self.observations: list[Any] = []

    def _on_step(self) -> bool:
        self.parameters.append({k: v.clone() for k, v in self.model.policy.state_dict().items()})
        self.observations.append(np.array(self.model._last_obs))
        return True


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, _Spy, list[Any]]:
    """A recording of n-step DQN, what a spy saw, and the minibatches that it was trained on."""
    folder, spy, samples = RunFolder(tmp_path_factory.mktemp("run")), _Spy(), []
    original = RecordingNStepReplayBuffer._get_samples

    def copy(self: RecordingNStepReplayBuffer, inds: NDArray[np.int64], env: VecNormalize | None = None) -> Any:
        samples.append(original(self, inds, env))
        return samples[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordingNStepReplayBuffer, "_get_samples", copy)
        make_model("dqn, n-step").learn(TOTAL, callback=CallbackList([OffPolicyRecorder(folder, 0, 50), spy]))
    return folder, spy, samples


@pytest.mark.parametrize("kind", KINDS)
def test_recording_changes_nothing_bit_for_bit(kind: str, tmp_path: Path) -> None:
    folder, recorder = RunFolder(tmp_path), OffPolicyRecorder(tmp_path, 4, 50)
    plain = make_model(kind).learn(TOTAL)
    make_model(kind).learn(TOTAL, callback=recorder)
    assert recorder.published and folder.missing_files(4) == [] and folder.window_count(4) == 5
    final = read_tensors(folder.final_path(4))
    assert plain._n_updates > 20, "nothing was learned: the comparison is empty"
    assert all(torch.equal(final[name], value) for name, value in plain.policy.state_dict().items())


def test_the_minibatches_are_the_rows_that_the_table_says(recorded: tuple[RunFolder, _Spy, list[Any]]) -> None:
    """Observation, action and n-step return of every draw, window by window, against SB3's own samples."""
    folder, _, samples = recorded
    tables = [read_table(folder.transitions_path(0, window)).to_pylist() for window in range(5)]
    row_of = {(r["window"], r["env"], r["step"]): r for table in tables for r in table}
    form = array_format(read_table(folder.transitions_path(0, 0)).schema, "observation")

    def says(draw: dict[str, int]) -> tuple[float, ...]:
        first = draw["collected"] * STEPS + draw["step"]
        rows = [row_of[(first + m) // STEPS, draw["env"], (first + m) % STEPS] for m in range(draw["n"])]
        assert not any(row["terminated"] or row["truncated"] for row in rows[:-1]), "the target leaves its episode"
        observation = np.frombuffer(rows[0]["observation"], form.dtype)
        return (*observation.tolist(), rows[0]["action"], sum(0.99**m * row["reward"] for m, row in enumerate(rows)))

    begin, counts = 0, set()
    for window in range(5):
        draws = read_table(folder.replay_path(0, window)).to_pylist()
        expected = sorted(says(draw) for draw in draws for _ in range(draw["draws"]))
        counts |= {draw["n"] for draw in draws}
        end = begin + len(expected) // 8
        found = [
            (*observation, action, paid)
            for batch in samples[begin:end]
            for observation, (action,), (paid,) in zip(
                batch.observations.tolist(), batch.actions.tolist(), batch.rewards.tolist(), strict=True
            )
        ]
        np.testing.assert_allclose(sorted(found), np.array(expected).reshape(-1, 4), atol=1e-6)
        begin = end
    assert begin == len(samples) and counts == {1, 2, 3}
    assert read_table(folder.replay_path(0, 4))["collected"].to_numpy().min() > 0, "the buffer never overflowed"


def test_transitions_are_in_order_and_checkpoints_are_of_the_first_step(
    recorded: tuple[RunFolder, _Spy, list[Any]],
) -> None:
    folder, spy, _ = recorded
    for window in range(5):
        table = read_table(folder.transitions_path(0, window))
        steps = table.num_rows // ENVS
        assert steps == (STEPS if window < 4 else TOTAL // ENVS - 4 * STEPS)
        found = decode_arrays(table["observation"], array_format(table.schema, "observation"))
        expected = np.stack(spy.observations[window * STEPS : window * STEPS + steps], axis=1)
        np.testing.assert_array_equal(found.reshape(expected.shape), expected)
        checkpoint = read_tensors(folder.checkpoint_path(0, window))
        assert all(torch.equal(checkpoint[k], v) for k, v in spy.parameters[window * STEPS].items())
        assert (table["intended_reward"].to_numpy() == table["reward"].to_numpy() + 1.0).all()
    assert read_tensor_metadata(folder.final_path(0))["algorithm"] == "DQN"


def test_columns_are_those_of_an_on_policy_recording(
    recorded: tuple[RunFolder, _Spy, list[Any]], tmp_path: Path
) -> None:
    env = DummyVecEnv([lambda: Kinds(intended_error=1.0)] * ENVS)
    PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(8, callback=Recorder(tmp_path))
    on_policy = read_table(RunFolder(tmp_path).transitions_path(0, 0))
    off_policy = read_table(recorded[0].transitions_path(0, 0))
    assert {f.name: f.type for f in off_policy.schema} == {f.name: f.type for f in on_policy.schema}
    for name in ("value", "log_prob", "advantage", "return"):
        assert off_policy[name].null_count == off_policy.num_rows
    assert set(map(len, off_policy["minibatches"].to_pylist())) == {0}
    with pytest.raises(RunFolderError, match="td_influence"):
        read_window(recorded[0].transitions_path(0, 0))


def test_box_actions_are_kept_as_the_critic_takes_them(tmp_path: Path) -> None:
    make_model("sac").learn(60, callback=OffPolicyRecorder(tmp_path, 0, 50))
    actions = decode_actions(read_table(RunFolder(tmp_path).transitions_path(0, 0)))
    assert 0.5 < np.abs(actions).max() <= 1.0, "the environment's own bounds are -.5 and .5"


def test_a_nan_reward_names_window_and_step_and_leaves_nothing(tmp_path: Path) -> None:
    model = DQN("MlpPolicy", DummyVecEnv([lambda: Corridor(nan_after=40)]), device="cpu", learning_starts=10)
    recorder = OffPolicyRecorder(tmp_path / "run", window=16)
    with pytest.raises(EnvironmentError_, match=r"window 2, env 0, step 8.*nan"):
        model.learn(100, callback=recorder)
    recorder.discard()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_what_cannot_be_recorded_is_refused_with_the_reason(tmp_path: Path) -> None:
    corridor = DummyVecEnv([Corridor])
    with pytest.raises(InputError, match=r"given DQN.*off_policy\.OffPolicyRecorder"):
        DQN("MlpPolicy", corridor, device="cpu").learn(1, callback=Recorder(tmp_path))
    with pytest.raises(InputError, match=r"given PPO.*recorder\.Recorder"):
        PPO("MlpPolicy", corridor, device="cpu").learn(1, callback=OffPolicyRecorder(tmp_path))
    with pytest.raises(InputError, match="VecNormalize"):
        DQN("MlpPolicy", VecNormalize(corridor), device="cpu").learn(1, callback=OffPolicyRecorder(tmp_path))
    with pytest.raises(InputError, match="window=0"):
        OffPolicyRecorder(tmp_path, window=0)
    model = DQN("MlpPolicy", corridor, device="cpu")
    model.learn(8, callback=OffPolicyRecorder(tmp_path))
    with pytest.raises(InputError, match="already holds 8 steps"):
        model.learn(8, callback=OffPolicyRecorder(tmp_path, 1))
    hindsight = DQN("MlpPolicy", corridor, device="cpu")
    hindsight.replay_buffer = object.__new__(HerReplayBuffer)
    with pytest.raises(InputError, match="HerReplayBuffer"):
        hindsight.learn(1, callback=OffPolicyRecorder(tmp_path))


@pytest.mark.parametrize("name", ["DQN", "SAC"])
def test_a_task_refuses_off_policy_agents_and_says_what_is_possible(name: str) -> None:
    expected = re.compile(rf"`{name}`.*PPO.*OffPolicyRecorder.*td_influence.*off-policy\.md", re.DOTALL)
    with pytest.raises(ValueError, match=expected):
        AgentSpec(algorithm=name)


def test_an_algorithm_that_never_updates_has_empty_draws(tmp_path: Path) -> None:
    model = DQN("MlpPolicy", DummyVecEnv([Corridor]), device="cpu", learning_starts=100)
    model.learn(20, callback=OffPolicyRecorder(tmp_path))
    draws: pa.Table = read_table(RunFolder(tmp_path).replay_path(0, 0))
    assert draws.num_rows == 0 and "draws" in draws.column_names
