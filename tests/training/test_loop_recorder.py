"""The recorder of loops writes what `Recorder` writes, and takes no rows that its policy does not explain."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn
from toy_environments import Corridor, Kinds

from aitia.attribution.estimators.window import read_window
from aitia.datasets.arrays import array_format, decode_actions, decode_arrays
from aitia.datasets.errors import EnvironmentError_, InputError, RunFolderError
from aitia.datasets.files.store import RunFolder, read_table, read_tensor_metadata, read_tensors
from aitia.datasets.schema import metadata_of
from aitia.training.agents.advantages import generalised_advantages
from aitia.training.recording.loop import LoopRecorder
from aitia.training.recording.recorder import Recorder
from aitia.workflows.runs.adopt import require_fits
from aitia.workflows.runs.task import make_task
from aitia.workflows.runs.task_source import load_task

STEPS, ENVS = 16, 3
GAMMA, LAMBDA = 0.9, 0.8


class _Relay(BaseCallback):
    """Hands every step of an SB3 training to a loop recorder."""

    def __init__(self, out: Path) -> None:
        super().__init__()
        self.out = out

    def _model(self) -> OnPolicyAlgorithm:
        assert isinstance(self.model, OnPolicyAlgorithm)
        return self.model

    def _on_training_start(self) -> None:
        self.loop = LoopRecorder(
            self.out, 4, policy=self._model().policy, gamma=GAMMA, gae_lambda=LAMBDA, n_envs=ENVS, algorithm="PPO"
        )
        self.epochs: list[NDArray[np.int32]] | None = None

    def _on_rollout_start(self) -> None:
        if self.epochs is not None:
            self._update(self.epochs)

    def _on_step(self) -> bool:
        found = self.locals
        infos, done = found["infos"], found["dones"]
        cut = np.array([info.get("TimeLimit.truncated", False) for info in infos])
        after = _parts(found["new_obs"])
        for index in np.flatnonzero(done):
            for key, value in _parts(infos[index]["terminal_observation"]).items():
                after[key][index] = value
        observed = _parts(found["obs_tensor"])
        self.loop.step(
            observed.get("", observed), found["actions"], found["rewards"], done & ~cut, cut,
            infos, after.get("", after), log_prob=found["log_probs"], value=found["values"],
        )  # fmt: skip
        return True

    def _on_rollout_end(self) -> None:
        self.epochs = getattr(self._model().rollout_buffer, "membership")  # noqa: B009 (filled by the update)

    def _update(self, epochs: list[NDArray[np.int32]]) -> None:
        self.loop.update([[_as_recorded(np.flatnonzero(e == k)) for k in range(int(e.max()) + 1)] for e in epochs])

    def _on_training_end(self) -> None:
        assert self.epochs is not None
        self._update(self.epochs)
        self.loop.__exit__(None, None, None)


def _parts(observed: Any) -> dict[str, Any]:
    found = observed if isinstance(observed, dict) else {"": observed}
    return {key: value.numpy() if isinstance(value, Tensor) else np.array(value) for key, value in found.items()}


def _as_recorded(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    return rows % STEPS * ENVS + rows // STEPS


def _both(folder: Path, policy: str, make: Callable[[], gym.Env[Any, Any]]) -> tuple[RunFolder, RunFolder]:
    model = PPO(
        policy, DummyVecEnv([make] * ENVS), n_steps=STEPS, batch_size=12, n_epochs=2, gamma=GAMMA, gae_lambda=LAMBDA,
        seed=0, device="cpu",
    )  # fmt: skip
    model.learn(3 * STEPS * ENVS, CallbackList([_Relay(folder / "loop"), Recorder(folder / "sb3", 4)]))
    return RunFolder(folder / "loop"), RunFolder(folder / "sb3")


@pytest.mark.parametrize(
    ("policy", "make"),
    [
        ("MlpPolicy", lambda: Corridor(step_reward=0.1, limit=3, length=6)),
        ("MlpPolicy", lambda: Kinds(act="box", intended_error=0.3)),
        ("MlpPolicy", lambda: Kinds(act="multi")),
    ],
    ids=["corridor", "box", "multi-discrete"],
)
def test_the_tables_equal_those_of_the_recorder(
    policy: str, make: Callable[[], gym.Env[Any, Any]], tmp_path: Path
) -> None:
    loop, sb3 = _both(tmp_path, policy, make)
    assert loop.window_count(4) == sb3.window_count(4) == 3
    truncations = 0
    for window in range(3):
        found, expected = (read_table(folder.transitions_path(4, window)) for folder in (loop, sb3))
        assert found.schema.equals(expected.schema) and found.column_names == expected.column_names
        for name in expected.column_names:
            if name in ("advantage", "return"):  # V(terminal) of several states at once: the last digits
                np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-5, atol=1e-6)
            else:
                assert found[name].equals(expected[name]), name
        given, wanted = metadata_of(found.schema), metadata_of(expected.schema)
        assert given == wanted
        truncations += int(np.sum(found["truncated"].to_numpy()))
        first, second = (read_tensors(folder.checkpoint_path(4, window)) for folder in (loop, sb3))
        assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    if policy == "MlpPolicy" and make().spec is None and isinstance(make(), Corridor):
        assert truncations > 5, "no time limit: the test is blind"
    final, wanted_final = (read_tensors(folder.final_path(4)) for folder in (loop, sb3))
    assert all(torch.equal(final[name], value) for name, value in wanted_final.items())
    assert read_tensor_metadata(loop.final_path(4))["algorithm"] == "PPO"


def test_a_loop_that_is_ppo_is_taken_for_a_training_of_a_task(tmp_path: Path) -> None:
    loop, _ = _both(tmp_path, "MlpPolicy", lambda: Corridor(step_reward=0.1))
    hyperparameters = {"n_steps": STEPS, "batch_size": 12, "n_epochs": 2, "gamma": GAMMA, "gae_lambda": LAMBDA}
    values = {
        "name": "loop", "env": "toy_environments:Corridor", "train_kwargs": {"step_reward": 0.1}, "seeds": [4],
        "outcomes": {"desired": ["goal"], "misbehaved": ["pit"]},
        "agent": {"total_timesteps": 3 * STEPS * ENVS, "n_envs": ENVS, "hyperparameters": hyperparameters},
    }  # fmt: skip
    require_fits(loop, make_task(values, "a test"), 4)
    other = {**values, "agent": {**values["agent"], "n_envs": 2}}  # type: ignore[dict-item]
    with pytest.raises(RunFolderError, match="n_envs 3, the task has 2"):
        require_fits(loop, make_task(other, "a test"), 4)


def test_a_loop_that_is_ppo_leaves_a_task_with_what_its_recording_shows(tmp_path: Path) -> None:
    loop, sb3 = _both(tmp_path, "MlpPolicy", lambda: Corridor(step_reward=0.1))
    told = (loop.root / "task.yaml").read_text()
    assert "env: FILL_IN  # the environment of the loop" in told
    values = {
        "env": "toy_environments:Corridor", "train_kwargs": "{step_reward: 0.1}", "test_kwargs": "{step_reward: 0.1}",
        "learning_rate": "0.0003", "ent_coef": "0.0", "clip_range": "0.2", "max_grad_norm": "0.5",
    }  # fmt: skip
    for name, value in values.items():
        assert f"{name}: FILL_IN" in told
        told = told.replace(f"{name}: FILL_IN", f"{name}: {value}")
    told = told.replace("desired: [FILL_IN]", "desired: [goal]").replace("misbehaved: [FILL_IN]", "misbehaved: [pit]")
    (loop.root / "filled.yaml").write_text(told)
    task = load_task(loop.root / "filled.yaml")
    require_fits(loop, task, 4)
    require_fits(sb3, task, 4)


class _Tabular(nn.Module):
    """Logits and values of a corridor, linear in what is observed."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.logits, self.values = nn.Linear(2, 2), nn.Linear(2, 1)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.log_softmax(self.logits(observations), -1).gather(-1, actions[:, None])[:, 0]

    def value(self, observations: Tensor) -> Tensor:
        values: Tensor = self.values(observations)[:, 0]
        return values


