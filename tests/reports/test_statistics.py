"""Intervals and tests over few seeds, against scipy and by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from aitia.reports.statistics import (
    NOTHING,
    count_upper_end,
    exceeds_zero,
    mean_interval,
    power_of_test,
    rate_interval,
    seeds_needed,
    share_interval,
)


def test_rate_interval_is_the_t_interval_clipped_to_rates() -> None:
    values = [0.4, 0.5, 0.45, 0.6, 0.5]
    low, high = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert rate_interval(values) == pytest.approx((np.mean(values), low, high))
    assert rate_interval([0.99, 0.9, 0.98]).high == 1.0
    assert rate_interval([]) == NOTHING
    assert rate_interval([0.3]) == (0.3, 0.0, 1.0), "one seed says nothing about the spread between seeds"


def test_fieller_interval_covers() -> None:
    """The share of two noisy correlated means is covered in about 95% of simulations."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(2000):
        seed_effect = generator.normal(0, 0.05, 5)
        before, after = 0.8 + seed_effect, 0.32 + 0.5 * seed_effect + generator.normal(0, 0.08, 5)
        interval = share_interval(before.tolist(), after.tolist())
        assert interval.low is not None and interval.high is not None
        covered += interval.low <= 0.6 <= interval.high
    assert 0.93 < covered / 2000 < 0.97


def test_fieller_interval_is_unbounded_where_the_denominator_may_be_zero() -> None:
    interval = share_interval([0.9, 0.0, 0.1, 0.0, 0.0], [0.1, 0.0, 0.0, 0.1, 0.0])
    assert interval.value is not None and interval.low is None and interval.high is None
    assert interval.as_percent() == f"{interval.value:.0%} (no interval)"
    assert share_interval([0.0, 0.0], [0.0, 0.0]) == NOTHING


def test_intervals_of_several_tests_hold_together() -> None:
    """Of six means of nothing, some interval excludes zero in at most 5% of simulations."""
    generator = np.random.default_rng(0)
    missed = 0
    for _ in range(1000):
        found = [mean_interval(generator.normal(0, 1, 5).tolist(), 6) for _ in range(6)]
        missed += any((one.low or 0.0) > 0.0 or (one.high or 0.0) < 0.0 for one in found)
    assert 0.03 < missed / 1000 < 0.07


def test_one_sided_test_agrees_with_scipy() -> None:
    generator = np.random.default_rng(0)
    for _ in range(200):
        values = generator.normal(0.05, 0.1, 5)
        expected = stats.ttest_1samp(values, 0.0, alternative="greater").pvalue < 0.05
        assert exceeds_zero(values.tolist()) == expected
    assert exceeds_zero([0.1, 0.1]) and not exceeds_zero([-0.1, -0.1]) and not exceeds_zero([0.1])


def test_power_agrees_with_simulation_and_seeds_needed_reaches_it() -> None:
    generator = np.random.default_rng(0)
    draws = generator.normal(0.08, 0.054, (4000, 5))
    simulated = np.mean([exceeds_zero(row.tolist()) for row in draws])
    assert power_of_test(0.08, 0.054, 5) == pytest.approx(simulated, abs=0.02)
    needed = seeds_needed(0.08, 0.12)
    assert needed is not None and power_of_test(0.08, 0.12, needed) >= 0.9 > power_of_test(0.08, 0.12, needed - 1)
    assert seeds_needed(-0.1, 0.1) is None and seeds_needed(1e-4, 1.0) is None


def test_upper_end_of_a_count_is_exact() -> None:
    assert count_upper_end(0, 64) == pytest.approx(1 - 0.025 ** (1 / 64))
    assert count_upper_end(0, 0) == 1.0
