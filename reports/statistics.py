"""Intervals and tests over few seeds. Nothing is bootstrapped: percentile bootstraps of so few cover too rarely."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
TEST_LEVEL = 0.05
POWER = 0.9
_MOST_SEEDS = 1000


class Interval(NamedTuple):
    """A value with its 95% interval; None where there is nothing to estimate it from."""

    value: float | None
    low: float | None
    high: float | None

    def as_dict(self) -> dict[str, float | None]:
        """Return `{value, low, high}` as the contract writes it."""
        return self._asdict()

    def as_percent(self) -> str:
        """Write it in percent: `57% [52%, 61%]`."""
        if self.value is None:
            return "not measured"
        if self.low is None or self.high is None:
            return f"{percent(self.value)} (no interval)"
        return f"{percent(self.value)} [{percent(self.low)}, {percent(self.high)}]"


NOTHING = Interval(None, None, None)


def percent(value: float) -> str:
    """Write a share in whole percent, without a minus before zero."""
    return f"{round(100 * value) + 0:d}%"


def rate_interval(rates: Sequence[float]) -> Interval:
    """Return the mean of one rate a seed with its t-interval, clipped to [0, 1].

    The spread between seeds cannot be estimated from one: its interval is [0, 1].
    """
    mean, low, high = mean_interval(rates)
    if mean is None:
        return NOTHING
    return Interval(mean, max(0.0, -math.inf if low is None else low), min(1.0, math.inf if high is None else high))


def mean_interval(values: Sequence[float], tests: int = 1) -> Interval:
    """Return the mean of one value a seed with its t-interval; unbounded (None) with one seed.

    Several `tests` made together hold together at 95% (Bonferroni): each interval is wider.
    """
    if not values:
        return NOTHING
    mean = float(np.mean(values))
    if len(values) == 1:
        return Interval(mean, None, None)
    half = (mean_half_width(len(values), tests) or 0.0) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def mean_half_width(count: int, tests: int = 1) -> float | None:
    """Return half the width of the t-interval of a mean, in standard errors; None with fewer than two values."""
    return float(stats.t.ppf(1 - (1 - CONFIDENCE) / (2 * tests), count - 1)) if count > 1 else None


def share_interval(before: Sequence[float], after: Sequence[float]) -> Interval:
    """Return (mean before - mean after) / mean before over paired seeds, with Fieller's interval.

    The ends are None where the interval is unbounded (the denominator is not clear of zero).
    Source: Fieller 1954, "Some problems in interval estimation", section 4.
    """
    first, drop = (
        np.asarray(before, dtype=float),
        np.asarray(before, dtype=float) - np.asarray(after, dtype=float),
    )
    if len(first) == 0 or first.mean() == 0.0:
        return NOTHING
    ratio = float(drop.mean() / first.mean())
    if len(first) < 2:
        return Interval(ratio, None, None)
    quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(first) - 1))
    covariance = np.cov(first, drop, ddof=1) * quantile**2 / len(first)
    a = first.mean() ** 2 - covariance[0, 0]
    b = first.mean() * drop.mean() - covariance[0, 1]
    c = drop.mean() ** 2 - covariance[1, 1]
    if a <= 0.0:
        return Interval(ratio, None, None)
    root = math.sqrt(max(b * b - a * c, 0.0))
    return Interval(ratio, float((b - root) / a), float((b + root) / a))


def exceeds_zero(differences: Sequence[float]) -> bool:
    """Return whether the mean of paired differences is above zero: one-sided t-test at 5%.

    With no spread between seeds the sign of the mean decides; fewer than two seeds decide nothing.
    """
    if len(differences) < 2:
        return False
    mean, spread = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if spread <= 1e-12:
        return mean > 0.0
    statistic = mean / (spread / math.sqrt(len(differences)))
    return statistic > float(stats.t.ppf(1 - TEST_LEVEL, len(differences) - 1))


def power_of_test(margin: float, spread: float, seeds: int) -> float:
    """Return the power of `exceeds_zero` at a true mean `margin` and a standard deviation `spread`."""
    if seeds < 2:
        return 0.0
    if spread <= 1e-12:
        return 1.0 if margin > 0 else 0.0
    quantile = float(stats.t.ppf(1 - TEST_LEVEL, seeds - 1))
    return float(stats.nct.sf(quantile, seeds - 1, margin / spread * math.sqrt(seeds)))


def seeds_needed(margin: float, spread: float) -> int | None:
    """Return the fewest seeds with which the test would have a power of 90%; None if over 1000."""
    if margin <= 0.0:
        return None
    seeds = range(2, _MOST_SEEDS + 1)  # the power grows with the seeds: bisect
    first = bisect.bisect_left(seeds, POWER, key=lambda n: power_of_test(margin, spread, n))
    return seeds[first] if first < len(seeds) else None


def seeds_for_lower_end(rates: Sequence[float], level: float) -> int | None:
    """Return the fewest seeds with which the t-interval of the mean rate would lie above a level, if mean and spread
    between seeds stayed as they are; None if over 1000, or if the mean itself does not lie above it.
    """
    margin = float(np.mean(rates)) - level if len(rates) > 1 else 0.0
    if margin <= 0.0:
        return None
    spread, seeds = float(np.std(rates, ddof=1)), range(2, _MOST_SEEDS + 1)

    def clears(count: int) -> bool:
        return (mean_half_width(count) or 0.0) * spread / math.sqrt(count) <= margin

    first = bisect.bisect_left(seeds, True, key=clears)
    return seeds[first] if first < len(seeds) else None


def count_upper_end(successes: int, trials: int) -> float:
    """Return the upper end of the exact (Clopper-Pearson) 95% interval of a rate; 1 without trials."""
    if trials == 0:
        return 1.0
    return float(stats.binomtest(successes, trials).proportion_ci(CONFIDENCE, method="exact").high)