def _play(recorder: LoopRecorder, policy: _Tabular, env: gym.Env[Any, Any], steps: int, wrong: float = 0.0) -> None:
    observation, _ = env.reset(seed=0)
    for step in range(steps):
        seen, action = torch.as_tensor(observation)[None], torch.tensor([step % 2])
        after, reward, terminated, truncated, info = env.step(int(action))
        recorder.step(
            observation, int(action), reward, terminated, truncated, info, after,
            log_prob=policy.log_prob(seen, action)[0] + wrong, value=policy.value(seen)[0],
        )  # fmt: skip
        observation = env.reset()[0] if terminated or truncated else after


def test_a_loop_of_one_environment_is_read_by_the_attribution(tmp_path: Path) -> None:
    policy = _Tabular()
    with LoopRecorder(tmp_path, 2, policy=policy) as recorder:
        for _ in range(2):
            before = {name: value.clone() for name, value in policy.state_dict().items()}
            _play(recorder, policy, Corridor(intended_error=0.5), 10)
            with torch.no_grad():
                policy.logits.weight.add_(1.0)
            recorder.update([[[0, 1, 2, 3], [4, 5, 6, 7, 8]], [np.arange(10)]])
        assert not recorder.published
    assert recorder.published and not list((tmp_path / ".parts" / "train").iterdir())
    folder = RunFolder(tmp_path)
    assert folder.missing_files(2) == [] and folder.window_count(2) == 2
    window = read_window(folder.transitions_path(2, 1))
    assert window.intended is not None and window.signal.minibatches is not None
    np.testing.assert_allclose(window.intended - window.reward, 0.5)
    assert window.signal.minibatches[:, 0].tolist() == [0] * 4 + [1] * 5 + [-1]
    collected = read_tensors(folder.checkpoint_path(2, 1))
    assert all(torch.equal(collected[name], value) for name, value in before.items()), "not those that collected"
    final = read_tensors(folder.final_path(2))
    assert all(torch.equal(final[name], value) for name, value in policy.state_dict().items())


