"""Exact TRAK scores: against the primal formula, against the traker library, and known zeros."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from small_policies import (
    distinct,
    flat_gradient,
    log_prob_target,
    make_policy,
    make_rows,
    make_targets,
    primal_scores,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.distributions import Categorical

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.gradients.channels import policy_gradients
from aitia.attribution.gradients.factors import LinearFactors
from aitia.attribution.gradients.kernel import LAMBDAS
from aitia.attribution.gradients.layers import gradient_factors
from aitia.attribution.gradients.rows import WindowRows
from aitia.datasets.errors import InputError, NonFiniteError


@pytest.mark.parametrize("lam", LAMBDAS)
def test_dual_scores_equal_the_primal_formula(lam: float) -> None:
    observations, actions = make_rows()
    targets, policy = make_targets(), make_policy()
    expected = primal_scores(policy, observations, actions, targets, lam)
    found = policy_gradients(as_actor(policy), distinct(observations, actions), targets, "w").trak(lam)[
        distinct(observations, actions).row
    ]
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-10, "above 1e-3: a layer, a bias or the factor 1/n is missing; about 1e-6: float32 crept in"


def test_factored_gradients_equal_a_loop_over_samples() -> None:
    observations, actions = make_rows()
    policy = make_policy().double()
    factors = gradient_factors(
        as_actor(policy),
        observations,
        lambda said: said.distribution.log_prob(torch.as_tensor(actions)).sum(),
    )
    log_probs = as_actor(policy).outputs(observations).distribution.log_probs()
    for row in (0, 7, 39):
        expected = flat_gradient(policy, log_probs[row, actions[row]])
        layers = [layer for layer in factors.layers.values() if isinstance(layer, LinearFactors)]
        assert len(layers) == len(factors.layers)
        outer = [x.derivatives[row][:, None] * x.inputs[row] for x in layers]  # last column: the bias
        found = torch.cat([part.reshape(-1) for x in outer for part in (x[:, :-1], x[:, -1])])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_collapsing_equal_transitions_changes_nothing() -> None:
    observations, actions = make_rows()
    targets = make_targets()
    collapsed = distinct(observations, actions)
    rows = np.arange(len(actions))
    separate = WindowRows(observations, actions, np.ones_like(rows), rows)
    assert len(collapsed.counts) == 25 < len(rows)
    found, expected = (
        policy_gradients(as_actor(make_policy()), r, targets, "w").trak(1e-2)[r.row] for r in (collapsed, separate)
    )
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_log_probabilities_are_those_of_the_policy() -> None:
    policy, (observations, _) = make_policy(), make_rows()
    distribution = policy.get_distribution(torch.as_tensor(observations)).distribution
    assert isinstance(distribution, Categorical)
    expected = distribution.logits
    found = as_actor(policy).outputs(observations).distribution.log_probs()
    torch.testing.assert_close(found, expected)


class _LogProb:
    """log pi(a|s) for traker, whose own base class wants exactly these two functions."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.shell = _Actor(policy)

    @staticmethod
    def get_output(
        model: nn.Module, weights: dict[str, Tensor], buffers: dict[str, Tensor], obs: Tensor, action: Tensor
    ) -> Tensor:
        logits = torch.func.functional_call(model, (weights, buffers), (obs[None],))
        return (torch.log_softmax(logits, 1)[0] * (torch.arange(logits.shape[1]) == action)).sum()

    @staticmethod
    def get_out_to_loss_grad(model: nn.Module, weights: object, buffers: object, batch: tuple[Tensor, ...]) -> Tensor:
        return torch.ones(len(batch[0]), 1)


