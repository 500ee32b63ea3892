"""MaskablePPO and RecurrentPPO: exact per-sample gradients are those of sb3-contrib's own policies."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from small_policies import flat_gradient_of
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from toy_environments import Masked
from trained import Trained

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.actors.inputs import History, PolicyInputs
from aitia.attribution.actors.outputs import ActionDistribution
from aitia.attribution.estimators.projected import TrakProjected
from aitia.attribution.estimators.registry import choose_estimator
from aitia.attribution.gradients.channels import policy_gradients, value_gradients
from aitia.attribution.gradients.layers import Functional, gradient_factors, why_not_factored
from aitia.attribution.targets.steps import make_targets
from aitia.datasets.errors import InputError
from aitia.training.agents.memory import rnn_states, stacked_states, zero_states
from aitia.training.agents.play import EvaluationSpec, evaluate_policy
from aitia.training.environments.spaces import as_tensors

LAM = 1e-2
LSTM: dict[str, Any] = {"lstm_hidden_size": 5}
ONE = {**LSTM, "shared_lstm": True, "enable_critic_lstm": False}
NONE = {**LSTM, "enable_critic_lstm": False, "lstm_kwargs": {"bias": False}}
KINDS = [
    ("MaskablePPO", "vector", "discrete", True, {}), ("MaskablePPO", "dict", "multi", True, {}),
    ("MaskablePPO", "cell", "binary", False, {}),
    ("RecurrentPPO", "vector", "discrete", True, LSTM),
    ("RecurrentPPO", "vector", "box", False, {**LSTM, "n_lstm_layers": 2}),
    ("RecurrentPPO", "dict", "multi", True, ONE), ("RecurrentPPO", "image", "discrete", True, NONE),
]  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(map(str, kind[:3])))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    algorithm, observe, act, share, kwargs = request.param
    return Trained(tmp_path_factory.mktemp("run"), observe, act, share, algorithm, 2, policy_kwargs=kwargs)


def columns(trained: Trained, window: int) -> dict[str, NDArray[Any]]:
    table = pq.read_table(trained.folder.transitions_path(0, window))
    return {name: table[name].to_numpy() for name in ("t", "step", "env", "log_prob", "value")}


def own_states(policy: ActorCriticPolicy, trained: Trained) -> Tensor:
    """States that came in at every row of the first window, by sb3-contrib's own forward pass, step by step."""
    found = columns(trained, 0)
    row, asked = trained.window.rows.row, cast(Any, policy)
    states = torch.zeros(len(row), *zero_states(policy).shape, dtype=torch.float64)
    for env in np.unique(found["env"]):
        carried = rnn_states(zero_states(policy).double()[None])
        for n in np.flatnonzero(found["env"] == env):
            starts = torch.tensor([float(found["t"][n] == 0)], dtype=torch.float64)
            states[n] = stacked_states(carried)[0] * (1.0 - starts)
            observation = as_tensors(trained.window.rows.observations[row[n : n + 1]])
            with torch.no_grad():
                *_, carried = asked.forward(doubled(observation), carried, starts, deterministic=True)
    return states


def doubled(observations: Any) -> Any:
    """Numbers in float64; images and cells as they are, for the policy to prepare."""
    if isinstance(observations, dict):
        return {name: doubled(values) for name, values in observations.items()}
    return observations.double() if observations.dtype == torch.float32 else observations


def evaluated(policy: ActorCriticPolicy, trained: Trained) -> tuple[Tensor, Tensor]:
    """V(s) and log pi(a|s) of every row of the first window as sb3-contrib has them; each row is a sequence."""
    rows = trained.window.rows
    observations, actions = doubled(as_tensors(rows.observations[rows.row])), torch.as_tensor(rows.actions[rows.row])
    asked: Any = policy
    if trained.agent.masked:
        assert rows.inputs.mask is not None
        masks = torch.as_tensor(rows.inputs.mask[rows.row])
        assert not masks.all(), "nothing was masked: the test is blind"
        values, log_probs, _ = asked.evaluate_actions(observations, actions, action_masks=masks)
    else:
        states = own_states(policy, trained)
        assert states.abs().sum(dim=(1, 2, 3)).count_nonzero() > len(states) / 2, "no state came in: the test is blind"
        starts = torch.zeros(len(states))
        values, log_probs, _ = asked.evaluate_actions(observations, actions, rnn_states(states), starts)
    return values[:, 0], log_probs


