"""The adjoint against one real update of Stable-Baselines3, and TRAK over the real updates of a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from small_policies import flat_gradient_of
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from trained import Trained

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.adjoints.gae import GaeAdvantages, minibatch_adjoint, normalisation_adjoint
from aitia.attribution.estimators.base import TracIn, Trak
from aitia.attribution.estimators.registry import find_estimator
from aitia.attribution.estimators.updates import TrakUpdates
from aitia.attribution.estimators.window import Window, read_window
from aitia.attribution.gradients.kernel import LAMBDAS
from aitia.datasets.errors import InputError
from aitia.datasets.files.store import read_table, read_tensors
from aitia.datasets.schema import metadata_of
from aitia.training.retraining.replay import Replay

RATE, VF, GAMMA, LAM = 0.05, 0.7, 0.97, 0.95
SGD: dict[str, Any] = {
    "learning_rate": RATE, "vf_coef": VF, "ent_coef": 0.0, "max_grad_norm": 1e9, "n_epochs": 1, "batch_size": 8,
}  # fmt: skip


def advantages_of(table: pa.Table, policy: ActorCriticPolicy, reward: Tensor) -> Tensor:
    """GAE by its definition, differentiable in the rewards; row = env * n_steps + step."""
    envs = int(metadata_of(table.schema)["n_envs"])
    steps = table.num_rows // envs
    value = torch.tensor(table["value"].to_numpy(), dtype=torch.float64)
    terminated, truncated = table["terminated"].to_numpy(), table["truncated"].to_numpy()
    recorded = torch.tensor(table["advantage"].to_numpy(), dtype=torch.float64)
    paid = torch.tensor(table["reward"].to_numpy(), dtype=torch.float64)
    found: list[Tensor] = [torch.zeros(())] * table.num_rows
    for env in range(envs):
        running = torch.zeros((), dtype=torch.float64)
        for step in reversed(range(steps)):
            row = env * steps + step
            if terminated[row]:
                delta, carry = reward[row] - value[row], 0.0
            elif truncated[row] or step == steps - 1:  # the bootstrap is a constant: read off the record
                bootstrap = recorded[row] - paid[row] + value[row]
                delta, carry = reward[row] + bootstrap - value[row], 0.0
            else:
                delta, carry = reward[row] + GAMMA * value[row + 1] - value[row], GAMMA * LAM
            running = delta + carry * running
            found[row] = running
    return torch.stack(found)


def one_update(
    policy: ActorCriticPolicy, table: pa.Table, window: Window, rows: NDArray[np.int64], reward: Tensor
) -> Tensor:
    """The gradient step of PPO on one minibatch, [P], differentiable in the rewards [N] of the window."""
    advantage = advantages_of(table, policy, reward)
    returns = (advantage + torch.tensor(table["value"].to_numpy(), dtype=torch.float64))[rows]
    normalised = advantage[rows]
    normalised = (normalised - normalised.mean()) / (normalised.std() + 1e-8)
    said = as_actor(policy).outputs(window.rows.observations[window.rows.row[rows]])
    log_prob = said.distribution.log_prob(torch.as_tensor(window.rows.actions[window.rows.row[rows]]))
    ratio = torch.exp(log_prob - log_prob.detach())
    loss = -(normalised * ratio).mean() + VF * torch.nn.functional.mse_loss(said.values, returns)
    found = torch.autograd.grad(loss, list(policy.parameters()), create_graph=True, allow_unused=True)
    parts = [torch.zeros_like(p) if g is None else g for p, g in zip(policy.parameters(), found, strict=True)]
    return -RATE * torch.cat([part.reshape(-1) for part in parts])


@pytest.fixture(scope="module", params=[("vector", "discrete"), ("dict", "multi"), ("vector", "box")])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("run"), request.param[0], request.param[1], True, **SGD)


def test_the_update_of_the_proof_is_the_one_that_stable_baselines3_makes(trained: Trained) -> None:
    """Each recorded minibatch alone, from the window's parameters, by PPO.train with plain SGD."""
    table = read_table(trained.folder.transitions_path(0, 0))
    first = next(Replay(trained.agent, trained.env, 0, trained.folder).windows(keep_updates=True))
    start = read_tensors(trained.folder.checkpoint_path(0, 0))
    for update in first.updates:
        replayed = Replay(trained.agent, trained.env, 0, trained.folder)
        model = replayed.model
        assert isinstance(model, PPO)
        model.policy.optimizer = torch.optim.SGD(model.policy.parameters(), lr=RATE)
        from aitia.training.retraining.replay import _fill, _Ordered, _Record

        buffer = model.rollout_buffer
        assert isinstance(buffer, _Ordered)
        _fill(buffer, _Record(table, None), model)
        buffer.minibatches, buffer.before = [[update.rows]], lambda rows: None
        model.train()
        policy = trained.loaded.double()
        reward = torch.tensor(table["reward"].to_numpy(), dtype=torch.float64)
        step = one_update(policy, table, trained.window, update.rows, reward).detach()
        moved = torch.cat([p.detach().reshape(-1) for p in model.policy.parameters()]).double()
        before = torch.cat([start[name].reshape(-1) for name, _ in policy.named_parameters()]).double()
        assert (moved - before).abs().max() > 1e-4, "nothing moved: the comparison is empty"
        torch.testing.assert_close(moved - before, step, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["log-odds", "value"])