def test_a_log_probability_that_is_not_the_policys_is_refused_and_nothing_is_left(tmp_path: Path) -> None:
    policy = _Tabular()
    with (
        pytest.raises(InputError, match=r"window 0.*row 0.*recorded as .* the policy gives"),
        LoopRecorder(tmp_path / "run", policy=policy) as recorder,
    ):
        _play(recorder, policy, Corridor(), 6, wrong=0.01)
        recorder.update()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_parameters_that_change_inside_a_window_are_found(tmp_path: Path) -> None:
    policy = _Tabular()
    with pytest.raises(InputError, match="call update\\(\\) after"), LoopRecorder(tmp_path, policy=policy) as recorder:
        _play(recorder, policy, Corridor(), 4)
        with torch.no_grad():
            policy.logits.weight.mul_(2.0)
        _play(recorder, policy, Corridor(), 4)
        recorder.update()


@pytest.mark.parametrize(
    ("minibatches", "message"),
    [([[[0, 99]]], "from 0 to 5"), ([[[0], [0]]], "at most once an epoch"), ([[[0.5]]], "expected transitions")],
)
def test_minibatches_that_cannot_be_are_refused(minibatches: Any, message: str, tmp_path: Path) -> None:
    policy = _Tabular()
    with pytest.raises(InputError, match=message), LoopRecorder(tmp_path, policy=policy) as recorder:
        _play(recorder, policy, Corridor(), 6)
        recorder.update(minibatches)


