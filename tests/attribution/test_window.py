"""One window: group sums, top transitions, chunks; and the order in which groups are corrected."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from small_policies import gae, make_policy, make_targets, make_window, shared_policy

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.effects.order import (
    EffectTable,
    area_under_curve,
    attribution_order,
    effect_table,
    nested_sizes,
    random_order,
)
from aitia.attribution.effects.top import Leaders, keep_top
from aitia.attribution.effects.window import attribute_window
from aitia.attribution.estimators import base as estimators
from aitia.attribution.estimators.base import Prepared, Trak, TrakLinear
from aitia.attribution.estimators.window import Window
from aitia.attribution.gradients.channels import policy_gradients
from aitia.attribution.gradients.kernel import LAMBDAS
from aitia.datasets.schema import TOP_TRANSITIONS


def dense_tau(window: Window) -> NDArray[np.float64]:
    scores = policy_gradients(as_actor(make_policy()), window.rows, make_targets(), "w").trak(Trak().damping)[
        window.rows.row
    ]
    return window.signal.reward_influence(scores).tau


def test_group_sums_are_sums_of_corrections_times_influence() -> None:
    window, linear = make_window(), TrakLinear(damping=Trak().damping)
    sums = attribute_window(window, as_actor(make_policy()), make_targets(), linear).sums
    tau, change = dense_tau(window), window.correction
    assert change is not None and window.intended is not None
    for index, group in enumerate(sums.groups):
        rows = window.group == group
        expected = (change[rows, None] * tau[rows]).sum(0)
        np.testing.assert_allclose(sums.effects["effect"][0, :, index], expected, rtol=1e-9)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("epochs", [0, 2])
def test_sums_at_every_damping_are_those_of_the_influence(normalize: bool, epochs: int) -> None:
    """Effects by a solve a change (the adjoint backwards) against sums of the influence itself, in both channels.

    Of changes so small that finite differences are derivatives.
    """
    window, generator = make_window(), np.random.default_rng(3)
    batches = np.array([generator.permutation(40) // 16 for _ in range(epochs)], np.int32).T
    minibatches = batches if epochs else None
    advantages = replace(
        gae(window), normalize=normalize, minibatches=minibatches, reward_scale=generator.uniform(0.5, 2.0, 40)
    )
    change = np.where(generator.random((40, 3)) < 0.3, 1e-7 * generator.normal(size=(40, 3)), 0.0)
    targets = make_targets(5)
    for policy in (make_policy(), shared_policy()):
        prepared = Trak().prepare(replace(window, signal=advantages), as_actor(policy), targets)
        for lam in LAMBDAS:
            few = prepared.effects(lam, change, 5)  # 3 changes and 5 failures: a solve a change
            expected = Prepared.effects(prepared, lam, change, 5)
            many = prepared.effects(lam, change, 5)  # the scores of all failures are there
            for name, total, wanted, same in zip(few._fields, few, expected, many, strict=True):
                assert total is not None and wanted is not None and same is not None
                largest = np.abs(wanted).max()
                np.testing.assert_allclose(total, wanted, rtol=1e-4, atol=1e-5 * largest, err_msg=f"{name} at {lam}")
                np.testing.assert_allclose(same, total, rtol=1e-8, atol=1e-10 * largest, err_msg=f"{name} at {lam}")
        assert np.abs(few.effect).max() > 0.0
    assert few.value is not None and np.abs(few.value).max() > 0.0, (
        "actor and critic share their features: both channels are open"
    )


@pytest.mark.parametrize("intended", [True, False])
def test_leaders_leave_out_only_what_cannot_be_among_the_top(intended: bool) -> None:
    first, targets, leaders = make_window(intended), make_targets(), Leaders.none(make_targets().ids, 3)
    generator = np.random.default_rng(4)
    windows = [first, *(replace(first, number=n, reward=first.reward * generator.random(40)) for n in range(1, 6))]
    whole, short = [], []
    for window in windows:
        whole.append(attribute_window(window, as_actor(make_policy()), targets, Trak(), 3).top.cast(TOP_TRANSITIONS))
        short.append(
            attribute_window(window, as_actor(make_policy()), targets, Trak(), 3, leaders).top.cast(TOP_TRANSITIONS)
        )
        leaders = leaders.add((0, window.number), short[-1])
    every, fewer = (pa.concat_tables(tables) for tables in (whole, short))
    assert fewer.num_rows < every.num_rows
    assert keep_top(fewer, 3).combine_chunks().equals(keep_top(every, 3).combine_chunks())


def test_failures_without_top_transitions_leave_the_columns_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a window whose transitions are all below the leaders, for a chunk of failures or for all."""
    monkeypatch.setattr(estimators, "_CHUNK", 2)
    for below in (2, 0):
        targets, leaders = make_targets(), Leaders.none(make_targets().ids, 3)
        leaders.least[:, below:] = np.inf
        top = attribute_window(make_window(), as_actor(make_policy()), targets, Trak(), 3, leaders).top
        assert top.schema.equals(TOP_TRANSITIONS)
        assert set(top["failure"].to_pylist()) == set(targets.ids[:below])


def test_unit_sums_give_the_effect_of_paying_something_else() -> None:
    """Of the reward events, or, where a group is one state and action, of all its transitions."""
    for everywhere in (False, True):
        window = make_window()
        event = np.full(len(window.reward), True) if everywhere else window.reward != 0.0
        sums = attribute_window(replace(window, editable=event), as_actor(make_policy()), make_targets(), Trak()).sums
        tau = dense_tau(window).mean(axis=1)
        for index, group in enumerate(sums.unit_groups):
            rows = (window.group == group) & event
            count, paid, tau_sum, reward_tau = sums.units[:, index]
            assert count == rows.sum() and paid == pytest.approx(window.reward[rows].sum())
            expected = ((0.7 - window.reward[rows]) * tau[rows]).sum()
            assert 0.7 * tau_sum - reward_tau == pytest.approx(expected, rel=1e-9, abs=1e-14)


