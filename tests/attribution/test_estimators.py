"""Estimators and baselines: what each ranks first, and that the projected one goes to the exact one."""

from __future__ import annotations

from importlib.metadata import EntryPoint

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr
from small_policies import gae, log_prob_target, make_policy, make_targets, make_window

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.adjoints.signal import Scores
from aitia.attribution.effects.window import attribute_window
from aitia.attribution.estimators import registry
from aitia.attribution.estimators.base import Estimator, Trak
from aitia.attribution.estimators.baselines import Baseline, Random, Size, TdError
from aitia.attribution.estimators.projected import TrakProjected
from aitia.attribution.estimators.registry import BUILT_IN, estimators, find_estimator
from aitia.attribution.estimators.window import Window
from aitia.attribution.gradients.kernel import DEFAULT_LAMBDA, LAMBDAS
from aitia.datasets.errors import InputError

ALL = slice(0, 4)


def scores_of(estimator: Estimator, lam: float = DEFAULT_LAMBDA) -> Scores:
    return estimator.prepare(make_window(), as_actor(make_policy()), make_targets()).influence(lam, ALL).scores


def test_projected_scores_go_to_the_exact_ones_as_dimensions_grow() -> None:
    errors: dict[float, list[float]] = {lam: [] for lam in LAMBDAS}
    for dimensions in (16, 256, 2048):
        prepared = TrakProjected(dimensions).prepare(make_window(), as_actor(make_policy()), make_targets())
        for lam in LAMBDAS:
            exact, found = scores_of(Trak(), lam).ravel(), prepared.influence(lam, ALL).scores.ravel()
            errors[lam].append(float(np.linalg.norm(found - exact) / np.linalg.norm(exact)))
    for lam, (few, some, many) in errors.items():
        assert few > 1.5 * some > 3 * many, f"no convergence at lambda {lam}: {errors[lam]}"
        assert many < 0.3, f"the scale is off at lambda {lam} ({many:.2f}): lambda, n, k or P is missing somewhere"
    assert spearmanr(found, exact).statistic > 0.97


def test_projected_refuses_a_target_that_need_not_be_a_sum_over_steps() -> None:
    with pytest.raises(InputError, match="--estimator trak"):
        TrakProjected(8).prepare(make_window(), as_actor(make_policy()), log_prob_target(3))


@pytest.mark.parametrize("estimator", [e for e in BUILT_IN if e.summary.startswith("baseline")], ids=lambda e: e.name)
def test_a_baselines_group_effect_is_minus_the_blame_of_its_wrong_transitions(
    estimator: Estimator,
) -> None:
    window = make_window()
    sums = attribute_window(window, as_actor(make_policy()), make_targets(), estimator).sums
    blame = scores_of(estimator)
    assert (blame >= 0).all() and window.correction is not None
    for index, group in enumerate(sums.groups):
        rows = (window.group == group) & (window.correction != 0)
        np.testing.assert_allclose(sums.effects["effect"][0, :, index], -blame[rows].sum(axis=0), rtol=1e-9)


def test_size_ranks_by_the_error_and_td_error_undoes_gae() -> None:
    window = make_window()
    assert window.correction is not None
    np.testing.assert_array_equal(Size().blame(window), np.abs(window.correction))
    a = gae(window)
    delta = TdError().blame(window)
    for row in range(len(delta)):
        last = (row + 1) % window.steps == 0 or a.ended[row]
        expected = a.raw[row] - (0.0 if last else a.gamma * a.gae_lambda * a.raw[row + 1])
        assert delta[row] == pytest.approx(abs(expected))


@pytest.mark.parametrize("name", ["nearest-observation", "nearest-latent"])
def test_nearest_blames_the_failures_own_states_most(name: str) -> None:
    window, targets = make_window(), make_targets()
    step = int(np.flatnonzero(targets.failure == 2)[0])
    targets.observations[step] = window.rows.observations[window.rows.row[17]]
    blame = find_estimator(name).prepare(window, as_actor(make_policy()), targets).influence(DEFAULT_LAMBDA, ALL).scores
    same = window.rows.row == window.rows.row[17]
    assert blame[same, 2] == pytest.approx(1.0), "distance 0 to one of the failure's states"
    assert (blame[~same, 2] < 1.0).all() and (blame[:, 0] < 1.0).all()


def test_chance_is_the_same_at_every_call() -> None:
    np.testing.assert_array_equal(Random().blame(make_window()), Random().blame(make_window()))


class Mine(Baseline):
    """A user's own estimator."""

    name = "mine"
    summary = "last step first"

    def blame(self, window: Window) -> NDArray[np.float64]:
        return np.arange(len(window.reward), dtype=float)


def test_a_users_estimator_is_found_by_its_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("mine", f"{__name__}:Mine", registry.ENTRY_POINTS)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Mine)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    assert isinstance(find_estimator("mine"), Mine)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Trak)
    with pytest.raises(InputError, match="which is taken"):
        estimators()
    monkeypatch.setattr(EntryPoint, "load", lambda self: 3)
    with pytest.raises(InputError, match="subclass of Estimator"):
        estimators()


def test_an_unknown_estimator_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(InputError, match=r"Did you mean `trak-projected`\?"):
        find_estimator("trak-projectd")