def test_advantages_of_ones_own_need_no_values(tmp_path: Path) -> None:
    policy = _Tabular()
    with LoopRecorder(tmp_path, policy=policy, normalize_advantage=False) as recorder:
        recorder.step([0.5, 1.0], 1, 0.0, False, False, {}, [0.75, 1.0], log_prob=_said(policy))
        recorder.step([0.5, 1.0], 1, 1.0, True, False, {"outcome": "goal"}, [1.0, 1.0], log_prob=_said(policy))
        recorder.update(advantages=[2.0, 1.0])
    table = read_table(RunFolder(tmp_path).transitions_path(0, 0))
    assert table["advantage"].to_pylist() == [2.0, 1.0]
    assert table["value"].null_count == table["return"].null_count == 2
    assert table["observation"].type.byte_width == 8, "in the precision of the policy"


@pytest.mark.parametrize(("name", "values"), [("advantages", [1.0, 2.0, 3.0]), ("returns", [[1.0, 2.0]])])
def test_numbers_of_another_length_than_the_window_are_refused(name: str, values: Any, tmp_path: Path) -> None:
    policy = _Tabular()
    shapes = rf"{name} of shape \[.*\] were given, expected \[1, 1\]"
    with pytest.raises(InputError, match=shapes), LoopRecorder(tmp_path, policy=policy) as loop:
        loop.step([0.5, 1.0], 1, 0.0, False, False, {}, [0.75, 1.0], log_prob=_said(policy), value=0.0)
        loop.update(**{name: values})


def test_numbers_of_environment_by_step_are_not_taken_for_those_of_step_by_environment(tmp_path: Path) -> None:
    policy, two = _Tabular(), [[0.5, 1.0], [0.5, 1.0]]
    with (
        pytest.raises(InputError, match=r"advantages of shape \[2, 3\] were given, expected \[3, 2\]"),
        LoopRecorder(tmp_path, policy=policy, n_envs=2) as loop,
    ):
        for _ in range(3):
            over = [False, False]
            loop.step(
                two,
                [1, 1],
                [0.0, 0.0],
                over,
                over,
                [{}, {}],
                two,
                log_prob=_said(policy).detach().expand(2),
                value=[0, 0],
            )
        loop.update(advantages=np.arange(6).reshape(3, 2).T)


class _Continuous(_Tabular):
    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        return -actions.reshape(-1).square()


def test_a_continuous_action_is_a_vector_also_of_one_number(tmp_path: Path) -> None:
    """As numbers they would be kept as whole numbers, like choices."""
    with (
        pytest.raises(InputError, match=r"floats of shape \[1, 1\], expected \[1, 1, 'K'\]"),
        LoopRecorder(tmp_path / "number", policy=_Continuous()) as loop,
    ):
        loop.step([0.5, 1.0], 0.5, 0.0, False, False, {}, [0.75, 1.0], log_prob=-0.25, value=0.0)
        loop.update()
    with LoopRecorder(tmp_path / "vector", policy=_Continuous()) as loop:
        loop.step([0.5, 1.0], [0.5], 0.0, False, False, {}, [0.75, 1.0], log_prob=-0.25, value=0.0)
        loop.update()
    assert decode_actions(read_table(RunFolder(tmp_path / "vector").transitions_path(0, 0))).tolist() == [[0.5]]


def test_advantages_are_estimated_as_stable_baselines_does_to_the_last_bit() -> None:
    draws = np.random.default_rng(0)
    rewards, value = (draws.normal(size=(40, 3)).astype(np.float32) for _ in range(2))
    ended, following = draws.random((40, 3)) < 0.2, draws.normal(size=3).astype(np.float32)
    buffer = RolloutBuffer(40, spaces.Discrete(2), spaces.Discrete(2), gamma=GAMMA, gae_lambda=LAMBDA, n_envs=3)
    buffer.rewards, buffer.values = rewards, value
    buffer.episode_starts[1:] = ended[:-1]
    buffer.compute_returns_and_advantage(torch.as_tensor(following), ended[-1])
    estimated = generalised_advantages(rewards, value, ended, following, GAMMA, LAMBDA)
    np.testing.assert_array_equal(estimated, buffer.advantages)


