r"""What predicted effects are worth: how concentrated they are, and what they mean in units of misbehaviour rate.

Predictions have no unit (every window of training counts the same in them): only their ranks can be trusted as they
stand. The bank holds what really happened to correction sets; the regression of measured changes of log-odds on
predicted effects, of each set C as the set it is,

.. math:: \mathrm{logit}\, m(C) - \mathrm{logit}\, m_0 = b \, \mathrm{effect}(C),

gives them a unit, if it fits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.special import expit, logit

from ...datasets.bank import Bank
from ...datasets.outcomes import Outcomes
from ...datasets.schema import Order
from ..statistics import NOTHING, Interval, mean_half_width, mean_interval

LEAST_SETS = 4
LEAST_FIT = 0.5
_EDGE = 1e-3  # of a rate: what a thousand plays resolve
TOP_SHARE = 0.1
MOST_SIZES = 100


class ConcentrationPoint(NamedTuple):
    """Share of the predicted drop that a number of groups with the largest drops carry, and by chance."""

    groups: int
    measured: Interval
    null: Interval


@dataclass(frozen=True)
class Concentration:
    """Share of the predicted drop that the wrong groups with the largest drops carry, and by chance.

    Attributes:
        top: number of groups, a `TOP_SHARE` of those with wrong rewards.
        groups: number of groups with wrong rewards.
        measured: share, mean over seeds.
        null: the same corrections with chance influence: in each window the scores of the transitions whose advantage
            a correction changes are permuted among them. Sparse rewards concentrate any attribution; only what exceeds
            this is a finding.
        curve: both for other numbers of groups.
    """

    top: int
    groups: int
    measured: Interval
    null: Interval
    curve: tuple[ConcentrationPoint, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return it as `summary.json` writes it."""
        return {
            "top_groups": self.top, "wrong_groups": self.groups, **self.measured.as_dict(), "null": self.null.as_dict(),
        }  # fmt: skip


def concentration(by_seed: Mapping[str, NDArray[np.float64]], null: pa.Table) -> Concentration | None:
    """Return how concentrated predicted effects are; None where fewer than two groups have wrong rewards.

    Args:
        by_seed: effect of each group with wrong rewards, mean over failures, [S].
        null: rows `group, seed, draw, effect` of chance influence.
    """
    count = len(by_seed)
    if count < 2:
        return None
    top = max(1, round(TOP_SHARE * count))
    sizes = sorted({top, *np.linspace(1, count, min(count, MOST_SIZES)).astype(int).tolist()})
    columns = np.array(sizes) - 1
    measured = [_shares(row, count)[columns] for row in np.stack(list(by_seed.values()), axis=1)]
    draws: dict[tuple[int, int], list[float]] = {}
    for row in null.select(["seed", "draw", "effect"]).to_pylist():
        draws.setdefault((row["seed"], row["draw"]), []).append(row["effect"])
    by_chance: dict[int, list[NDArray[np.float64]]] = {}
    for (seed, _), values in draws.items():
        by_chance.setdefault(seed, []).append(_shares(np.array(values), count)[columns])
    chance = [np.mean(values, axis=0) for values in by_chance.values()]
    curve = tuple(
        ConcentrationPoint(size, *(mean_interval([float(row[i]) for row in rows]) for rows in (measured, chance)))
        for i, size in enumerate(sizes)
    )
    point = curve[sizes.index(top)]
    return Concentration(top, count, point.measured, point.null, curve)


