"""`clip_range_vf`: where it holds V, the value loss has no gradient, and a reward no influence through it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_policies import flat_gradient_of
from stable_baselines3 import PPO
from trained import Trained

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.estimators.updates import TrakUpdates
from aitia.datasets.files.store import read_table
from aitia.training.retraining.replay import Replay, Update, _fill, _Ordered, _Record

RATE, LARGE = 0.05, 1e8


@pytest.mark.parametrize("clip_range_vf", [0.02, None])
def test_influence_through_the_value_loss_is_that_of_the_real_updates(
    clip_range_vf: float | None, tmp_path: Path
) -> None:
    """At a very large damping TRAK is a gradient product: each return is moved by 1, and PPO.train makes its step."""
    trained = Trained(
        tmp_path, "vector", "discrete", True, clip_range_vf=clip_range_vf, vf_coef=0.7, ent_coef=0.0, n_epochs=3,
        max_grad_norm=1e9, learning_rate=0.02, gae_lambda=0.0,
    )  # fmt: skip
    targets = trained.targets("value")
    replayed = next(Replay(trained.agent, trained.env, 0, trained.folder).windows(keep_updates=True))
    moved = [_moved_by_each_return(trained, update) for update in replayed.updates]
    gradients = [_targets_gradients(trained, update) for update in replayed.updates]
    expected = np.mean([step @ gradient for step, gradient in zip(moved, gradients, strict=True)], axis=0)
    window = replace(trained.window, updates=replayed)
    found = TrakUpdates().prepare(window, as_actor(trained.loaded), targets).influence(LARGE, slice(0, 2)).tau_value
    assert found is not None
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found * LARGE, expected, rtol=0, atol=2e-4 * scale)
    still = [np.abs(step).max(axis=1) == 0.0 for step in moved]
    held = sum(int(rows[update.rows].sum()) for rows, update in zip(still, replayed.updates, strict=True))
    assert (held > 0) == (clip_range_vf is not None), f"{held} rows are held at their old value"
    assert replayed.clip_range_vf == clip_range_vf


def _moved_by_each_return(trained: Trained, update: Update) -> NDArray[np.float64]:
    """How far one unit of each return moves the parameters in one real update, [N, P], by unit of learning rate."""
    model = Replay(trained.agent, trained.env, 0, trained.folder).model
    assert isinstance(model, PPO)
    buffer = model.rollout_buffer
    assert isinstance(buffer, _Ordered)
    _fill(buffer, _Record(read_table(trained.folder.transitions_path(0, 0)), None), model)  # at the window's parameters
    model.n_epochs, model.lr_schedule = 1, lambda _: RATE
    buffer.before = lambda rows: None

    def step() -> NDArray[np.float64]:
        model.policy.load_state_dict(update.parameters)
        model.policy.optimizer = torch.optim.SGD(model.policy.parameters(), lr=RATE)
        buffer.minibatches = [[update.rows]]
        model.train()
        return torch.cat([p.detach().reshape(-1) for p in model.policy.parameters()]).double().numpy()

    unmoved, found = step(), []
    for row in range(len(trained.window.reward)):
        buffer.returns[row] += 1.0
        found.append(step() - unmoved)
        buffer.returns[row] -= 1.0
    return np.stack(found) / RATE


def _targets_gradients(trained: Trained, update: Update) -> NDArray[np.float64]:
    """Gradients of the targets at the parameters of an update, [P, F]."""
    policy, targets = trained.loaded, trained.targets("value")
    policy.load_state_dict(update.parameters)
    values = targets.values(as_actor(policy).outputs(targets.observations))
    return torch.stack([flat_gradient_of(policy, value) for value in values], dim=1).double().numpy()