def _said(policy: _Tabular) -> Tensor:
    return policy.log_prob(torch.tensor([[0.5, 1.0]]), torch.tensor([1]))[0]


def test_a_step_without_value_or_advantages_is_refused(tmp_path: Path) -> None:
    policy = _Tabular()
    with pytest.raises(InputError, match="expected one with every step"), LoopRecorder(tmp_path, policy=policy) as loop:
        loop.step([0.5, 1.0], 1, 0.0, False, False, {}, [0.75, 1.0], log_prob=_said(policy))
        loop.update()


def test_a_vector_environment_tells_the_last_step_of_an_episode_in_final_info(tmp_path: Path) -> None:
    policy = _Tabular()
    vector = SyncVectorEnv(
        [lambda: Corridor(intended_error=1.0)] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )  # fmt: skip
    with LoopRecorder(tmp_path, policy=policy, n_envs=2) as recorder:
        observations, _ = vector.reset(seed=0)
        for step in range(5):
            seen, actions = torch.as_tensor(observations), torch.tensor([1, step % 2])
            after, rewards, terminated, truncated, infos = vector.step(actions.numpy())
            recorder.step(
                observations, actions, rewards, terminated, truncated, infos, after,
                log_prob=policy.log_prob(seen, actions), value=policy.value(seen),
            )  # fmt: skip
            observations = after
        recorder.update()
    vector.close()
    table = read_table(RunFolder(tmp_path).transitions_path(0, 0))
    assert table["outcome"].to_pylist() == [None, "goal", None, "goal", *[None] * 6]
    assert table["intended_reward"].to_pylist() == [1.0, 2.0, 1.0, 2.0, *[1.0] * 6]
    ends = np.frombuffer(table["next_observation"][1].as_py(), np.float32)
    assert ends[0] == 1.0, "the last observation of the episode, not the first of the next"


def test_what_the_contract_forbids_names_the_step(tmp_path: Path) -> None:
    policy = _Tabular()
    with (
        pytest.raises(EnvironmentError_, match=r"window 0, env 0, step 5.*outcome"),
        LoopRecorder(tmp_path, policy=policy) as recorder,
    ):
        _play(recorder, policy, Corridor(tell=()), 6)


def test_a_policy_that_says_no_log_probabilities_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"log_prob\(observations, actions\)"):
        LoopRecorder(tmp_path, policy=nn.Linear(2, 2))


class _OfDict(_Tabular):
    def log_prob(self, observations: Any, actions: Tensor) -> Tensor:
        return super().log_prob(observations["vector"], actions)

    def value(self, observations: Any) -> Tensor:
        return super().value(observations["vector"])


def test_dictionaries_of_images_are_kept_as_the_policy_got_them(tmp_path: Path) -> None:
    policy, env = _OfDict(), Kinds(observe="dict")
    with LoopRecorder(tmp_path, policy=policy) as recorder:
        observation, _ = env.reset(seed=0)
        for _ in range(2):
            after, reward, terminated, truncated, info = env.step(np.int64(1))
            seen = {"vector": torch.as_tensor(observation["vector"])[None]}
            chosen = torch.tensor([1])
            recorder.step(
                observation, 1, reward, terminated, truncated, info, after,
                log_prob=policy.log_prob(seen, chosen)[0], value=policy.value(seen)[0],
            )  # fmt: skip
            observation = after
        recorder.update()
    table = read_table(RunFolder(tmp_path).transitions_path(0, 0))
    form = array_format(table.schema, "observation")
    kept = decode_arrays(table["observation"], form)
    assert kept["image"].shape == (2, 36, 40, 1) and kept["cell"].tolist() == [2, 3]
    assert table["next_observation"].null_count == 1
    (last,) = decode_arrays(table["next_observation"].combine_chunks().drop_null(), form)
    assert list(kept.dtype.names or ()) == list(observation), "keys in another order than the environment's"
    for key, value in observation.items():
        np.testing.assert_array_equal(last[key], value, err_msg="read in another order of keys than it was written in")
