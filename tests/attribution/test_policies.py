"""Every kind of policy: exact scores equal the primal formula, one gradient a transition, and all stages run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_policies import flat_gradient_of
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from trained import Trained

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.estimators.projected import TrakProjected
from aitia.attribution.estimators.window import Window
from aitia.attribution.gradients.channels import policy_gradients, value_gradients
from aitia.attribution.gradients.factors import Factors
from aitia.attribution.gradients.layers import gradient_factors, why_not_factored
from aitia.attribution.gradients.rows import WindowRows
from aitia.attribution.targets.steps import Targets
from aitia.datasets.errors import InputError
from aitia.datasets.files.store import read_tensors
from aitia.training.agents.play import EvaluationSpec, evaluate_policy
from aitia.training.agents.spec import load_policy

KINDS = [
    ("vector", "discrete", True), ("vector", "multi", True), ("vector", "binary", True), ("vector", "box", True),
    ("cell", "discrete", True), ("image", "discrete", True), ("image", "box", False), ("dict", "multi", True),
    ("dict", "discrete", False),
]  # fmt: skip
LAM = 1e-2


def primal(policy: ActorCriticPolicy, window: Window, targets: Targets, scale: float | None) -> NDArray[Any]:
    """TRAK by the definition on the window's transitions; with `scale` those of the value loss."""
    policy.double()
    row = window.rows.row
    said = as_actor(policy).outputs(window.rows.observations[row])
    actions = torch.as_tensor(window.rows.actions[row])
    scalars = said.distribution.log_prob(actions) if scale is None else scale * said.values
    phi = torch.stack([flat_gradient_of(policy, value) for value in scalars])
    values = targets.values(as_actor(policy).outputs(targets.observations))
    q = torch.stack([flat_gradient_of(policy, value) for value in values], dim=1)
    system = phi @ phi.T / len(phi) + LAM * torch.eye(len(phi), dtype=phi.dtype)
    small: Tensor = torch.linalg.solve(system, phi @ q)  # the push-through identity, on gradients formed one by one
    assert torch.isfinite(small).all()
    return small.numpy()


@pytest.mark.parametrize(("observe", "act", "one_extractor"), KINDS)
def test_exact_equals_primal_for_every_policy_kind(observe: str, act: str, one_extractor: bool, tmp_path: Path) -> None:
    """Also a whole recorded training and evaluation of each kind."""
    trained = Trained(tmp_path, observe, act, one_extractor)
    window = trained.window
    for kind in ("log-odds", "episode", "value"):
        targets = trained.targets(kind)
        expected = primal(trained.policy, window, targets, None)
        found = policy_gradients(as_actor(trained.policy), window.rows, targets, "w").trak(LAM)[window.rows.row]
        scale = max(np.abs(expected).max(), 1e-12)
        assert np.abs(found - expected).max() / scale < 1e-8
        by_value = value_gradients(as_actor(trained.policy), window.rows, targets, "w", 0.7)
        expected = primal(trained.policy, window, targets, 0.7)
        if by_value is None:
            assert not expected.any(), "the value channel was called zero and is not"
        else:
            assert expected.any()
            found = by_value.trak(LAM)[window.rows.row]
            assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-8
    shares = one_extractor and observe in ("image", "dict")
    assert (
        value_gradients(as_actor(trained.policy), window.rows, trained.targets("log-odds"), "w", 1.0) is not None
    ) == shares


@pytest.mark.parametrize(("observe", "act", "one_extractor"), KINDS)
def test_recorded_log_probabilities_and_values_are_those_of_the_policy(
    observe: str, act: str, one_extractor: bool, tmp_path: Path
) -> None:
    """From the recorded bytes back to what the policy said: channels, dtypes and distributions are right."""
    trained = Trained(tmp_path, observe, act, one_extractor)
    import pyarrow.parquet as pq

    table = pq.read_table(trained.folder.transitions_path(0, 0))
    policy = load_policy(trained.agent, trained.env, read_tensors(trained.folder.checkpoint_path(0, 0)))
    row = trained.window.rows.row
    said = as_actor(policy).outputs(trained.window.rows.observations[row])
    log_prob = said.distribution.log_prob(torch.as_tensor(trained.window.rows.actions[row]))
    np.testing.assert_allclose(log_prob.detach().numpy(), table["log_prob"].to_numpy(), atol=2e-5)
    np.testing.assert_allclose(said.values.detach().numpy(), table["value"].to_numpy(), atol=2e-5)
    _, steps = evaluate_policy(policy, trained.env, EvaluationSpec(episodes=2, repeats=1), 0, "test")
    from aitia.datasets.arrays import array_format, decode_actions, decode_arrays

    observations = decode_arrays(steps["observation"], array_format(steps.schema, "observation"))
    assert observations.dtype == trained.window.rows.observations.dtype
    again = as_actor(policy).outputs(observations).distribution.log_prob(torch.as_tensor(decode_actions(steps)))
    np.testing.assert_allclose(again.detach().numpy(), steps["log_prob"].to_numpy(), atol=2e-5)
    _, chance = evaluate_policy(None, trained.env, EvaluationSpec(episodes=2, repeats=1), -1, "test")
    assert chance.schema.equals(steps.schema, check_metadata=True), "the two are one table"


