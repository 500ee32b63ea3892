"""Replay: unedited it gives the recorded parameters again, bit for bit; edited it is another training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from aitia.datasets.errors import InputError
from aitia.datasets.files.store import RunFolder, read_table, read_tensors, write_table
from aitia.training.agents.spec import AgentSpec
from aitia.training.edits.edit import RewardEdit
from aitia.training.environments.spec import EnvSpec
from aitia.training.retraining.live import train_recorded
from aitia.training.retraining.replay import Replay, replay

pytestmark = pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
SMALL: dict[str, Any] = {"n_steps": 16, "batch_size": 20, "n_epochs": 3}
CORRIDOR = EnvSpec("toy_environments:Corridor", {"limit": 3, "intended_error": 1.0})


def make(folder: Path, env: EnvSpec = CORRIDOR, **changes: Any) -> tuple[AgentSpec, RunFolder]:
    hyperparameters = {**SMALL, **changes.pop("hyperparameters", {})}
    agent = AgentSpec(**{"total_timesteps": 160, "n_envs": 4, **changes, "hyperparameters": hyperparameters})
    train_recorded(agent, env, 3, RunFolder(folder))
    return agent, RunFolder(folder)


@pytest.mark.parametrize(
    ("env", "changes"),
    [
        (CORRIDOR, {}),  # a minibatch that is smaller than the others, time limits inside and at the end of windows
        (CORRIDOR, {"hyperparameters": {"clip_range_vf": 0.1, "target_kl": 1e-4, "normalize_advantage": False}}),
        (EnvSpec("toy_environments:Kinds", {"act": "box"}), {}),
        (EnvSpec("toy_environments:Kinds", {"observe": "cell", "act": "multi"}), {}),
        (EnvSpec("toy_environments:Masked", {"act": "multi"}), {"algorithm": "MaskablePPO"}),
        (EnvSpec("toy_environments:Masked", {"act": "binary"}), {"algorithm": "MaskablePPO"}),
        (CORRIDOR, {"algorithm": "RecurrentPPO", "hyperparameters": {"policy_kwargs": {"lstm_hidden_size": 4}}}),
        (EnvSpec("toy_environments:Kinds"), {"algorithm": "RecurrentPPO", "hyperparameters": {
            "policy_kwargs": {"lstm_hidden_size": 4, "shared_lstm": True, "enable_critic_lstm": False}}}),
    ],
)  # fmt: skip
def test_an_unedited_replay_gives_the_recorded_parameters_bit_for_bit(
    env: EnvSpec, changes: dict[str, Any], tmp_path: Path
) -> None:
    agent, folder = make(tmp_path, env, **changes)
    replayed = Replay(agent, env, 3, folder)
    for window in replayed.windows():
        if window.number + 1 < folder.window_count(3):
            expected = read_tensors(folder.checkpoint_path(3, window.number + 1))
            found = replayed.model.policy.state_dict()
            assert all(torch.equal(found[name], expected[name]) for name in expected), f"after window {window.number}"
    final, expected = replay(agent, env, 3, folder).state_dict(), read_tensors(folder.final_path(3))
    assert all(torch.equal(final[name], expected[name]) for name in expected)


def test_an_unedited_replay_of_images_agrees_within_1e_5(tmp_path: Path) -> None:
    """Stable-Baselines3 trains on transposed views of images, for which torch takes another convolution kernel."""
    env = EnvSpec("toy_environments:Kinds", {"observe": "dict", "act": "binary"})
    agent, folder = make(tmp_path, env, policy="MultiInputPolicy", hyperparameters={"policy_kwargs": {"net_arch": [4]}})
    final, expected = replay(agent, env, 3, folder).state_dict(), read_tensors(folder.final_path(3))
    for name in expected:
        torch.testing.assert_close(final[name], expected[name], atol=1e-5, rtol=0.0)


def test_a_2c_replays_bit_for_bit_too(tmp_path: Path) -> None:
    agent = AgentSpec(algorithm="A2C", total_timesteps=80, n_envs=2, hyperparameters={"n_steps": 8})
    folder = RunFolder(tmp_path)
    train_recorded(agent, CORRIDOR, 0, folder)
    final, expected = replay(agent, CORRIDOR, 0, folder).state_dict(), read_tensors(folder.final_path(0))
    assert all(torch.equal(final[name], expected[name]) for name in expected)


def test_an_edit_changes_the_replay_and_an_empty_one_does_not(tmp_path: Path) -> None:
    agent, folder = make(tmp_path)
    unedited = replay(agent, CORRIDOR, 3, folder).state_dict()
    empty = replay(agent, CORRIDOR, 3, folder, RewardEdit(frozenset())).state_dict()
    edited = replay(agent, CORRIDOR, 3, folder, RewardEdit(None)).state_dict()
    assert all(torch.equal(unedited[name], empty[name]) for name in unedited)
    assert not torch.equal(unedited["action_net.weight"], edited["action_net.weight"])


def test_updates_are_kept_with_the_recorded_rows(tmp_path: Path) -> None:
    agent, folder = make(tmp_path)
    first = next(Replay(agent, CORRIDOR, 3, folder).windows(keep_updates=True))
    table = read_table(folder.transitions_path(3, 0))
    membership = np.stack(table["minibatches"].to_pylist())
    assert len(first.updates) == 3 * 4
    start = read_tensors(folder.checkpoint_path(3, 0))
    for number, update in enumerate(first.updates):
        epoch, minibatch = divmod(number, 4)
        assert (membership[update.rows, epoch] == minibatch).all() and len(update.rows) == (20 if minibatch < 3 else 4)
        moved = [name for name, value in update.parameters.items() if not torch.equal(value, start[name])]
        assert bool(moved) == (number > 0)


def test_a_record_that_cannot_be_replayed_is_an_error_that_says_so(tmp_path: Path) -> None:
    agent, folder = make(tmp_path)
    path = folder.transitions_path(3, 0)
    table = read_table(path)
    write_table(path, table.drop_columns(["next_observation"]))
    with pytest.raises(InputError, match="next_observation"):
        replay(agent, CORRIDOR, 3, folder)
    at = table.schema.get_field_index("reward_scale")
    write_table(path, table.set_column(at, "reward_scale", pa.array(np.full(table.num_rows, 0.5))))
    with pytest.raises(InputError, match="VecNormalize"):
        replay(agent, CORRIDOR, 3, folder)
