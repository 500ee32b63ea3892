"""A channel that was not asked for, or that an estimator does not compute, is unknown: not 0."""

from __future__ import annotations

import numpy as np
import pytest
from small_policies import make_policy, make_targets, make_window, shared_policy

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.effects.sums import EFFECTS
from aitia.attribution.effects.window import FURTHER, Asked, attribute_window
from aitia.attribution.estimators.base import Estimator, TracIn, Trak
from aitia.attribution.estimators.projected import TrakProjected
from aitia.attribution.estimators.registry import find_estimator
from aitia.attribution.gradients import channels
from aitia.attribution.gradients.kernel import LAMBDAS
from aitia.datasets.schema import TOP_TRANSITIONS

EVERY = Asked(frozenset(FURTHER))


@pytest.mark.parametrize("estimator", [TrakProjected(16), find_estimator("size"), find_estimator("nearest-latent")])
def test_a_channel_that_is_not_computed_is_null(estimator: Estimator) -> None:
    targets = make_targets()
    found = attribute_window(make_window(), as_actor(make_policy()), targets, estimator, asked=EVERY)
    assert set(found.sums.effects) == set(EFFECTS) - {"effect_value"}
    assert found.top.schema.equals(TOP_TRANSITIONS) and found.top.num_rows > 0
    assert found.top["tau_value"].null_count == found.top.num_rows
    assert found.top["tau"].null_count == 0
    effects = estimator.prepare(make_window(), as_actor(make_policy()), targets).effects(1e-1, np.ones((40, 2)), 4)
    assert effects.value is None and effects.raw is not None and effects.effect.shape == effects.raw.shape == (2, 4)


def test_what_is_not_asked_for_is_not_computed_and_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channels, "value_gradients", None)  # fails when called
    found = attribute_window(make_window(), as_actor(shared_policy()), make_targets(), Trak())
    assert set(found.sums.effects) == {"effect"} and len(found.sums.effects["effect"]) == 1
    assert found.top.schema.equals(TOP_TRANSITIONS)
    assert found.top["tau_raw"].null_count == found.top["tau_value"].null_count == found.top.num_rows > 0


def test_more_dampings_stand_after_the_estimators_own() -> None:
    every, own, other = (
        attribute_window(make_window(), as_actor(make_policy()), make_targets(), estimator, asked=asked).sums
        for estimator, asked in ((Trak(), EVERY), (Trak(), Asked()), (Trak(damping=LAMBDAS[1]), Asked()))
    )
    assert every.effects["effect"].shape == (len(LAMBDAS), 4, len(every.groups))
    np.testing.assert_array_equal(every.effects["effect"][0], own.effects["effect"][0])
    np.testing.assert_allclose(every.effects["effect"][1], other.effects["effect"][0], rtol=1e-9)


@pytest.mark.parametrize("estimator", [Trak(), TracIn()])
def test_a_channel_that_is_computed_and_closed_is_zero(estimator: Estimator) -> None:
    """Actor and critic without a common layer: exactly 0, and with one something else."""
    closed, opened = (
        attribute_window(make_window(), as_actor(policy), make_targets(), estimator, asked=EVERY)
        for policy in (make_policy(), shared_policy())
    )
    assert not closed.sums.effects["effect_value"].any() and opened.sums.effects["effect_value"].all()
    assert closed.top["tau_value"].null_count == 0
