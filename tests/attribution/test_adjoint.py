"""The adjoint of GAE and of advantage normalisation, against autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from aitia.attribution.adjoints.gae import GaeAdvantages, normalisation_adjoint

GAMMA, LAM, STEPS, ENVS = 0.97, 0.95, 9, 3
N = STEPS * ENVS


def gae(rewards: Tensor, values: Tensor, last: Tensor, ended: Tensor) -> Tensor:
    """Advantages [envs, steps] by the definition of Schulman et al. 2016, eq. 16, a sum of deltas."""
    following = torch.cat([values[:, 1:], last[:, None]], dim=1)
    deltas = rewards + GAMMA * following * (~ended) - values
    rows = []
    for t in range(STEPS):
        total = torch.zeros(ENVS, dtype=rewards.dtype)
        alive = torch.ones(ENVS, dtype=torch.bool)
        for k in range(t, STEPS):
            total = total + (GAMMA * LAM) ** (k - t) * deltas[:, k] * alive
            alive = alive & ~ended[:, k]
        rows.append(total)
    return torch.stack(rows, dim=1)


@pytest.fixture
def window() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    ended = torch.rand(ENVS, STEPS, generator=generator) < 0.25
    assert ended.any() and not ended.all()
    return {
        "rewards": torch.randn(ENVS, STEPS, generator=generator, dtype=torch.float64, requires_grad=True),
        "values": torch.randn(ENVS, STEPS, generator=generator, dtype=torch.float64),
        "last": torch.randn(ENVS, generator=generator, dtype=torch.float64),
        "ended": ended,
        "scores": torch.randn(N, generator=generator, dtype=torch.float64),
    }


def advantages_of(window: dict[str, Tensor], normalize: bool = True) -> GaeAdvantages:
    raw = gae(window["rewards"], window["values"], window["last"], window["ended"]).detach().reshape(-1).numpy()
    return GaeAdvantages(raw, window["ended"].reshape(-1).numpy(), ENVS, GAMMA, LAM, normalize, np.ones(N))


def test_gae_adjoint_is_the_derivative_of_gae(window: dict[str, Tensor]) -> None:
    advantages = gae(window["rewards"], window["values"], window["last"], window["ended"]).reshape(-1)
    (advantages * window["scores"]).sum().backward()
    expected = window["rewards"].grad.reshape(-1).numpy()  # type: ignore[union-attr]
    found = advantages_of(window).adjoint(window["scores"].numpy()[:, None])[:, 0]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10, err_msg="the recursion is not GAE's adjoint")


def test_normalisation_adjoint_is_the_derivative_of_centring_and_scaling(window: dict[str, Tensor]) -> None:
    raw = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    normalised = (raw - raw.mean()) / raw.std()
    (normalised * window["scores"]).sum().backward()
    found = normalisation_adjoint(window["scores"].numpy()[:, None], normalised.detach().numpy())[:, 0]
    np.testing.assert_allclose(found / raw.std().item(), raw.grad.numpy(), rtol=1e-6)  # type: ignore[union-attr]


def test_tau_is_the_derivative_of_the_mean_loss_by_each_reward(window: dict[str, Tensor]) -> None:
    advantages = gae(window["rewards"], window["values"], window["last"], window["ended"]).reshape(-1)
    normalised = (advantages - advantages.mean()) / advantages.std()
    (normalised * window["scores"]).mean().backward()
    expected = window["rewards"].grad.reshape(-1).numpy()  # type: ignore[union-attr]
    found = advantages_of(window).reward_influence(window["scores"].numpy()[:, None]).tau[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_common_rescaling_of_all_rewards_has_no_effect_with_the_normalisation_line(
    window: dict[str, Tensor],
) -> None:
    """Rewards and values scaled together leave normalised advantages as they are."""
    zero = {**window, "values": torch.zeros_like(window["values"]), "last": torch.zeros_like(window["last"])}
    influence = advantages_of(zero).reward_influence(zero["scores"].numpy()[:, None])
    rewards = window["rewards"].detach().reshape(-1).numpy()
    scale = np.abs(rewards * influence.tau[:, 0]).sum()
    assert abs(rewards @ influence.tau[:, 0]) < 1e-10 * scale
    assert abs(rewards @ influence.tau_raw[:, 0]) > 1e-3 * scale, "tau_raw should see a rescaling: the test is blind"


def test_without_normalisation_tau_is_tau_raw_over_n(window: dict[str, Tensor]) -> None:
    advantages = advantages_of(window, normalize=False)
    influence = advantages.reward_influence(window["scores"].numpy()[:, None])
    np.testing.assert_array_equal(influence.tau, influence.tau_raw)
    np.testing.assert_allclose(influence.tau, advantages.adjoint(window["scores"].numpy()[:, None]) / N)


def test_equal_advantages_give_no_influence() -> None:
    flat = GaeAdvantages(np.ones(4), np.zeros(4, bool), 2, GAMMA, LAM, True, np.ones(4))
    influence = flat.reward_influence(np.ones((4, 1)))
    assert not influence.tau.any() and not influence.tau_raw.any()


def test_reward_scale_multiplies_the_influence(window: dict[str, Tensor]) -> None:
    plain = advantages_of(window)
    scale = np.linspace(0.0, 2.0, N)
    scaled = GaeAdvantages(plain.raw, plain.ended, ENVS, GAMMA, LAM, True, scale)
    scores = window["scores"].numpy()[:, None]
    np.testing.assert_allclose(scaled.reward_influence(scores).tau, scale[:, None] * plain.reward_influence(scores).tau)