def test_chunks_of_failures_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = attribute_window(make_window(), as_actor(make_policy()), make_targets(7), Trak())
    monkeypatch.setattr(estimators, "_CHUNK", 2)
    parts = attribute_window(make_window(), as_actor(make_policy()), make_targets(7), Trak())
    np.testing.assert_allclose(parts.sums.effects["effect"], whole.sums.effects["effect"], rtol=1e-9, atol=1e-14)
    assert parts.top.drop_columns(["tau", "s"]).equals(whole.top.drop_columns(["tau", "s"]))
    np.testing.assert_allclose(parts.top["tau"].to_numpy(), whole.top["tau"].to_numpy(), rtol=1e-9)


def test_top_transitions_are_those_of_the_dense_influence() -> None:
    window = make_window()
    top = attribute_window(window, as_actor(make_policy()), make_targets(), Trak(), top_k=3).top
    tau, change = dense_tau(window), window.correction
    assert change is not None
    for failure in range(4):
        rows = {r["env"] * 10 + r["step"] for r in top.to_pylist() if r["failure"] == f"0-{failure}"}
        strongest = np.argsort(-np.abs(tau[:, failure]) * window.is_event, kind="stable")[:3]
        helpful = np.argsort(change * tau[:, failure], kind="stable")[:3]
        assert rows == {*strongest.tolist(), *helpful.tolist()}


def test_without_intended_rewards_nothing_is_corrected_but_every_reward_has_influence() -> None:
    window = make_window(intended=False)
    influence = attribute_window(window, as_actor(make_policy()), make_targets(), Trak())
    assert influence.sums.groups == [] and influence.top.num_rows > 0
    assert influence.sums.unit_groups == sorted(set(window.group[window.reward != 0.0].tolist()))
    assert influence.top["intended_reward"].null_count == influence.top.num_rows


def test_merging_windows_keeps_the_top_of_all() -> None:
    generator = np.random.default_rng(0)
    tables = []
    for window in range(5):
        tau = generator.normal(size=40)
        tables.append(
            pa.table(
                {
                    "failure": ["0-0", "0-1"] * 20, "seed": [0] * 40, "window": [window] * 40, "step": range(40),
                    "env": [0] * 40, "tau": tau, "tau_raw": tau, "tau_value": tau, "s": tau,
                    "reward": [1.0] * 40,
                    "intended_reward": generator.choice([0.0, 1.0], 40), "group": ["a"] * 40,
                    "context": ["a"] * 40, "action": ["0"] * 40, "estimator": ["trak"] * 40,
                }
            ).cast(TOP_TRANSITIONS)
        )  # fmt: skip
    at_once = keep_top(pa.concat_tables(tables), 3)
    streamed = TOP_TRANSITIONS.empty_table()
    for table in tables:
        streamed = keep_top(pa.concat_tables([streamed, table]), 3)
    assert streamed.combine_chunks().equals(at_once.combine_chunks()), "streaming selection lost or kept another row"
    assert 3 * 2 <= at_once.num_rows <= 6 * 2


def test_effects_are_averaged_over_seeds_at_one_lambda() -> None:
    rows = [
        {"failure": "0-0", "group": group, "seed": seed, "lambda": lam, "effect": effect}
        for group, seed, lam, effect in [
            ("a", 0, LAMBDAS[0], -1.0), ("a", 1, LAMBDAS[0], -3.0), ("b", 0, LAMBDAS[0], 4.0),
            ("b", 1, LAMBDAS[0], -2.0), ("a", 0, 0.1, 99.0),
        ]
    ]  # fmt: skip
    table = effect_table(pa.Table.from_pylist(rows))
    assert table.mean() == {"a": -2.0, "b": 1.0}
    np.testing.assert_array_equal(table.by_seed, [[-1.0, 4.0], [-3.0, -2.0]])
    np.testing.assert_allclose(table.error, [[1.0, 3.0]], err_msg="standard error of the mean of two seeds")


def test_order_is_most_negative_first_and_the_null_is_another_order_of_the_same_groups() -> None:
    effect = np.array([[0.5, -2.0, -1.0]])
    effects = EffectTable(["0-0"], ["a", "b", "c"], effect, np.zeros_like(effect), effect)
    assert attribution_order(effects, {"a", "b", "c"}) == ["b", "c", "a"]
    names = {f"g{i}" for i in range(30)}
    assert sorted(random_order(names)) == sorted(names) and random_order(names) != sorted(names)
    assert random_order(names) == random_order(sorted(names, reverse=True)), "must not depend on set order"


@given(st.integers(1, 500), st.integers(0, 8))
def test_nested_sizes_lie_strictly_between_none_and_all(groups: int, points: int) -> None:
    sizes = nested_sizes(groups, points)
    assert sizes == sorted(set(sizes)) and len(sizes) <= points and all(0 < size < groups for size in sizes)


def test_halving_sizes_for_the_demo() -> None:
    assert nested_sizes(96, 3) == [12, 24, 48]


def test_area_under_curve_of_known_orders() -> None:
    assert area_under_curve(["a", "b", "x", "y"], {"a", "b"}) == 1.0
    assert area_under_curve(["x", "y", "a", "b"], {"a", "b"}) == 0.0
    assert area_under_curve(["a", "x", "b", "y"], {"a", "b"}) == 0.75
    with pytest.raises(ValueError, match="causal"):
        area_under_curve(["a"], {"a"})