def _shares(effects: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return the share that the k groups with the largest drops carry, for k = 1 to `count`, [G]."""
    drops, total = np.zeros(count), float(np.maximum(-effects, 0.0).sum())
    largest = np.sort(np.maximum(-effects, 0.0))[::-1][:count]
    drops[: len(largest)] = largest
    return np.cumsum(drops) / total if total > 0.0 else drops


@dataclass(frozen=True)
class VerifiedSet:
    """A correction set of the bank: its predicted change, and the measured one (log-odds, mean over seeds)."""

    order: str
    groups: int
    predicted: float
    measured: float


@dataclass(frozen=True)
class Calibration:
    """The regression of measured on predicted changes.

    Attributes:
        sets: what it was fitted on.
        slope: b, with its interval.
        residual: standard deviation of the measured changes about the line.
        fit: R^2 of sets that were left out, against the mean of the others; None with too few sets.
        before: log-odds of the uncorrected misbehaviour rate.
        poor: why predictions get no unit; None where they can.
    """

    sets: tuple[VerifiedSet, ...]
    slope: Interval
    residual: float
    fit: float | None
    before: float
    poor: str | None

    def rate(self, effect: float) -> Interval:
        """Return the misbehaviour rate predicted for a correction set of a summed effect, with its interval."""
        if self.poor is not None or self.slope.value is None or self.slope.high is None:
            return NOTHING
        quantile = mean_half_width(len(self.sets)) or 0.0
        error = (self.slope.high - self.slope.value) / quantile
        half = quantile * float(np.hypot(error * effect, self.residual))
        middle = self.before + self.slope.value * effect
        low, value, high = (float(expit(x)) for x in (middle - half, middle, middle + half))
        return Interval(value, low, high)

    def as_dict(self) -> dict[str, Any]:
        """Return it as `summary.json` writes it."""
        return {
            "slope": self.slope.as_dict(), "residual": self.residual, "fit": self.fit, "poor": self.poor,
            "sets": [vars(verified) for verified in self.sets],
        }  # fmt: skip


def calibrate(
    bank: Bank | None, effects: Mapping[str, float], declared: Outcomes, sets_as_sets: Mapping[str, float] | None = None
) -> Calibration | None:
    """Regress measured on predicted changes over the correction sets of the bank.

    Args:
        bank: the counterfactual bank; None: nothing was trained again.
        effects: mean predicted effect of correcting each group.
        declared: the task's outcomes.
        sets_as_sets: predicted effect of each member's whole set, without which a set is left out; None: effects of
            groups add up.

    Returns:
        None without a bank or without predictions.
    """
    if bank is None or not effects:
        return None
    before = {rates.seed: log_odds(rates.misbehaviour) for rates in bank.rates(bank.members(Order.NONE), declared)}
    sets = []
    unfit = (Order.NONE, Order.ADAPTIVE)  # adaptive sets were chosen by what is measured here
    fixed = {(row["order"], row["size"]) for row in bank.masks.to_pylist() if row["order"] not in unfit}
    for order, size in sorted(fixed):
        members = bank.members(order, size)
        groups = next(row["groups"] for row in bank.masks.to_pylist() if row["member"] in members)
        changes = [
            after - start
            for rates in bank.rates(members, declared)
            if (after := log_odds(rates.misbehaviour)) is not None and (start := before.get(rates.seed)) is not None
        ]
        if changes:
            if sets_as_sets is None:
                predicted = sum(effects.get(group, 0.0) for group in groups)
            elif members.keys() <= sets_as_sets.keys():
                predicted = float(np.mean([sets_as_sets[member] for member in members]))
            else:
                continue
            sets.append(VerifiedSet(order, size, float(predicted), float(np.mean(changes))))
    known = [value for value in before.values() if value is not None]
    return fit_line(sets, float(np.mean(known)) if known else 0.0)


def fit_line(sets: Sequence[VerifiedSet], before: float) -> Calibration:
    """Fit the line through the origin and say whether it is good enough to use."""
    x, y = (np.array([getattr(verified, name) for verified in sets]) for name in ("predicted", "measured"))
    if len(sets) < LEAST_SETS or not np.any(x):
        reason = f"at least {LEAST_SETS} verified correction sets are needed, there are {len(sets)}"
        return Calibration(tuple(sets), NOTHING, 0.0, None, before, reason)
    slope = float(x @ y / (x @ x))
    residual = float(np.sqrt(np.sum((y - slope * x) ** 2) / (len(x) - 1)))
    half = (mean_half_width(len(x)) or 0.0) * residual / float(np.sqrt(x @ x))
    left_out = (x @ y - x * y) / np.maximum(x @ x - x * x, 1e-300) * x
    others = (y.sum() - y) / (len(y) - 1)
    fit = 1.0 - float(np.sum((y - left_out) ** 2) / max(np.sum((y - others) ** 2), 1e-300))
    poor = None
    if not fit >= LEAST_FIT:
        poor = f"sets that were left out are predicted with R² {fit:.2f}, at least {LEAST_FIT} is needed"
    elif not slope - half > 0.0:
        poor = "more predicted drop does not clearly mean more measured drop"
    return Calibration(tuple(sets), Interval(slope, slope - half, slope + half), residual, fit, before, poor)


def log_odds(rate: float | None) -> float | None:
    """Return the log-odds of a rate, kept away from 0 and 1."""
    return None if rate is None else float(logit(np.clip(rate, _EDGE, 1.0 - _EDGE)))
