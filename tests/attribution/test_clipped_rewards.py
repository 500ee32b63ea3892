"""Rewards that VecNormalize clipped: the effect of a correction is that of what the learner would have got instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from small_policies import gae
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from toy_environments import Corridor

from aitia.attribution import group_effects
from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.effects.window import attribute_window
from aitia.attribution.estimators.base import Trak
from aitia.attribution.estimators.window import Window, learned_scale, read_window
from aitia.attribution.gradients.channels import policy_gradients
from aitia.attribution.targets.steps import Targets
from aitia.datasets.files.store import RunFolder, read_table, read_tensors
from aitia.datasets.schema import metadata_of
from aitia.training.recording.recorder import Recorder

CLIP, STEPS, ENVS = 1.5, 32, 4


class _Bribed(Corridor):
    """Wrongly pays 20 at the pit, and 1 instead of 2 at the goal; no episode is truncated."""

    def __init__(self) -> None:
        super().__init__(limit=10**6)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        paid = 20.0 if info.get("outcome") == "pit" else reward
        return observation, paid, terminated, truncated, {**info, "intended_reward": 2.0 * reward}


class _Learned(Recorder):
    """Also keeps what the learner got."""

    def _on_training_start(self) -> None:
        self.learned: list[NDArray[np.float32]] = []

    def _on_step(self) -> bool:
        self.learned.append(np.array(self.locals["rewards"]))
        return super()._on_step()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, NDArray[np.float32], PPO]:
    """Two windows of four environments, what the learner got [2, N], and the model."""
    folder = RunFolder(tmp_path_factory.mktemp("clipped"))
    env = VecNormalize(DummyVecEnv([_Bribed] * ENVS), norm_obs=False, clip_reward=CLIP, gamma=0.97)
    model = PPO(
        "MlpPolicy", env, n_steps=STEPS, batch_size=64, n_epochs=1, gamma=0.97, normalize_advantage=False, seed=0,
        device="cpu",
    )  # fmt: skip
    recorder = _Learned(folder, seed=0)
    model.learn(2 * STEPS * ENVS, callback=recorder)
    return folder, np.stack(recorder.learned).reshape(2, STEPS, ENVS).swapaxes(1, 2).reshape(2, -1), model


def test_what_the_learner_got_follows_from_the_record(recorded: tuple[RunFolder, NDArray[np.float32], PPO]) -> None:
    folder, learned, _ = recorded
    for number in range(2):
        table = read_table(folder.transitions_path(0, number))
        clip = float(metadata_of(table.schema)["clip_reward"])
        found = np.clip(table["unclipped_scale"].to_numpy() * table["reward"].to_numpy(), -clip, clip)
        np.testing.assert_allclose(found, learned[number], rtol=1e-6)
        clipped = np.abs(learned[number]) == np.float32(CLIP)
        assert clipped.any() and not clipped.all(), "some, not all rewards must be clipped: the test is blind"
        np.testing.assert_array_equal(table["reward_scale"].to_numpy() == 0.0, clipped)


def test_the_effect_of_a_correction_is_that_of_the_change_of_what_the_learner_gets(
    recorded: tuple[RunFolder, NDArray[np.float32], PPO],
) -> None:
    """Against Stable-Baselines3's own advantages, computed from both rewards."""
    folder, learned, model = recorded
    path = folder.transitions_path(0, 1)
    table, window, targets = read_table(path), read_window(path), _targets()
    clip, scale = float(metadata_of(table.schema)["clip_reward"]), table["unclipped_scale"].to_numpy()
    instead = np.clip(scale * table["intended_reward"].to_numpy(), -clip, clip)
    change = _advantages(model, window, instead) - _advantages(model, window, learned[1])
    policy = _policy(model, folder)
    change_of_rewards = window.corrections_by_group()
    assert change_of_rewards.groups == ["all"]
    effect = group_effects(window, policy, targets, change_of_rewards.change, Trak(damping=1e-2))[0, 0]
    scores = policy_gradients(as_actor(policy), window.rows, targets, "w").trak(1e-2)[window.rows.row]
    assert effect == pytest.approx(float(change @ scores[:, 0]) / len(change), rel=1e-4)
    bribe = window.reward == 20.0
    assert bribe.any() and (np.abs(learned[1][bribe]) == np.float32(CLIP)).all(), "the largest error must be clipped"
    for row in attribute_window(window, as_actor(policy), targets, Trak()).top.to_pylist():
        if row["reward"] == 20.0:
            assert row["tau"] != 0.0, "a reward that was clipped has influence: its correction is no small change"


