"""Windows of many distinct rows: solved by few columns, in float32 or in float64, whatever is exact enough."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import SAC
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor
from toy_environments import Kinds
from trained import Trained

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.actors.q_networks import critic_inputs, q_networks
from aitia.attribution.gradients import kernel, systems
from aitia.attribution.gradients.channels import policy_gradients, q_gradients, value_gradients
from aitia.attribution.gradients.factors import Factors, PlacesFactors
from aitia.attribution.gradients.kernel import LAMBDAS, WindowGradients
from aitia.attribution.gradients.rows import WindowRows
from aitia.attribution.gradients.systems import LARGEST_ERROR
from aitia.attribution.targets.margins import critic_margins
from aitia.attribution.targets.steps import Targets
from aitia.datasets.arrays import Array

ROWS, SIZE, FAILURES = 1100, 6, 5


def gaussian_policy(log_std: float) -> ActorCriticPolicy:
    torch.manual_seed(0)
    policy = ActorCriticPolicy(
        spaces.Box(-np.inf, np.inf, (SIZE,)), spaces.Box(-1, 1, (2,)), lambda _: 0.0,
        net_arch={"pi": [16, 16], "vf": [4]}, log_std_init=log_std,
    )  # fmt: skip
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name != "log_std":
                parameter.add_(0.1 * torch.randn(parameter.shape))
    policy.set_training_mode(False)
    return policy


def act(
    policy: ActorCriticPolicy, rows: int, scale: float, seed: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Observations and the actions that the policy draws there."""
    observations = (scale * np.random.default_rng(seed).normal(size=(rows, SIZE))).astype(np.float32)
    torch.manual_seed(seed)
    with torch.no_grad():
        return observations, policy(torch.as_tensor(observations))[0].numpy()


def targets_of(policy: ActorCriticPolicy, scale: float) -> Targets:
    observations, actions = act(policy, 2 * FAILURES, scale, 7)
    steps = len(actions)
    return Targets(
        tuple(f"0-{i}" for i in range(FAILURES)), ("log-odds",) * FAILURES, np.repeat(np.arange(FAILURES), 2),
        observations, actions, np.zeros((steps, 0), np.int8), np.zeros(steps, bool),
    )  # fmt: skip


def per_row_gradients(policy: ActorCriticPolicy, observations: Array, actions: Array) -> Tensor:
    """Gradients of log pi(a|s) of each row by all parameters of the actor, [N, P], in float64."""
    policy.double()
    log_prob = as_actor(policy).outputs(observations).distribution.log_prob(torch.as_tensor(actions))
    used = [p for name, p in policy.named_parameters() if "value" not in name]
    each = torch.eye(len(log_prob), dtype=log_prob.dtype)
    parts = torch.autograd.grad(log_prob, used, each, is_grads_batched=True)
    return torch.cat([part.flatten(1) for part in parts], 1)


@pytest.mark.parametrize(("log_std", "scale"), [(-3.0, 1.0), (0.0, 100.0), (-3.0, 100.0), (0.0, 1.0)])
def test_scores_of_gaussian_policies_equal_the_definition_in_float64(log_std: float, scale: float) -> None:
    policy = gaussian_policy(log_std)
    observations, actions = act(policy, ROWS, scale, 0)
    targets, rows = targets_of(policy, scale), WindowRows.of(observations, actions)
    found = policy_gradients(as_actor(gaussian_policy(log_std)), rows, targets, "w")
    assert len(rows.counts) > kernel.DOUBLE_ROWS, "not the case that is meant"
    phi = per_row_gradients(policy, observations, actions)
    steps = per_row_gradients(policy, targets.observations, targets.actions)
    q = steps.reshape(FAILURES, 2, -1).mean(1).T
    weights = np.random.default_rng(1).normal(size=(ROWS, 3))
    by_row = np.zeros_like(weights)
    np.add.at(by_row, rows.row, weights)
    for lam in LAMBDAS:
        fisher = phi.T @ phi / ROWS + lam * torch.eye(phi.shape[1], dtype=torch.float64)
        exact = (phi @ torch.linalg.solve(fisher, q)).numpy()
        for what, scores, expected in [
            ("scores", found.trak(lam)[rows.row], exact),
            ("sums", found.summed_trak(lam, by_row), weights.T @ exact),
        ]:
            error = np.abs(scores - expected).max() / np.abs(expected).max()
            assert error < 1e-4, f"{what} at damping {lam:g}: float32 was not found to be too inexact"


