"""Numbers that came out in silence: other units summed, rounding taken for a spread, gradients of tied weights."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from small_policies import make_policy, make_targets, make_window

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.adjoints.batches import spread
from aitia.attribution.adjoints.gae import GaeAdvantages
from aitia.attribution.effects.clusters import cluster_failures
from aitia.attribution.effects.order import bounded_edits, effect_table
from aitia.attribution.estimators.base import Trak
from aitia.attribution.estimators.registry import choose_estimator
from aitia.attribution.gradients.layers import why_not_factored
from aitia.datasets.errors import InputError


def test_effects_of_several_estimators_are_not_added() -> None:
    rows = [
        {"failure": "0-0", "group": "a", "seed": 0, "lambda": 1e-2, "effect": 1.0, "estimator": name}
        for name in ("trak", "tracin")
    ]
    table = pa.Table.from_pylist(rows)
    with pytest.raises(InputError, match="tracin, trak"):
        effect_table(table)
    with pytest.raises(InputError, match="tracin, trak"):
        cluster_failures(table, ["0-0"])
    assert effect_table(table.slice(0, 1)).mean() == {"a": 1.0}


def test_units_of_several_estimators_are_not_added() -> None:
    unit = {"group": "a", "seed": 0, "transitions": 1, "paid": 1.0, "tau": 1.0, "reward_tau": 1.0}
    table = pa.Table.from_pylist([{**unit, "estimator": name} for name in ("trak", "size")])
    with pytest.raises(InputError, match="size, trak"):
        bounded_edits(table, (0.0, 1.0))


@pytest.mark.parametrize("value", [0.1, -1e-9, 1e6 / 3.0, 0.0])
def test_equal_advantages_have_no_spread_and_no_influence(value: float) -> None:
    """numpy's standard deviation of 1,000 times .1 is 1e-17: divided by it, influence was 4e14."""
    raw, scores = np.full(1000, value), np.random.default_rng(0).normal(size=(1000, 2))
    assert spread(raw) == 0.0
    for minibatches in (None, np.repeat(np.arange(10), 100).astype(np.int32)[:, None]):
        advantages = GaeAdvantages(raw, np.zeros(1000, bool), 1, 0.9, 0.9, True, np.ones(1000), minibatches)
        for form in (advantages.reward_influence, advantages.summed_reward_influence):
            found = form(scores)
            assert not found.tau.any(), f"{form.__name__}: {np.abs(found.tau).max():.0e} of equal advantages"


def test_advantages_that_differ_in_the_last_bit_of_float32_have_a_spread() -> None:
    raw = np.full(10_000, np.float32(0.1)).astype(np.float64)
    raw[0] = np.nextafter(np.float32(0.1), np.float32(1.0))
    assert spread(raw) == pytest.approx(float(np.std(raw, ddof=1))) and spread(raw) > 0.0


def test_tied_weights_have_no_factored_gradient_and_are_named() -> None:
    """The gradient of a weight that two layers use is the sum of both, and its inner products have cross terms."""
    policy = make_policy(hidden=(6, 6, 6))
    assert why_not_factored(as_actor(policy)) is None
    network = policy.mlp_extractor.policy_net
    network[4].weight = network[2].weight
    reason = why_not_factored(as_actor(policy))
    assert reason is not None and "policy_net.4.weight" in reason and "policy_net.2.weight" in reason
    with pytest.raises(InputError, match="tied"):
        Trak().prepare(make_window(), as_actor(policy), make_targets())
    assert choose_estimator(as_actor(policy), 40).name == "trak-projected"