def test_a_run_without_the_unclipped_scale_is_read_as_before(
    recorded: tuple[RunFolder, NDArray[np.float32], PPO], tmp_path: Path
) -> None:
    path = recorded[0].transitions_path(0, 1)
    table = read_table(path)
    old = table.drop_columns([name for name in ("unclipped_scale",) if name in table.column_names])
    pq.write_table(old, tmp_path / "window=00001.parquet")
    scale = gae(read_window(tmp_path / "window=00001.parquet")).reward_scale
    np.testing.assert_array_equal(scale, table["reward_scale"].to_numpy())


def test_the_worth_of_a_unit_of_reward_by_hand() -> None:
    """s = 2, c = 3: rewards beyond 1.5 are clipped."""
    cases = [
        (1.0, 0.5, 2.0),  # neither is clipped
        (4.0, 1.0, (2.0 - 3.0) / (1.0 - 4.0)),  # from 3 to 2
        (1.0, 4.0, (3.0 - 2.0) / (4.0 - 1.0)),
        (-4.0, 4.0, 6.0 / 8.0),
        (4.0, 5.0, 0.0),  # clipped before and after: the learner sees no difference
        (4.0, 4.0, 3.0 / 4.0),  # right: as if it were taken away
        (0.0, 0.0, 2.0),
    ]
    reward, intended, expected = (np.array(column) for column in zip(*cases, strict=True))
    scale = np.full(len(cases), 2.0)
    np.testing.assert_allclose(learned_scale(reward, intended, scale, 3.0), expected)
    unknown = np.where(np.abs(reward) > 1.5, 3.0 / np.maximum(np.abs(reward), 1.0), 2.0)
    np.testing.assert_allclose(learned_scale(reward, None, scale, 3.0), unknown)


def _policy(model: PPO, folder: RunFolder) -> ActorCriticPolicy:
    policy = model.policy
    assert isinstance(policy, ActorCriticPolicy)
    parameters = read_tensors(folder.checkpoint_path(0, 1))
    policy.float().load_state_dict({name: parameters[name] for name in policy.state_dict()})
    return policy


def _targets() -> Targets:
    observations = np.array([[0.5, 1.0], [0.25, 1.0]], np.float32)
    labels = np.array([[1, -1], [1, -1]], np.int8)
    return Targets(
        ("0-0",), ("labels",), np.zeros(2, np.int64), observations, np.zeros(2, np.int64), labels, np.ones(2, bool)
    )


def _advantages(model: PPO, window: Window, rewards: NDArray[Any]) -> NDArray[np.float64]:
    """Advantages [N] of a rollout without values, as SB3's buffer computes them: a difference of two is that of GAE."""
    advantages = gae(window)
    buffer = RolloutBuffer(
        STEPS, spaces.Box(-1, 1, (2,)), spaces.Discrete(2), gamma=advantages.gamma, gae_lambda=advantages.gae_lambda,
        n_envs=ENVS,
    )  # fmt: skip
    buffer.rewards = rewards.reshape(ENVS, STEPS).T.astype(np.float32)
    ended = advantages.ended.reshape(ENVS, STEPS).T.astype(np.float32)
    buffer.episode_starts[1:] = ended[:-1]
    buffer.compute_returns_and_advantage(torch.zeros(ENVS), ended[-1])
    return buffer.advantages.T.reshape(-1).astype(np.float64)
