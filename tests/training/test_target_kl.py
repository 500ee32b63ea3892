"""PPO looks at `target_kl` before the optimiser's step: the minibatch that stopped it was never used."""

from __future__ import annotations

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_environments import Corridor

from aitia.datasets.files.store import RunFolder, read_table, read_tensors
from aitia.training.agents.spec import AgentSpec
from aitia.training.edits.edit import RewardEdit
from aitia.training.environments.spec import EnvSpec
from aitia.training.recording.recorder import Recorder
from aitia.training.retraining.live import train_recorded
from aitia.training.retraining.replay import Replay, replay

STOPPING: dict[str, Any] = {"n_steps": 16, "batch_size": 16, "n_epochs": 4, "target_kl": 1e-3, "learning_rate": 0.01}
ENV = EnvSpec("toy_environments:Corridor", {"limit": 3, "intended_error": 1.0})


def memberships(folder: RunFolder, seed: int) -> list[np.ndarray[Any, Any]]:
    """The minibatch of each row in each epoch, int32 [N, E], window by window."""
    tables = [read_table(folder.transitions_path(seed, w)) for w in range(folder.window_count(seed))]
    return [np.stack(table["minibatches"].to_pylist()) for table in tables]


def used(membership: np.ndarray[Any, Any]) -> int:
    """How many minibatches were used."""
    return sum(len(np.unique(epoch[epoch >= 0])) for epoch in membership.T)


class _Counting(Recorder):
    """Also counts the optimiser's steps in each window."""

    def _init_callback(self) -> None:
        super()._init_callback()
        self.steps = [0]
        self.model.policy.optimizer.register_step_post_hook(lambda *_: self._step_made())

    def _step_made(self) -> None:
        self.steps[-1] += 1

    def _on_rollout_start(self) -> None:
        super()._on_rollout_start()
        self.steps.append(0)


def test_as_many_minibatches_are_recorded_as_the_optimiser_made_steps(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", DummyVecEnv([lambda: Corridor(limit=3)] * 4), seed=0, device="cpu", **STOPPING)
    recorder = _Counting(tmp_path, seed=0)
    model.learn(512, callback=recorder)
    found = [used(membership) for membership in memberships(RunFolder(tmp_path), 0)]
    assert found == recorder.steps[1:], "more than the optimiser's steps: the minibatch that stopped PPO is counted"
    assert min(found) < 16 == 4 * STOPPING["n_epochs"], "PPO never stopped: the test is blind"


def test_a_replay_keeps_the_updates_that_were_made_and_stays_bit_for_bit(tmp_path: Path) -> None:
    agent, folder = AgentSpec(total_timesteps=512, n_envs=4, hyperparameters=STOPPING), RunFolder(tmp_path)
    train_recorded(agent, ENV, 3, folder)
    replayed = Replay(agent, ENV, 3, folder)
    recorded, stopped = memberships(folder, 3), 0
    for window, membership in zip(replayed.windows(keep_updates=True), recorded, strict=True):
        assert len(window.updates) == used(membership)
        stopped += used(membership) < 16
        last = window.number + 1 == len(recorded)
        after = read_tensors(folder.final_path(3) if last else folder.checkpoint_path(3, window.number + 1))
        found = replayed.model.policy.state_dict()
        assert all(torch.equal(found[name], after[name]) for name in found)
        parameters = [copy.deepcopy(update.parameters) for update in window.updates] + [after]
        again = replayed.model.policy.state_dict()
        assert all(torch.equal(again[name], after[name]) for name in again), "not the same once more"
        for one, other in pairwise(parameters):
            assert any(not torch.equal(one[name], other[name]) for name in found), "an update that moved nothing"
    assert stopped, "PPO never stopped: the test is blind"
    edited = replay(agent, ENV, 3, folder, RewardEdit(None)).state_dict()
    assert not torch.equal(edited["action_net.weight"], after["action_net.weight"])


@pytest.mark.parametrize("algorithm", ["MaskablePPO", "RecurrentPPO"])
def test_the_algorithms_of_sb3_contrib_stop_alike(algorithm: str, tmp_path: Path) -> None:
    kind = "Masked" if algorithm == "MaskablePPO" else "Kinds"
    policy: dict[str, Any] = {"policy_kwargs": {"lstm_hidden_size": 4}} if algorithm == "RecurrentPPO" else {}
    env = EnvSpec(f"toy_environments:{kind}", {"act": "discrete"})
    agent = AgentSpec(
        algorithm=algorithm, total_timesteps=256, n_envs=4, hyperparameters={**STOPPING, "target_kl": 1e-4, **policy}
    )
    folder = RunFolder(tmp_path)
    train_recorded(agent, env, 3, folder)
    recorded = memberships(folder, 3)
    for window, membership in zip(Replay(agent, env, 3, folder).windows(True), recorded, strict=True):
        assert len(window.updates) == used(membership)
    final, expected = replay(agent, env, 3, folder).state_dict(), read_tensors(folder.final_path(3))
    assert all(torch.equal(final[name], expected[name]) for name in expected)
    assert min(map(used, recorded)) < 16, "it never stopped: the test is blind"
