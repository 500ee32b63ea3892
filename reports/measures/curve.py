"""The correction curve: misbehaviour against how much was corrected, and how easy the correction is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from ...datasets.bank import Bank
from ...datasets.outcomes import Outcomes, SeedRates
from ...datasets.schema import Order
from ..statistics import Interval, rate_interval
from ..verdict.rules import ArbitraryTrial, Thresholds, Verdict

_UNITS = ("transitions", "reward_events", "episodes")
SEARCHED_ORDERS = (Order.ADAPTIVE, Order.ATTRIBUTION, Order.SIZE, Order.RANDOM)
SEEDS_THAT_MUST = 0.8


class Units(NamedTuple):
    """Numbers of units in an uncorrected training, means over the paired seeds."""

    transitions: float
    reward_events: float
    episodes: float
    groups: float


@dataclass(frozen=True)
class CurvePoint:
    """One verified correction set.

    Attributes:
        order: an `Order`, or the name of a set of the task's.
        corrected: units whose reward it changes.
        misbehaviour: rate among competent plays over paired seeds.
        competence: share of competent plays, mean over seeds.
        desired: share of desired plays, mean over seeds.
        rates: the rates of each seed.
    """

    order: str
    corrected: Units
    misbehaviour: Interval
    competence: float
    desired: float
    rates: tuple[SeedRates, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the point as `summary.json` writes it (counts are means over the paired seeds)."""
        return {
            "order": self.order,
            "transitions": self.corrected.transitions,
            "reward_events": self.corrected.reward_events,
            "groups": int(self.corrected.groups),
            "misbehaviour_rate": self.misbehaviour.value,
            "competence": self.competence,
            "low": self.misbehaviour.low,
            "high": self.misbehaviour.high,
        }


def correction_curve(bank: Bank, rewards: Mapping[int, pa.Table], declared: Outcomes) -> tuple[CurvePoint, ...]:
    """Return every verified correction set, by order and size.

    Args:
        bank: the counterfactual bank.
        rewards: reward summary of the training of each seed.
        declared: the task's outcomes.
    """
    rows = [row for row in bank.masks.to_pylist() if row["values"] is None and not row["variant"]]
    seeds = sorted({row["seed"] for row in rows if row["order"] == Order.ALL} or {row["seed"] for row in rows})
    summaries = [rewards[seed] for seed in seeds]
    rank = {Order.NONE: 0, Order.ATTRIBUTION: 1, Order.RANDOM: 2, Order.ALL: 3}
    sets = {(row["order"], row["size"]): row["groups"] for row in rows}
    points = []
    for order, size in sorted(sets, key=lambda key: (rank.get(key[0], 2), key[0], key[1])):
        rates = bank.rates(bank.members(order, size), declared)
        points.append(
            CurvePoint(
                order,
                corrected_units(summaries, None if order == Order.ALL else sets[order, size], size),
                rate_interval([r.misbehaviour for r in rates if r.misbehaviour is not None]),
                float(np.mean([r.competent for r in rates])),
                float(np.mean([r.desired for r in rates])),
                rates,
            )
        )
    return tuple(points)


def corrected_units(summaries: Sequence[pa.Table], groups: Collection[str] | None, size: int) -> Units:
    """Return the units whose reward a correction of `groups` (None: of all) changes."""
    counts = np.zeros(len(_UNITS))
    for table in summaries:
        chosen = np.ones(table.num_rows, bool) if groups is None else np.isin(table["group"].to_pylist(), list(groups))
        for index, name in enumerate(("wrong_transitions", "wrong_events", "wrong_episodes")):
            counts[index] += table[name].to_numpy()[chosen].sum() / len(summaries)
    transitions, events, episodes = counts.tolist()
    return Units(transitions, events, episodes, float(size))


def all_units(summaries: Sequence[pa.Table]) -> Units:
    """Return all units of the uncorrected trainings, right and wrong, means over seeds."""
    transitions, events, episodes = (
        float(np.mean([table[name].to_numpy().sum() for table in summaries])) for name in _UNITS
    )
    return Units(transitions, events, episodes, float(np.mean([table.num_rows for table in summaries])))


