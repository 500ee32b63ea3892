"""The value channel of an estimator that does not compute it is unknown: not 0."""

from __future__ import annotations

import numpy as np
import pytest
from small_policies import make_policy, make_targets, make_window, shared_policy

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.effects.window import EFFECTS, attribute_window
from aitia.attribution.estimators.base import Estimator, TracIn, Trak
from aitia.attribution.estimators.projected import TrakProjected
from aitia.attribution.estimators.registry import find_estimator
from aitia.datasets.schema import TOP_TRANSITIONS


@pytest.mark.parametrize("estimator", [TrakProjected(16), find_estimator("size"), find_estimator("nearest-latent")])
def test_a_channel_that_is_not_computed_is_null(estimator: Estimator) -> None:
    targets = make_targets()
    found = attribute_window(make_window(), as_actor(make_policy()), targets, estimator)
    assert set(found.sums.effects) == set(EFFECTS) - {"effect_value"}
    assert found.top.schema.equals(TOP_TRANSITIONS) and found.top.num_rows > 0
    assert found.top["tau_value"].null_count == found.top.num_rows
    assert found.top["tau"].null_count == 0
    sums = estimator.prepare(make_window(), as_actor(make_policy()), targets).sums(1e-1, np.ones((40, 2)), 4)
    assert sums.tau_value is None and sums.tau.shape == sums.tau_raw.shape == (2, 4)


@pytest.mark.parametrize("estimator", [Trak(), TracIn()])
def test_a_channel_that_is_computed_and_closed_is_zero(estimator: Estimator) -> None:
    """Actor and critic without a common layer: exactly 0, and with one something else."""
    closed, opened = (
        attribute_window(make_window(), as_actor(policy), make_targets(), estimator)
        for policy in (make_policy(), shared_policy())
    )
    assert not closed.sums.effects["effect_value"].any() and opened.sums.effects["effect_value"].all()
    assert closed.top["tau_value"].null_count == 0