def whole(found: WindowGradients, lam: float) -> NDArray[np.float64]:
    """Scores by the whole matrix in float64, times C^1/2 / n^1/2: what the error is relative to."""
    return found._whole.solve(lam, found._products).numpy()


def without_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """No window is solved by few columns."""
    monkeypatch.setattr(kernel, "low_rank", lambda gradients, probe: None)


def test_a_window_that_float32_can_score_stays_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small gradients and large dampings cost no float64 matrix."""
    without_columns(monkeypatch)
    policy = gaussian_policy(0.0)
    rows = WindowRows.of(*act(policy, ROWS, 0.3, 0))
    found = policy_gradients(as_actor(policy), rows, targets_of(policy, 0.3), "w")
    scores = found.trak(1e-1) * found._root.numpy()
    assert "_single" in vars(found) and "_whole" not in vars(found)
    exact = whole(found, 1e-1)
    assert 0.0 < np.abs(scores - exact).max() < LARGEST_ERROR * np.abs(exact).max()


def test_float32_is_not_tried_where_its_rounding_would_be_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """The largest eigenvalue, seen in 64 rows, says so: no matrix is formed in vain."""
    without_columns(monkeypatch)
    policy = gaussian_policy(-3.0)
    rows = WindowRows.of(*act(policy, ROWS, 1.0, 0))
    found = policy_gradients(as_actor(policy), rows, targets_of(policy, 1.0), "w")
    found.trak(1e-3)
    assert "_whole" in vars(found) and "_single" not in vars(found)


@pytest.mark.parametrize("log_std", [0.0, -1.0, -2.0])
def test_the_error_that_is_estimated_is_no_smaller_than_the_true_one(log_std: float) -> None:
    policy = gaussian_policy(log_std)
    rows = WindowRows.of(*act(policy, ROWS, 1.0, 0))
    found = policy_gradients(as_actor(policy), rows, targets_of(policy, 1.0), "w")
    assert found._probe is not None
    for lam in LAMBDAS:
        single = found._single.solve(lam, found._single_products).double()
        exact = whole(found, lam)
        true = (np.linalg.norm(single.numpy() - exact, axis=0) / np.linalg.norm(exact, axis=0)).max()
        estimated = found._probe.error(lam, found._products[found._probe.rows], single)
        assert 0.5 * true < estimated, "the residual's rows miss what is wrong"
        assert true < 10 * found._probe.single_error(lam, False), (
            "the error that is expected beforehand is far too small"
        )


@pytest.mark.parametrize("log_std", [0.0, -3.0])
def test_windows_of_few_directions_are_solved_by_some_columns(log_std: float) -> None:
    """As exact as the whole matrix in float64: scores and sums of them, at every damping."""
    policy = gaussian_policy(log_std)
    observations, _ = act(policy, 8 * ROWS, 0.1, 0)
    observations[:, 2:] = 0.0  # what matters lies in few directions
    rows = WindowRows.of(*_answered(policy, observations))
    found = policy_gradients(as_actor(policy), rows, targets_of(policy, 0.1), "w")
    low_rank = found._low_rank
    assert low_rank is not None and low_rank.columns.shape[1] < len(rows.counts) / 8
    weights = np.random.default_rng(1).normal(size=(len(rows.counts), 3))
    for lam in LAMBDAS:
        exact = whole(found, lam) / found._root.numpy()
        for scores, expected in [
            (found.trak(lam), exact), (found.summed_trak(lam, weights), weights.T @ exact),
        ]:  # fmt: skip
            np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def _answered(policy: ActorCriticPolicy, observations: NDArray[np.float32]) -> tuple[Array, Array]:
    with torch.no_grad():
        return observations, policy(torch.as_tensor(observations))[0].numpy()


@pytest.mark.parametrize(
    ("observe", "act", "algorithm", "kind"),
    [
        ("vector", "box", "PPO", "log-odds"), ("image", "discrete", "PPO", "episode"),
        ("dict", "multi", "PPO", "value"), ("vector", "discrete", "MaskablePPO", "log-odds"),
        ("vector", "discrete", "RecurrentPPO", "log-odds"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("form", ["_low_rank", "_single", "_whole"])
def test_every_form_gives_the_scores_of_float64_for_every_kind_of_policy(
    observe: str, act: str, algorithm: str, kind: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the policy went on to other parameters."""
    trained = Trained(tmp_path, observe, act, True, algorithm)
    targets, rows, policy = trained.targets(kind), trained.window.rows, trained.policy
    expected = _both(policy, rows, targets)
    monkeypatch.setattr(kernel, "DOUBLE_ROWS", 0)
    monkeypatch.setattr(systems, "_MOST_COLUMNS", 1)
    if form != "_low_rank":
        without_columns(monkeypatch)
    monkeypatch.setattr(kernel, "LARGEST_ERROR", -1.0 if form == "_whole" else 1.0)
    found = _both(policy, rows, targets)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    for exact, mine in zip(expected, found, strict=True):
        assert (exact is None) == (mine is None)
        if exact is not None and mine is not None:
            scores, size = exact.trak(1e-2), np.abs(exact.trak(1e-2)).max()
            single = 1e-5 if mine._scaled.at_places else 1e-3  # of convolutions sums and the solution are in float64
            atol = single if form == "_single" else 1e-7
            np.testing.assert_allclose(mine.trak(1e-2), scores, rtol=0, atol=atol * size)
            assert form in vars(mine) and getattr(mine, form) is not None


