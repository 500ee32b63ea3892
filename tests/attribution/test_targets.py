"""Targets: the misbehaviour functional of a failure."""

from __future__ import annotations

import sys
import types

import numpy as np
import pyarrow as pa
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from hypothesis import given
from hypothesis import strategies as st
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from small_policies import make_targets as both_kinds
from small_policies import said
from stable_baselines3.common.policies import ActorCriticPolicy

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.actors.inputs import PolicyInputs
from aitia.attribution.targets.steps import Targets, UserSteps, decisive_steps, make_targets
from aitia.datasets import schema
from aitia.datasets.arrays import ArrayFormat, array_metadata, encode_arrays
from aitia.datasets.errors import InputError, TaskError


def test_labels_target_is_the_log_odds_of_misbehaving_against_desired_actions() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=torch.float64)
    labels = np.array([[1, -1, 0], [1, -1, 1]], dtype=np.int8)
    targets = Targets(
        ("0-0",), ("labels",), np.zeros(2, int), np.zeros((2, 1)), np.zeros(2, int), labels, np.ones(2, bool)
    )
    expected = 0.5 * (np.log(0.5 / 0.3) + np.log(0.4 / 0.6))
    assert targets.values(said(probabilities.log())).item() == pytest.approx(expected, abs=1e-12)


def test_log_odds_target_is_the_mean_log_odds_of_the_actions_taken() -> None:
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.6, 0.3]], dtype=torch.float64)
    targets = Targets(
        ("0-0",), ("log-odds",), np.zeros(2, int), np.zeros((2, 1)), np.array([1, 2]),
        np.zeros((2, 3), np.int8), np.zeros(2, bool),
    )  # fmt: skip
    expected = 0.5 * (np.log(0.3 / 0.7) + np.log(0.3 / 0.7))
    assert targets.values(said(probabilities.log())).item() == pytest.approx(expected, abs=1e-12)


def test_indecisive_steps_do_not_count() -> None:
    labels = np.array([[1, -1], [0, 0]], dtype=np.int8)
    targets = Targets(
        ("0-0",),
        ("labels",),
        np.zeros(2, int),
        np.zeros((2, 1)),
        np.zeros(2, int),
        labels,
        np.array([True, False]),
    )
    log_probs = torch.log(torch.tensor([[0.8, 0.2], [0.3, 0.7]], dtype=torch.float64)).requires_grad_()
    value = targets.values(said(log_probs))
    assert value.item() == pytest.approx(np.log(4.0))
    value.sum().backward()
    assert log_probs.grad is not None and not log_probs.grad[1].any() and torch.isfinite(log_probs.grad).all()


def test_a_failure_does_not_depend_on_the_steps_of_another() -> None:
    targets = both_kinds()
    log_probs = torch.log_softmax(torch.randn(len(targets.failure), 3, dtype=torch.float64), 1).requires_grad_()
    targets.values(said(log_probs))[1].backward()
    assert log_probs.grad is not None
    touched = set(targets.failure[log_probs.grad.abs().sum(1).numpy() > 0].tolist())
    assert touched == {1}


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=2, max_size=5), st.integers(0, 4))
def test_a_step_is_decisive_iff_labels_hold_both_signs_and_the_action_misbehaves(row: list[int], action: int) -> None:
    action %= len(row)
    expected = 1 in row and -1 in row and row[action] == 1
    assert decisive_steps(np.array([row], np.int8), np.array([action]))[0] == expected


def steps_table(labels: list[list[int] | None]) -> tuple[pa.Table, pa.Table]:
    n = len(labels)
    observations = np.arange(n, dtype=np.float32)[:, None]
    steps = pa.table(
        {
            "seed": pa.array([0] * n, pa.int32()), "part": ["test"] * n, "episode": pa.array([3] * n, pa.int32()),
            "t": pa.array(range(n), pa.int32()), "observation": encode_arrays(observations),
            "action": pa.array([1] * n, pa.int64()), "action_labels": pa.array(labels, pa.list_(pa.int8())),
        }
    )  # fmt: skip
    metadata = {**array_metadata("observation", ArrayFormat((1,), "float32")), "actions": "2"}
    return schema.with_metadata(steps, metadata), pa.table({"seed": [0], "episode": [3]})