def test_reward_influence_is_the_derivative_of_one_real_update(trained: Trained, kind: str) -> None:
    """Gradient products, both channels: d (grad f . step) / d reward, mean over the recorded minibatches."""
    table = read_table(trained.folder.transitions_path(0, 0))
    targets, policy = trained.targets(kind), trained.loaded.double()
    q = torch.stack(
        [flat_gradient_of(policy, v) for v in targets.values(as_actor(policy).outputs(targets.observations))]
    )
    membership = np.stack(table["minibatches"].to_pylist())[:, 0]
    reward = torch.tensor(table["reward"].to_numpy(), dtype=torch.float64, requires_grad=True)
    step = torch.stack(
        [
            one_update(policy, table, trained.window, np.flatnonzero(membership == number), reward)
            for number in range(int(membership.max()) + 1)
        ]
    ).mean(0)
    expected = torch.stack([torch.autograd.grad(row @ step, reward, retain_graph=True)[0] for row in q], dim=1) / RATE
    found = TracIn().prepare(trained.window, as_actor(trained.loaded), targets).influence(1e-2, slice(0, 2))
    assert found.tau_value is not None
    total = found.tau + found.tau_value
    assert np.abs(expected.numpy()).max() > 1e-6
    np.testing.assert_allclose(total, expected.numpy(), atol=1e-5 * np.abs(expected.numpy()).max())


def test_one_minibatch_of_everything_is_the_window_form() -> None:
    generator = np.random.default_rng(0)
    scores, raw = generator.normal(size=(30, 2)), generator.normal(size=30)
    spread = np.std(raw, ddof=1)
    expected = normalisation_adjoint(scores, (raw - raw.mean()) / spread) / (30 * spread)
    np.testing.assert_allclose(minibatch_adjoint(scores, raw, np.zeros((30, 1), np.int32)), expected, atol=1e-9)


def test_equal_advantages_unused_rows_and_single_rows_are_handled() -> None:
    scores = np.arange(12.0).reshape(6, 2)
    membership = np.array([[0], [0], [1], [1], [2], [-1]], np.int32)
    raw = np.array([1.0, 1.0, 0.0, 2.0, 5.0, 7.0])
    found = minibatch_adjoint(scores, raw, membership) * 3
    assert (found[:2] == 0.0).all(), "equal advantages are normalised to zero, whatever the rewards"
    np.testing.assert_allclose(found[4], scores[4], err_msg="SB3 leaves a minibatch of one row as it is")
    assert (found[5] == 0.0).all(), "a row that no update used has no influence"
    advantages = GaeAdvantages(raw, np.ones(6, bool), 1, 0.9, 0.9, True, np.full(6, 2.0), membership)
    np.testing.assert_allclose(advantages.reward_influence(scores).tau * 3, found * 2.0)


@pytest.mark.parametrize("lam", LAMBDAS)
def test_a_single_update_on_the_whole_window_is_the_window_form(tmp_path: Path, lam: float) -> None:
    """One epoch, one minibatch: ratio 1, nothing clipped, the same Fisher matrix."""
    trained = Trained(tmp_path, "vector", "discrete", True, batch_size=24, n_epochs=1)
    window, targets = with_updates(trained), trained.targets("log-odds")
    expected = Trak().prepare(window, as_actor(trained.loaded), targets).influence(lam, slice(0, 2))
    found = TrakUpdates().prepare(window, as_actor(trained.loaded), targets).influence(lam, slice(0, 2))
    for one, other in zip(found, expected, strict=True):
        assert one is not None and other is not None
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-12)


def test_clipped_rows_have_no_influence_through_their_update(tmp_path: Path) -> None:
    """A clip range of nearly zero: after the first update nearly every row has left it on one side."""
    free, clipped = (
        Trained(tmp_path / str(clip), "vector", "discrete", True, batch_size=24, n_epochs=3, learning_rate=0.05,
                clip_range=clip)
        for clip in (1e6, 1e-6)
    )  # fmt: skip
    targets = free.targets("log-odds")
    loose, tight = (
        TrakUpdates().prepare(with_updates(t), as_actor(t.loaded), targets).influence(1e-2, slice(0, 2)).scores
        for t in (free, clipped)
    )
    assert np.isfinite(loose).all() and np.abs(tight).sum() < np.abs(loose).sum()
    (first,) = (with_updates(clipped).updates,)
    assert first is not None and first.clip_range == 1e-6


def test_without_its_updates_a_window_is_refused(tmp_path: Path) -> None:
    trained = Trained(tmp_path, "vector", "discrete", True)
    with pytest.raises(InputError, match="aitia attribute"):
        find_estimator("trak-updates").prepare(trained.window, as_actor(trained.loaded), trained.targets("log-odds"))


def with_updates(trained: Trained) -> Window:
    from dataclasses import replace

    first = next(Replay(trained.agent, trained.env, 0, trained.folder).windows(keep_updates=True))
    return replace(read_window(trained.folder.transitions_path(0, 0)), updates=first)