@pytest.mark.parametrize("precision", [torch.float64, torch.float32])
@pytest.mark.parametrize(("channels", "width"), [(2, 3), (40, 60)])
def test_every_way_to_multiply_convolutions_gives_the_products_of_their_gradients(
    channels: int, width: int, precision: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By places and by gradients, of rows with themselves and with others, in blocks of some rows."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 4, width, generator=generator, dtype=precision)
    layer = PlacesFactors(
        inputs, torch.randn(300, channels, 4, generator=generator, dtype=precision), lambda x: x, True
    )
    factors = Factors(300, {"conv": layer})
    other = factors.rows_of(torch.arange(7, 19))
    weights = torch.bmm(layer.derivatives.double(), inputs.double()).flatten(1)
    exact = weights @ weights.T + layer.derivatives.double().sum(2) @ layer.derivatives.double().sum(2).T
    tolerance = (1e-12 if precision == torch.float64 else 1e-5) * exact.diagonal().max()
    for size in (2**25, 2**14):
        monkeypatch.setattr("aitia.attribution.gradients.factors._BLOCK_BYTES", size)
        for found, expected in [
            (factors.gram().triu(), exact.triu()), (factors.products(other), exact[:, 7:19]),
            (other.products(factors), exact[7:19]),
        ]:  # fmt: skip
            assert found.dtype == torch.float64 and (found - expected).abs().max() < tolerance


def _both(policy: ActorCriticPolicy, rows: WindowRows, targets: Targets) -> list[WindowGradients | None]:
    return [
        policy_gradients(as_actor(policy), rows, targets, "w"),
        value_gradients(as_actor(policy), rows, targets, "w", 1.3),
    ]


def test_q_networks_are_checked_by_targets_of_their_own_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    model = SAC("MlpPolicy", Kinds(act="box"), seed=0, device="cpu", policy_kwargs={"net_arch": [8]})
    generator, width = np.random.default_rng(0), int(np.prod(model.action_space.shape or ()))
    observations = np.stack([model.observation_space.sample() for _ in range(70)])
    actions = generator.uniform(-1, 1, (70, width)).astype(np.float32)
    rows = WindowRows.of(critic_inputs(observations, actions), np.zeros(70, np.int64))
    targets, (network, *_) = critic_margins(observations[:3], actions[:3], -actions[:3]), q_networks(model.policy)
    exact = q_gradients(network, rows, targets, "w").trak(1e-3)
    monkeypatch.setattr(kernel, "DOUBLE_ROWS", 0)
    for largest in (1.0, -1.0):
        monkeypatch.setattr(kernel, "LARGEST_ERROR", largest)
        found = q_gradients(network, rows, targets, "w").trak(1e-3)
        np.testing.assert_allclose(found, exact, rtol=0, atol=1e-3 * np.abs(exact).max())
