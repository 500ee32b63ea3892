"""Whatever stands between environment and learner: the rewards recorded are those that the environment paid.

The corridor pays 1 at the goal and nothing else, and the outcome is told apart from the reward: every row has to agree.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pytest
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize
from toy_environments import Kinds, Masked

from aitia.datasets.arrays import array_format, decode_arrays
from aitia.datasets.files.store import RunFolder, read_table, read_tensors
from aitia.training.recording.recorder import Recorder

STEPS, ENVS, WINDOWS = 16, 2, 3
LIMIT = 5
SMALL_CNN: dict[str, Any] = {"features_extractor_kwargs": {"features_dim": 8}}


class _Learned(BaseCallback):
    """Keeps the rewards in the rollout buffer, those that the agent learns from, row = env * n_steps + step."""

    def __init__(self) -> None:
        super().__init__()
        self.rewards: list[NDArray[np.float32]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.model.rollout_buffer  # type: ignore[attr-defined]
        self.rewards.append(buffer.rewards.swapaxes(0, 1).reshape(-1).copy())


class Run:
    """A recorded training of a script: all its transitions, and the rewards that were learned from."""

    def __init__(
        self, folder: Path, env: VecEnv, policy: str = "MlpPolicy", algorithm: Any = PPO, **kwargs: Any
    ) -> None:
        learned = _Learned()
        sizes = {} if algorithm is A2C else {"batch_size": STEPS * ENVS, "n_epochs": 1}
        model = algorithm(policy, env, n_steps=STEPS, seed=1, device="cpu", **sizes, **kwargs)
        model.learn(WINDOWS * STEPS * ENVS, callback=CallbackList([Recorder(folder), learned]))
        env.close()
        self.folder = RunFolder(folder)
        self.table = pa.concat_tables(
            read_table(self.folder.transitions_path(0, w)).drop_columns("minibatches") for w in range(WINDOWS)
        )
        self.learned = np.concatenate(learned.rewards)
        self.reward = self.table["reward"].to_numpy()
        self.truncated = self.table["truncated"].to_numpy()

    @property
    def observations(self) -> NDArray[Any]:
        return decode_arrays(self.table["observation"], array_format(self.table.schema, "observation"))

    def require_raw(self) -> None:
        """Every reward is what the environment paid, told by the outcome, and intended rewards are apart by 0.5."""
        assert (self.reward == 1.0).any() and self.truncated.any(), "nothing was paid or cut short: the test is blind"
        np.testing.assert_array_equal(self.reward, np.array(self.table["outcome"].to_pylist()) == "goal")
        np.testing.assert_array_equal(self.table["intended_reward"].to_numpy(), self.reward + 0.5)

    def require_changed(self) -> None:
        """What was learned from is something else, on other rows than those cut short too."""
        assert (self.learned[~self.truncated] != self.reward[~self.truncated]).any(), "the test is blind"


def make(kind: type[Kinds] = Kinds, limit: int | None = None, **kwargs: Any) -> gym.Env[Any, Any]:
    env = kind(intended_error=0.5, **kwargs)
    return env if limit is None else TimeLimit(Outspoken(env, limit), limit)


class Outspoken(gym.Wrapper[Any, Any, Any, Any]):
    """Tells the outcome `timeout` with the step at which a time limit cuts an episode short."""

    def __init__(self, env: gym.Env[Any, Any], limit: int) -> None:
        super().__init__(env)
        self.limit = limit

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if info["context"] == self.limit:
            info = {"outcome": "timeout", **info}
        return observation, reward, terminated, truncated, info


def several(**kwargs: Any) -> list[Callable[[], gym.Env[Any, Any]]]:
    return [partial(make, **kwargs) for _ in range(ENVS)]


def test_vecnormalize_of_rewards_and_observations(tmp_path: Path) -> None:
    run = Run(tmp_path, VecNormalize(DummyVecEnv(several())))
    run.require_raw()
    run.require_changed()
    assert "vecnormalize.observation.mean" in read_tensors(run.folder.final_path(0))
    assert np.abs(run.observations).max() > 1.0, "observations are kept as the policy saw them"


def test_vecnormalize_of_dictionary_observations(tmp_path: Path) -> None:
    env = VecNormalize(DummyVecEnv(several(observe="dict")), norm_obs_keys=["vector"])
    run = Run(tmp_path, env, "MultiInputPolicy", policy_kwargs={"features_extractor_kwargs": {"cnn_output_dim": 8}})
    run.require_raw()
    run.require_changed()
    statistics = {name for name in read_tensors(run.folder.final_path(0)) if name.startswith("vecnormalize.")}
    assert statistics == {f"vecnormalize.{of}.{n}" for of in ("return", "observation.vector") for n in ("mean", "var")}
    assert run.observations["image"].dtype == np.uint8 and np.abs(run.observations["vector"]).max() > 1.0


def test_vecframestack_of_vectors_inside_vecnormalize(tmp_path: Path) -> None:
    run = Run(tmp_path, VecFrameStack(VecNormalize(DummyVecEnv(several()), norm_obs=False), 3))
    run.require_raw()
    run.require_changed()
    assert run.observations.shape[1:] == (6,)
    inside = np.flatnonzero((run.table["t"].to_numpy() > 0) & (run.table["step"].to_numpy() > 0))
    np.testing.assert_array_equal(run.observations[inside, 2:4], run.observations[inside - 1, 4:6])


def test_image_observations_with_channels_last_also_stacked(tmp_path: Path) -> None:
    env = VecFrameStack(DummyVecEnv(several(observe="image")), 2)
    run = Run(tmp_path, env, "CnnPolicy", policy_kwargs=SMALL_CNN)
    run.require_raw()
    assert run.observations.shape[1:] == (2, 36, 40), "channels first, as the policy sees them"
    following = run.table["next_observation"].drop_null()
    assert len(following) and {len(value.as_py()) for value in following} == {2 * 36 * 40}


@pytest.mark.parametrize(
    ("algorithm", "kind", "policy"),
    [(PPO, Kinds, "MlpPolicy"), (A2C, Kinds, "MlpPolicy"), (MaskablePPO, Masked, "MlpPolicy"),
     (RecurrentPPO, Kinds, "MlpLstmPolicy")],
)  # fmt: skip
def test_values_at_a_time_limit_do_not_leak(algorithm: Any, kind: Any, policy: str, tmp_path: Path) -> None:
    """Every algorithm adds gamma V(terminal) where a time limit ends an episode, in the array that a callback sees."""
    kwargs: dict[str, Any] = {"policy_kwargs": {"lstm_hidden_size": 4}} if algorithm is RecurrentPPO else {}
    run = Run(tmp_path, DummyVecEnv(several(kind=kind, limit=LIMIT)), policy, algorithm, **kwargs)
    run.require_raw()
    assert (run.learned[run.truncated] != run.reward[run.truncated]).all(), "nothing was added: the test is blind"
    np.testing.assert_array_equal(run.learned[~run.truncated], run.reward[~run.truncated])
    assert run.table["t"].to_numpy()[run.truncated].tolist() == [LIMIT - 1] * run.truncated.sum()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12: of threads, which no environment uses
def test_environments_in_processes_of_their_own(tmp_path: Path) -> None:
    """They pay in float64, and keep what they tell: the same as in one process, to the last digit."""
    kwargs: dict[str, Any] = {"policy_kwargs": {"net_arch": [4]}}
    method = "fork" if sys.platform == "linux" else "spawn"  # the others import everything again
    env = VecNormalize(SubprocVecEnv(several(kind=Masked), start_method=method))
    apart = Run(tmp_path / "apart", env, algorithm=MaskablePPO, **kwargs)
    apart.require_raw()
    apart.require_changed()
    together = Run(
        tmp_path / "together", VecNormalize(DummyVecEnv(several(kind=Masked))), algorithm=MaskablePPO, **kwargs
    )
    for name in ("reward", "outcome", "context", "action", "action_mask", "truncated", "episode"):
        assert apart.table[name].equals(together.table[name]), name
