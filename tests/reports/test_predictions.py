"""Calibration, concentration and the LDS: known answers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from aitia.reports.measures.predictions import VerifiedSet, concentration, fit_line
from aitia.reports.measures.validation import linear_datamodeling_score, noise_ceiling, rank_correlations


def sets(predicted: list[float], measured: list[float]) -> list[VerifiedSet]:
    return [VerifiedSet("attribution", i, p, m) for i, (p, m) in enumerate(zip(predicted, measured, strict=True))]


def test_predictions_that_come_true_get_the_unit_of_the_misbehaviour_rate() -> None:
    found = fit_line(sets([-1.0, -2.0, -3.0, -4.0, -5.0], [-0.52, -0.98, -1.49, -2.03, -2.5]), before=1.0)
    assert found.poor is None and found.slope.value == pytest.approx(0.5, abs=0.01)
    assert found.fit is not None and found.fit > 0.98
    rate = found.rate(-2.0)  # log-odds 1 - 1 = 0
    assert rate.value == pytest.approx(0.5, abs=0.01)
    assert rate.low is not None and rate.high is not None and 0.47 < rate.low < 0.5 < rate.high < 0.53
    unchanged = found.rate(0.0)
    assert unchanged.value == pytest.approx(1 / (1 + np.exp(-1.0)))


@pytest.mark.parametrize(
    ("predicted", "measured", "reason"),
    [
        ([-1.0, -2.0, -3.0], [-1.0, -2.0, -3.0], "at least 4"),
        ([-1.0, -2.0, -3.0, -4.0, -5.0], [-4.0, -0.1, -3.0, -0.2, -4.0], "R²"),
        ([-1.0, -2.0, -3.0, -4.0, -5.0], [1.0, 2.0, 3.0, 4.0, 5.0], "does not clearly mean"),
    ],
)
def test_a_fit_that_is_too_poor_to_use_says_so_and_gives_no_rate(
    predicted: list[float], measured: list[float], reason: str
) -> None:
    found = fit_line(sets(predicted, measured), before=1.0)
    assert found.poor is not None and reason in found.poor
    assert found.rate(-2.0) == (None, None, None)


def test_prediction_intervals_cover() -> None:
    """Simulated: 95% intervals of a new set cover it about 95% of the time."""
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(400):
        x = -generator.uniform(0.5, 5.0, 8)
        y = 0.7 * x + generator.normal(0.0, 0.4, 8)
        found = fit_line(sets(x[:7].tolist(), y[:7].tolist()), before=0.0)
        rate = found.rate(float(x[7]))
        if rate.low is not None and rate.high is not None:
            inside += rate.low <= 1 / (1 + np.exp(-y[7])) <= rate.high
        else:
            inside += 1
    assert 0.92 <= inside / 400 <= 0.98


def null_table(draws: dict[int, list[list[float]]]) -> pa.Table:
    rows = [
        {"group": str(g), "seed": seed, "draw": d, "effect": effect}
        for seed, found in draws.items()
        for d, values in enumerate(found)
        for g, effect in enumerate(values)
    ]
    return pa.Table.from_pylist(rows)


def test_concentration_is_the_share_of_the_top_groups_beside_chance() -> None:
    by_seed = {str(g): np.array([-9.0, -7.0]) if g == 0 else np.array([-1.0, -1.0]) for g in range(10)}
    by_seed["10"] = np.array([5.0, 5.0])  # predicted to harm: no part of the drop
    null = null_table({0: [[-1.0] * 10, [-1.0] * 10], 1: [[-2.0] * 10]})
    found = concentration(by_seed, null)
    assert found is not None and (found.top, found.groups) == (1, 11)
    assert found.measured.value == pytest.approx((9 / 18 + 7 / 16) / 2)
    assert found.null.value == pytest.approx(0.1)
    assert concentration({"0": np.ones(2)}, null) is None


def test_the_score_of_perfect_reversed_and_constant_predictions() -> None:
    generator = np.random.default_rng(0)
    measured = generator.normal(size=(12, 5))
    assert rank_correlations(measured, measured**3).tolist() == pytest.approx([1.0] * 5)
    assert linear_datamodeling_score(-measured, measured).value == pytest.approx(-1.0)
    constant = linear_datamodeling_score(np.ones_like(measured), measured)
    assert constant == (0.0, 0.0, 0.0)


def test_what_is_held_fixed_explains_nothing_any_more() -> None:
    generator = np.random.default_rng(4)
    size = np.arange(40.0)
    measured = size[:, None] + 3 * generator.normal(size=(40, 6))
    assert rank_correlations(size[:, None] + 0 * measured, measured).min() > 0.9
    assert np.abs(rank_correlations(size[:, None] + 0 * measured, measured, size)).max() == 0.0
    assert rank_correlations(measured, measured, size).tolist() == pytest.approx([1.0] * 6)


def test_shuffled_scores_give_a_score_of_about_zero() -> None:
    """Sets of one size, true effects known: the true ones score 1, permuted ones nothing on average."""
    generator = np.random.default_rng(1)
    effects = generator.normal(size=(40, 3))
    chosen = np.zeros((60, 40))
    for row in chosen:
        row[generator.choice(40, 20, replace=False)] = 1.0
    measured = chosen @ effects
    exact = linear_datamodeling_score(chosen @ effects, measured)
    assert exact.value == pytest.approx(1.0)
    drawn = [
        linear_datamodeling_score(chosen @ generator.permutation(effects), measured).value or 0.0 for _ in range(20)
    ]
    assert abs(np.mean(drawn)) < 3 * np.std(drawn, ddof=1) / np.sqrt(20) and np.std(drawn) < 0.2
    assert exact.low is not None and exact.low > max(drawn)


def test_the_noise_ceiling_falls_with_noise_between_seeds() -> None:
    generator = np.random.default_rng(2)
    truth = generator.normal(size=(30, 4))
    ceilings = []
    for noise in (0.0, 1.0, 1000.0):
        seeds = truth + noise * generator.normal(size=(6, 30, 4))
        ceiling = noise_ceiling(seeds).value
        assert ceiling is not None
        ceilings.append(ceiling)
    assert ceilings[0] == pytest.approx(1.0) and 0.85 < ceilings[1] < 0.99 and ceilings[2] < 0.5
    assert noise_ceiling(truth[None]).value is None, "one seed says nothing about noise"


def test_no_predictor_beats_the_ceiling_that_is_printed() -> None:
    """The truth itself, scored against noisy measurements, reaches the ceiling and not more (simulated)."""
    generator = np.random.default_rng(3)
    truth = generator.normal(size=(200, 10))
    seeds = truth + 1.5 * generator.normal(size=(4, 200, 10))
    score, ceiling = linear_datamodeling_score(truth, seeds.mean(axis=0)).value, noise_ceiling(seeds).value
    assert score is not None and ceiling is not None and abs(score - ceiling) < 0.03