def test_auto_takes_labels_where_a_step_is_decisive_and_log_odds_elsewhere() -> None:
    assert make_targets(*steps_table([[0, 0], [-1, 1]]), "auto").kinds == ("labels",)
    assert make_targets(*steps_table([[0, 0], [1, -1]]), "auto").kinds == ("log-odds",)
    assert make_targets(*steps_table([None, None]), "auto").kinds == ("log-odds",)


def test_labels_need_an_environment_that_tells_them() -> None:
    with pytest.raises(TaskError, match="tells no `action_labels`"):
        make_targets(*steps_table([None, None]), "labels")
    assert make_targets(*steps_table([[0, 0], [1, -1]]), "labels").kinds == ("log-odds",)


def first_action_target(log_probs: torch.Tensor, steps: UserSteps) -> torch.Tensor:
    """A user's own target: the mean log-probability of the first action."""
    assert len(steps.observations) == len(steps.actions) == len(log_probs)
    return log_probs[:, 0].mean()


def test_a_users_function_is_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("my_targets")
    module.first = first_action_target  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_targets", module)
    targets = make_targets(*steps_table([[0, 0], [-1, 1]]), "my_targets:first")
    log_probs = torch.log_softmax(torch.randn(2, 2, dtype=torch.float64), 1)
    assert targets.values(said(log_probs)).tolist() == pytest.approx([log_probs[:, 0].mean().item()])
    module.first = lambda log_probs, steps: log_probs  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="expected one number"):
        make_targets(*steps_table([[0, 0], [-1, 1]]), "my_targets:first").values(said(log_probs))


def test_an_unknown_target_module_is_an_error() -> None:
    with pytest.raises(TaskError, match="no_such_module"):
        make_targets(*steps_table([None]), "no_such_module:f")


KINDS = ("labels", "log-odds", "episode", "value")


@pytest.mark.parametrize("masked", [False, True])
def test_equal_steps_are_computed_once_and_steps_that_do_not_count_never(masked: bool) -> None:
    """The distinct steps, weighted, have the gradients of the targets: every kind, few states, masked or not."""
    generator, failures, steps = np.random.default_rng(0), 24, 600
    states, actions = generator.integers(0, 4, steps), generator.integers(0, 3, steps)
    mask = generator.random((steps, 3)) < 0.7
    mask[np.arange(steps), actions] = True
    signs = np.eye(3, dtype=np.int8)[actions] - np.eye(3, dtype=np.int8)[(actions + 1) % 3]
    failure = np.sort(np.concatenate([np.arange(failures), generator.integers(0, failures, steps - failures)]))
    targets = Targets(
        tuple(map(str, range(failures))), tuple(KINDS[i % 4] for i in range(failures)), failure,
        states[:, None].astype(float), actions, signs, generator.random(steps) < 0.5, None,
        PolicyInputs(mask if masked else None),
    )  # fmt: skip
    distinct = targets.distinct(remembers=False)
    assert len(distinct.steps.failure) < 4 * 3 * (4 + 4 * masked) * 4 < len(distinct.step) < steps
    policy = small_policy(masked)

    def gradients(of: Targets) -> torch.Tensor:
        values, parameters = of.values(as_actor(policy).outputs(of.observations, of.inputs)), list(policy.parameters())
        rows = [torch.autograd.grad(v, parameters, retain_graph=True, materialize_grads=True) for v in values]
        return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])

    expected, of_steps = gradients(targets), gradients(distinct.steps)
    weighted = torch.as_tensor(distinct.weight)[:, None] * of_steps[torch.as_tensor(distinct.step)]
    found = torch.zeros_like(expected).index_add(0, torch.as_tensor(distinct.failure), weighted)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def small_policy(masked: bool) -> ActorCriticPolicy:
    kind: type[ActorCriticPolicy] = MaskableActorCriticPolicy if masked else ActorCriticPolicy  # type: ignore[assignment]
    torch.manual_seed(0)
    return kind(Box(-5, 5, (1,)), Discrete(3), lambda _: 0.0, net_arch=[4]).double()