class _Actor(nn.Module):
    """The actor alone: traker takes gradients by all parameters of a module."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.body, self.head = policy.mlp_extractor.policy_net, policy.action_net

    def forward(self, observations: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(observations))
        return out


@pytest.mark.filterwarnings("ignore")  # traker's own warnings about its optional CUDA kernels
def test_scores_rank_as_traker_without_projection_does(tmp_path: Path) -> None:
    """With NoOpProjector, float32 and lambda n / P traker computes the same scores up to one factor."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput
    from trak.projectors import NoOpProjector

    class Output(_LogProb, AbstractModelOutput):  # type: ignore[misc]
        pass

    lam = 1e-2
    observations, actions = make_rows(60, 60)
    policy, targets = make_policy(), log_prob_target(7)
    exact = distinct(observations, actions)
    expected = policy_gradients(as_actor(make_policy()), exact, targets, "w").trak(lam)[exact.row]
    task = Output(policy)
    parameters = sum(p.numel() for p in task.shell.parameters())
    traker = TRAKer(
        task.shell, task, train_set_size=60, save_dir=str(tmp_path), device="cpu", use_half_precision=False,
        projector=NoOpProjector(grad_dim=parameters, proj_dim=parameters, device="cpu"), proj_dim=parameters,
        lambda_reg=lam * 60 / parameters, logging_level=50,
    )  # fmt: skip
    traker.load_checkpoint(task.shell.state_dict(), model_id=0)
    traker.featurize(batch=(torch.as_tensor(observations), torch.as_tensor(actions)), num_samples=60)
    traker.finalize_features()
    traker.start_scoring_checkpoint("test", task.shell.state_dict(), model_id=0, num_targets=7)
    traker.score(batch=(torch.as_tensor(targets.observations), torch.as_tensor(targets.actions)), num_samples=7)
    found = traker.finalize_scores("test")
    for failure in range(7):
        assert spearmanr(found[:, failure], expected[:, failure]).statistic >= 0.9999


def test_a_tabular_policy_gets_exactly_zero_at_a_state_never_visited() -> None:
    """One-hot states and a table of logits: no training reward can move the probabilities elsewhere."""
    policy = make_policy(hidden=())
    policy.action_net = nn.Linear(5, 3, bias=False)
    states = np.eye(5, dtype=np.float32)
    visited = np.tile(np.arange(4), 6)
    actions = np.random.default_rng(0).integers(0, 3, len(visited))
    targets = make_targets(2)
    targets.observations[:] = states[4]
    gradients = policy_gradients(as_actor(policy), distinct(states[visited], actions), targets, "w")
    assert (gradients.trak(1e-2) == 0.0).all()
    targets.observations[:] = states[0]
    seen = policy_gradients(as_actor(policy), distinct(states[visited], actions), targets, "w").trak(1e-2)
    assert (seen != 0.0).any(), "the visited state must be moved, or the test is blind"


def test_a_non_finite_gradient_is_an_error_that_names_window_and_row() -> None:
    observations, actions = make_rows()
    observations[11, 2] = np.nan
    with pytest.raises(NonFiniteError, match="window=00003, row 11"):
        policy_gradients(as_actor(make_policy()), distinct(observations, actions), make_targets(), "window=00003")


def test_a_policy_with_other_layers_is_refused_by_name() -> None:
    policy = make_policy()
    policy.mlp_extractor.policy_net = nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))
    with pytest.raises(InputError, match="LayerNorm"):
        gradient_factors(
            as_actor(policy), np.zeros((1, 5), np.float32), lambda said: said.distribution.log_probs().sum()
        )


@pytest.mark.parametrize("lam", LAMBDAS)
def test_large_windows_are_scored_in_float32_within_one_in_ten_thousand(
    lam: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    observations, actions = make_rows(300, 260)
    rows = distinct(observations, actions)
    exact = policy_gradients(as_actor(make_policy()), rows, make_targets(), "w").trak(lam)
    monkeypatch.setattr("aitia.attribution.gradients.kernel.DOUBLE_ROWS", 100)
    monkeypatch.setattr("aitia.attribution.gradients.kernel.low_rank", lambda gradients, probe: None)
    gradients = policy_gradients(as_actor(make_policy()), rows, make_targets(), "w")
    error = np.abs(gradients.trak(lam) - exact).max() / np.abs(exact).max()
    assert error < 1e-4 and (error > 1e-9) == ("_whole" not in vars(gradients))