def in_double(monkeypatch: pytest.MonkeyPatch, policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """The policy in float64: SB3 prepares images and categories in float32, whatever its parameters are."""
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    return policy.double()


def test_per_sample_gradients_are_those_of_sb3_contribs_evaluate_actions(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = in_double(monkeypatch, trained.policy)
    values, log_probs = evaluated(policy, trained)
    rows = trained.window.rows
    actions = torch.as_tensor(rows.actions)
    channels: list[tuple[Tensor, Functional]] = [
        (log_probs, lambda said: said.distribution.log_prob(actions).sum()),
        (values, lambda said: said.values.sum()),
    ]
    for expected, functional in channels:
        phi = torch.stack([flat_gradient_of(policy, scalar) for scalar in expected])
        found = gradient_factors(as_actor(policy), rows.observations, functional, rows.inputs)
        gram = found.products(found)[rows.row][:, rows.row]
        assert phi.any()
        torch.testing.assert_close(gram, phi @ phi.T, rtol=1e-9, atol=1e-12)


def test_scores_are_those_of_the_definition(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole estimator: window rows, targets, and the value channel where trunks are shared."""
    policy, rows = in_double(monkeypatch, trained.policy), trained.window.rows
    values, log_probs = evaluated(policy, trained)
    targets = trained.targets("log-odds")
    said = as_actor(policy).outputs(targets.observations, targets.inputs)
    q = torch.stack([flat_gradient_of(policy, value) for value in targets.values(said)], dim=1)
    for scalars, gradients in (
        (log_probs, policy_gradients(as_actor(policy), rows, targets, "w")),
        (0.7 * values, value_gradients(as_actor(policy), rows, targets, "w", 0.7)),
    ):
        phi = torch.stack([flat_gradient_of(policy, scalar) for scalar in scalars])
        if gradients is None:
            assert not (phi @ q).any(), "the value channel was called zero and is not"
            continue
        system = phi @ phi.T / len(phi) + LAM * torch.eye(len(phi), dtype=phi.dtype)
        expected = torch.linalg.solve(system, phi @ q).numpy()  # the push-through identity
        found = gradients.trak(LAM)[rows.row]
        assert np.abs(found - expected).max() / np.abs(expected).max() < 1e-8


def test_recorded_log_probabilities_and_values_come_back(trained: Trained) -> None:
    """In the second window LSTM states come in from the first: they are recorded, for nothing else tells them."""
    kept, window = columns(trained, 1), trained.windows[1]
    said = as_actor(trained.collected(1)).outputs(window.rows.observations, window.rows.inputs)
    log_prob = said.distribution.log_prob(torch.as_tensor(window.rows.actions)).detach().numpy()
    np.testing.assert_allclose(log_prob[window.rows.row], kept["log_prob"], atol=2e-5)
    np.testing.assert_allclose(said.values.detach().numpy()[window.rows.row], kept["value"], atol=2e-5)
    history = window.rows.inputs.history
    if history is not None:
        assert history.states is not None and history.states.any(), "no state came in: the test is blind"
        forgotten = replace(window.rows.inputs, history=History(history.first))
        other = as_actor(trained.collected(1)).outputs(window.rows.observations, forgotten)
        changed = other.distribution.log_prob(torch.as_tensor(window.rows.actions)).detach().numpy() - log_prob
        assert np.abs(changed).max() > 1e-6


@pytest.mark.parametrize(("algorithm", "act"), [("MaskablePPO", "multi"), ("RecurrentPPO", "discrete")])
@pytest.mark.filterwarnings("ignore")
def test_the_projection_correlates_with_exact(algorithm: str, act: str, tmp_path: Path) -> None:
    trained = Trained(tmp_path, "vector", act, True, algorithm, policy_kwargs={"net_arch": [8]} | LSTM_OF[algorithm])
    targets, rows = trained.targets("log-odds"), trained.window.rows
    exact = policy_gradients(as_actor(trained.policy), rows, targets, "w").trak(LAM)[rows.row]
    found = (
        TrakProjected(1024)
        .prepare(trained.window, as_actor(trained.policy), targets)
        .influence(LAM, slice(0, 2))
        .scores
    )
    for failure in range(2):
        assert np.corrcoef(found[:, failure], exact[:, failure])[0, 1] > 0.9


LSTM_OF: dict[str, dict[str, Any]] = {"MaskablePPO": {}, "RecurrentPPO": LSTM}


def test_targets_of_a_recurrent_policy_are_asked_with_its_own_memory_of_the_episode(tmp_path: Path) -> None:
    """The states of the agent that failed mean nothing to another network: it reads the episode again."""
    trained = Trained(tmp_path, "vector", "discrete", True, "RecurrentPPO", policy_kwargs=LSTM)
    plays, steps = evaluate_policy(trained.loaded, trained.env, EvaluationSpec(episodes=3, repeats=1), 0, "test")
    targets = make_targets(steps, plays, "episode")
    other: Any = trained.policy
    found = targets.values(as_actor(other).outputs(targets.observations, targets.inputs)).tolist()
    for failure in range(3):
        rows = np.flatnonzero(targets.failure == failure)
        assert len(rows) > 1
        starts = torch.zeros(len(rows))
        starts[0] = 1.0
        _, log_probs, _ = other.evaluate_actions(
            as_tensors(targets.observations[rows]), torch.as_tensor(targets.actions[rows]),
            rnn_states(zero_states(other)[None]), starts,
        )  # fmt: skip
        assert found[failure] == pytest.approx(log_probs.sum().item(), abs=1e-5)


def test_an_action_that_is_not_allowed_has_no_part_in_a_target(tmp_path: Path) -> None:
    trained = Trained(tmp_path, "vector", "discrete", True, "MaskablePPO")
    plays, steps = evaluate_policy(trained.loaded, trained.env, EvaluationSpec(episodes=4, repeats=1), 0, "test")
    labels = np.tile(np.array([-1, 1, 1], np.int8), (steps.num_rows, 1))
    index = steps.column_names.index("action_labels")
    import pyarrow as pa

    labelled = steps.set_column(index, "action_labels", pa.array(labels.tolist(), pa.list_(pa.int8())))
    targets = make_targets(labelled, plays, "auto")
    assert targets.inputs.mask is not None
    np.testing.assert_array_equal(targets.labels, np.where(targets.inputs.mask, labels, 0))
    forced = targets.inputs.mask.sum(axis=1) == 1
    assert forced.any() and not targets.decisive[forced].any()


def test_masked_odds_are_among_allowed_actions_and_a_forced_action_has_none() -> None:
    head = torch.tensor([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, True, False], [False, True, False]])
    distribution = ActionDistribution(Masked().action_space, head, mask=mask)
    odds = distribution.log_odds(torch.tensor([1, 1]))
    torch.testing.assert_close(odds.detach(), torch.tensor([1.0, 0.0]))
    (gradient,) = torch.autograd.grad(odds.sum(), head)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))


def test_what_is_not_exact_is_refused_or_projected(tmp_path: Path) -> None:
    trained = Trained(tmp_path, "vector", "discrete", True, "RecurrentPPO", policy_kwargs=LSTM)
    assert choose_estimator(as_actor(trained.policy), 64).name == "trak"
    assert choose_estimator(as_actor(trained.policy), 10_000).name == "trak-projected"
    with pytest.raises(InputError, match="what came before in the episode"):
        as_actor(trained.policy).outputs(trained.window.rows.observations, PolicyInputs()).latent  # noqa: B018
    policy: Any = trained.policy
    policy.lstm_actor = nn.LSTM(2, 5, bidirectional=True)
    assert "lstm_actor" in str(why_not_factored(as_actor(policy)))