@pytest.mark.parametrize(("observe", "act"), [("image", "discrete"), ("dict", "multi"), ("vector", "box")])
@pytest.mark.filterwarnings("ignore")
def test_the_projection_scores_every_kind_and_correlates_with_exact(observe: str, act: str, tmp_path: Path) -> None:
    trained = Trained(tmp_path, observe, act, True)
    targets = trained.targets("log-odds")
    exact = policy_gradients(as_actor(trained.policy), trained.window.rows, targets, "w").trak(LAM)[
        trained.window.rows.row
    ]
    prepared = TrakProjected(1024).prepare(trained.window, as_actor(trained.policy), targets)
    found = prepared.influence(LAM, slice(0, 2)).scores
    for failure in range(2):
        assert np.corrcoef(found[:, failure], exact[:, failure])[0, 1] > 0.9


class _Embedded(nn.Module):
    """Two indices, one table: an embedding that is used at two places of a row."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 3, padding_idx=0), nn.Linear(6, 2)

    def forward(self, cells: Tensor) -> Tensor:
        return self.head(self.table(cells.long()).flatten(1))  # type: ignore[no-any-return]


def test_embeddings_and_strided_padded_convolutions_are_factored_exactly() -> None:
    from aitia.attribution.gradients.layers import _layer_factors

    torch.manual_seed(0)
    layers: list[tuple[nn.Module, Tensor]] = [
        (nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)).double(), torch.randn(5, 2, 7, 8)),
        (nn.Embedding(7, 3, padding_idx=0).double(), torch.randint(0, 7, (5, 4))),
        (nn.Linear(4, 3, bias=False).double(), torch.randn(5, 6, 4)),
    ]
    for layer, inputs in layers:
        given = inputs if inputs.dtype == torch.int64 else inputs.double()
        output = layer(given)
        scalars = (output**3).flatten(1).sum(1)
        rows = [torch.autograd.grad(s, list(layer.parameters()), retain_graph=True) for s in scalars]
        phi = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])
        (derivative,) = torch.autograd.grad(scalars.sum(), output)
        factors = _layer_factors(layer, given, derivative)
        whole = Factors(5, {"layer": factors})
        for gram in (whole.gram(), whole.products(whole)):
            torch.testing.assert_close(gram.triu(), (phi @ phi.T).triu(), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(whole.norms, phi.square().sum(1), rtol=1e-10, atol=1e-10)


def test_unfactored_layers_are_named_and_in_place_activations_change_nothing() -> None:
    space = gym.spaces.Box(-1, 1, (5,))
    torch.manual_seed(0)
    policy = ActorCriticPolicy(space, gym.spaces.Discrete(3), lambda _: 0.0, activation_fn=nn.ReLU)
    observations = torch.randn(6, 5).numpy()

    def gram() -> Tensor:
        factors = gradient_factors(
            as_actor(policy), observations, lambda said: said.distribution.log_probs()[:, 0].sum()
        )
        return factors.products(factors)

    expected = gram()
    for module in policy.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    torch.testing.assert_close(gram(), expected)
    policy.mlp_extractor.policy_net = nn.Sequential(nn.Linear(5, 64), nn.LayerNorm(64))
    reason = why_not_factored(as_actor(policy))
    assert reason is not None and "LayerNorm" in reason
    with pytest.raises(InputError, match="trak-projected"):
        gram()
    sde = ActorCriticPolicy(space, gym.spaces.Box(-1, 1, (2,)), lambda _: 0.0, use_sde=True)
    assert "use_sde" in str(why_not_factored(as_actor(sde)))


def test_rows_are_collapsed_for_dictionaries_and_arrays_of_actions() -> None:
    rows = np.array([(1, 2.0), (1, 2.0), (1, 3.0)], dtype=[("cell", "i8"), ("vector", "f4")])
    found = WindowRows.of(rows, np.array([[0, 1], [0, 1], [0, 1]]))
    assert sorted(found.counts.tolist()) == [1, 2] and found.row[0] == found.row[1] != found.row[2]


def test_blocks_of_channels_and_rows_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Convolution gradients are formed for a block at a time: one channel and one row at a time give the same."""
    trained = Trained(tmp_path, "image", "discrete", True)
    targets, rows = trained.targets("log-odds"), trained.window.rows
    whole = policy_gradients(as_actor(trained.policy), rows, targets, "w").trak(LAM)
    for name in ("_BLOCK_BYTES", "_UNFOLDED_BYTES"):
        monkeypatch.setattr(f"aitia.attribution.gradients.factors.{name}", 1)
    blocks = policy_gradients(as_actor(trained.policy), rows, targets, "w").trak(LAM)
    np.testing.assert_allclose(blocks, whole, rtol=1e-9)