@dataclass(frozen=True)
class MinimalCorrection:
    """The smallest verified set of an order that removes the misbehaviour.

    Attributes:
        order: attribution, size or random; adaptive: the smallest of all, of which the search began and which it made.
        corrected: units whose reward it changes.
        too_few: the largest smaller verified set of the order, which does not suffice, in groups; a bisection leaves
            no size between the two.
        by_component: whether groups are reward components.
    """

    order: str
    corrected: Units
    too_few: int
    by_component: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it as `summary.json` writes it (counts are means over the paired seeds)."""
        groups = int(self.corrected.groups)
        return {
            "order": self.order,
            "groups": groups,
            "reward_events": self.corrected.reward_events,
            "transitions": self.corrected.transitions,
            "components": groups if self.by_component else None,
            "too_few": self.too_few,
        }


def suffices(rates: Sequence[SeedRates], level: float) -> bool:
    """Return whether the misbehaviour rate is at most `level` in at least `SEEDS_THAT_MUST` of the seeds."""
    good = [r.misbehaviour is not None and r.misbehaviour <= level for r in rates]
    return bool(good) and sum(good) >= SEEDS_THAT_MUST * len(good)


def minimal_corrections(
    curve: Sequence[CurvePoint], level: float, group_by: str = "context"
) -> tuple[MinimalCorrection, ...]:
    """Return the smallest verified set that removes the misbehaviour, by order; none where not even all does.

    Sets of an order are nested, and more corrections are taken to suffice where fewer do; the adaptive search may
    take any set.

    Args:
        curve: all verified correction sets.
        level: highest misbehaviour rate that counts as removed.
        group_by: what a group is.
    """
    smallest_sets = []
    for order in SEARCHED_ORDERS:
        own = (order, Order.NONE, Order.ALL)
        nested = [point for point in curve if order == Order.ADAPTIVE or point.order in own]
        nested.sort(key=lambda point: point.corrected.groups)
        good = [point for point in nested if suffices(point.rates, level)]
        if good and any(point.order == order for point in nested):
            smallest = int(good[0].corrected.groups)
            too_few = [int(p.corrected.groups) for p in nested if p.corrected.groups < smallest]
            units, largest = good[0].corrected, max(too_few, default=0)
            smallest_sets.append(MinimalCorrection(order, units, largest, group_by == "component"))
    return tuple(smallest_sets)


@dataclass(frozen=True)
class Ease:
    """How little had to be corrected for half of the drop, as shares of all units of the kind.

    Attributes:
        transitions, reward_events, episodes, groups: shares, read off the curve by linear interpolation
            between the two verified sets around half of the drop (episodes: None of arbitrary edits).
        by_component: whether groups are reward components.
        kind: `concentrated` or `diffuse`; None: everything is one group, and not few of its reward events suffice.
        verified: the smallest verified correction that reaches half of the drop; None of arbitrary edits.
    """

    transitions: float
    reward_events: float
    episodes: float | None
    groups: float
    kind: str | None
    verified: CurvePoint | None
    by_component: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return the contract's `ease`."""
        return {
            "transitions": self.transitions,
            "reward_events": self.reward_events,
            "episodes": self.episodes,
            "groups": self.groups,
            "components": self.groups if self.by_component else None,
            "kind": self.kind,
        }


def ease(
    verdict: Verdict,
    curve: Sequence[CurvePoint],
    summaries: Sequence[pa.Table],
    thresholds: Thresholds,
    group_by: str = "context",
) -> Ease | None:
    """Return how easy the correction is: units for half of the drop, in attribution order.

    Args:
        verdict: the set's verdict; only an outer one has an ease.
        curve: all verified correction sets.
        summaries: reward summaries of the paired seeds.
        thresholds: `few` decides between concentrated and diffuse.
        group_by: what a group is; of components the share of components is known too.
    """
    nested = [point for order in (Order.NONE, Order.ATTRIBUTION, Order.ALL) for point in curve if point.order == order]
    rates = [point.misbehaviour.value for point in nested if point.misbehaviour.value is not None]
    if verdict is not Verdict.OUTER or len(rates) < len(nested) or len(nested) < 2 or rates[0] <= rates[-1]:
        return None
    halfway = 0.5 * (rates[0] + rates[-1])
    index = next(i for i, rate in enumerate(rates) if rate <= halfway)
    weight = (rates[index - 1] - halfway) / (rates[index - 1] - rates[index])
    if len(nested) == 2:
        weight = 1.0  # no nested set was verified: everything is the smallest known to suffice
    before, after = (np.array(nested[i].corrected) for i in (index - 1, index))
    units = before + weight * (after - before)
    whole = np.array(all_units(summaries))
    shares = np.divide(units, whole, out=np.zeros(len(whole)), where=whole > 0)
    transitions, events, episodes, groups = shares.tolist()
    diffuse = "diffuse" if whole[-1] > 1 else None  # of one group there are neither few nor many
    kind = "concentrated" if min(events, groups) <= thresholds.few else diffuse
    return Ease(transitions, events, episodes, groups, kind, nested[index], group_by == "component")


def arbitrary_ease(
    trials: Sequence[ArbitraryTrial], summaries: Sequence[pa.Table], removes: Sequence[bool], group_by: str = "context"
) -> Ease | None:
    """Return how little had to be edited, of the smallest set of arbitrary edits that removes the misbehaviour.

    Args:
        trials: all verified sets, the smallest first.
        summaries: reward summaries of the seeds.
        removes: whether each set removes it.
        group_by: what a group is.
    """
    smallest = next((trial for trial, good in zip(trials, removes, strict=True) if good), None)
    if smallest is None:
        return None
    whole = all_units(summaries)
    groups = smallest.groups / whole.groups
    events = min(smallest.transitions / whole.reward_events, 1.0)
    return Ease(
        smallest.transitions / whole.transitions, events, None, groups, "concentrated", None, group_by == "component"
    )
