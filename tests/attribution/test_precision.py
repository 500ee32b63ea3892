"""Windows scored in float32: checked against float64, and computed in it where they are too inexact."""

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
from aitia.attribution.gradients import channels
from aitia.attribution.gradients import kernel as trak
from aitia.attribution.gradients.channels import policy_gradients, q_gradients, value_gradients
from aitia.attribution.gradients.kernel import LAMBDAS, LARGEST_ERROR
from aitia.attribution.gradients.rows import WindowRows
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
    assert len(rows.counts) > channels.DOUBLE_ROWS and found.gram.dtype == torch.float32, "not the case that is meant"
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


def test_a_window_that_float32_can_score_stays_in_float32() -> None:
    """Small gradients and large dampings cost no float64 matrix."""
    policy = gaussian_policy(0.0)
    rows = WindowRows.of(*act(policy, ROWS, 0.3, 0))
    found = policy_gradients(as_actor(policy), rows, targets_of(policy, 0.3), "w")
    assert found.double is not None
    scores = found.trak(1e-1)
    assert found.double.refused == 0.0 and "whole" not in vars(found.double)
    exact = found.double.whole.trak(1e-1)
    assert 0.0 < np.abs(scores - exact).max() < LARGEST_ERROR * np.abs(exact).max()


@pytest.mark.parametrize("log_std", [0.0, -1.0, -2.0])
def test_the_error_that_is_estimated_is_no_smaller_than_the_true_one(log_std: float) -> None:
    policy = gaussian_policy(log_std)
    rows = WindowRows.of(*act(policy, ROWS, 1.0, 0))
    found = policy_gradients(as_actor(policy), rows, targets_of(policy, 1.0), "w")
    assert found.double is not None
    for lam in LAMBDAS:
        factor, root = found._factor(lam), found.root()
        scores = trak.solve(factor, root * found.targets)
        exact = found.double.whole.trak(lam) * root.numpy()
        true = (np.linalg.norm(scores - exact, axis=0) / np.linalg.norm(exact, axis=0)).max()
        assert 0.5 * true < found.double.error(found, factor, lam), "the residual's rows miss what is wrong"


@pytest.mark.parametrize(
    ("observe", "act", "algorithm", "kind"),
    [
        ("vector", "box", "PPO", "log-odds"), ("image", "discrete", "PPO", "episode"),
        ("dict", "multi", "PPO", "value"), ("vector", "discrete", "MaskablePPO", "log-odds"),
        ("vector", "discrete", "RecurrentPPO", "log-odds"),
    ],
)  # fmt: skip
def test_scores_that_are_refused_are_those_of_float64_for_every_kind_of_policy(
    observe: str, act: str, algorithm: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after the policy went on to other parameters, and without a change to them."""
    trained = Trained(tmp_path, observe, act, True, algorithm)
    targets, rows, policy = trained.targets(kind), trained.window.rows, trained.policy
    expected = [_both(policy, rows, targets)]
    monkeypatch.setattr(channels, "DOUBLE_ROWS", 0)
    monkeypatch.setattr(trak, "LARGEST_ERROR", -1.0)
    found = _both(policy, rows, targets)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(1.0)
    later = {name: value.clone() for name, value in policy.state_dict().items()}
    for exact, single in zip(expected[0], found, strict=True):
        assert (exact is None) == (single is None)
        if exact is not None and single is not None:
            assert single.double is not None and single.gram.dtype == torch.float32
            np.testing.assert_allclose(single.trak(1e-3), exact.trak(1e-3), rtol=1e-9, atol=1e-12)
            sample = single.double._sample
            np.testing.assert_allclose(sample.gram, exact.gram.numpy()[sample.rows], rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(sample.targets, exact.targets.numpy()[sample.rows], rtol=1e-9, atol=1e-12)
    assert all(torch.equal(value, later[name]) for name, value in policy.state_dict().items())


def _both(policy: ActorCriticPolicy, rows: WindowRows, targets: Targets) -> list[trak.WindowGradients | None]:
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
    monkeypatch.setattr(channels, "DOUBLE_ROWS", 0)
    single = q_gradients(network, rows, targets, "w")
    assert single.double is not None and single.double.error(single, single._factor(1e-1), 1e-1) < LARGEST_ERROR
    single.double.refused = 1.0
    np.testing.assert_allclose(single.trak(1e-3), exact, rtol=1e-9, atol=1e-12)
