r"""When the order in which attribution ranks groups is not to be trusted, and what is predicted of all corrections.

The table of groups calls the first ones most suspected only where no rule of this module says otherwise:

- `control`: agents corrected in this order do not misbehave less than those corrected in random order, mean over the
  sizes that both were verified with, or that was not measured. It is the only rule that looks at what happened, so it
  speaks of the order as a whole and not of one group.
- `sign`: all corrections together are predicted to do what retraining did not show. Where not even the sum has the
  right sign, its parts are not to be believed.
- `same error`: every group carries the same error, so none can be more to blame than another by what was paid there.
- `counting`: the number of wrong rewards, or the nearest observation, orders the groups alike, so attribution adds
  nothing to what can be counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...datasets.bank import Bank
from ...datasets.schema import Order
from ...datasets.words import counted
from ..statistics import Interval, mean_interval, percent
from ..verdict.rules import Evidence
from .curve import CurvePoint
from .validation import rank_correlations

LEAST_SHARE = 0.15  # of three harmless-only runs the largest is .09; tiny ones reach .29, with intervals into this band
SAME_ERROR = 0.05  # relative spread of errors that counts as none
SAME_SHARE = 0.10  # groups differ by chance in how many of their reward events are wrong
NEARLY_ALL = 0.95  # with these two 2 of 20 recorded worlds are called so: both, and only those, that were built so
SAME_ORDER = 0.9
FEWEST_RANKED = 4  # one order of four groups in 24 correlates as much by chance, of three one in six

_NEARNESS = "nearness to what was observed in the failures"

Kind = Literal["control", "sign", "same error", "counting"]
Effects = Mapping[str, float]


class Doubt(NamedTuple):
    """A reason not to call the first groups most suspected: a rule, and a sentence."""

    kind: Kind
    text: str


class Direction(NamedTuple):
    r"""What correcting all rewards together is predicted to do, with the critic corrected too.

    .. math:: \mathrm{share}_s = \sum_g e_{gs} \Big/ \sum_g |e_{gs}|

    Attributes:
        share: from -1 (all corrections lessen the misbehaviour) to 1, mean over seeds.
    """

    share: Interval

    @staticmethod
    def of(by_seed: Iterable[NDArray[np.float64]]) -> Direction | None:
        """Return the direction of effects of groups, [G] a seed; None where no seed has one that is a number."""
        sizes = [(float(e.sum()), float(np.abs(e).sum())) for e in by_seed]
        shares = [total / size for total, size in sizes if 0.0 < size < np.inf]
        return Direction(mean_interval(shares)) if shares else None

    @property
    def claimed(self) -> Literal["less", "more"] | None:
        """What happens to the misbehaviour; None where the interval does not lie clearly beyond `LEAST_SHARE`."""
        _, low, high = self.share
        if low is None or high is None:
            return None
        return "less" if high < -LEAST_SHARE else "more" if low > LEAST_SHARE else None

    def as_dict(self) -> dict[str, Any]:
        """Return it as `summary.json` writes it."""
        return {**self.share.as_dict(), "claimed": self.claimed}


def predicted_direction(rows: pa.Table) -> Direction | None:
    """Return what all corrections together are predicted to do; None where that is not known.

    Args:
        rows: of `influence/SET/direction.parquet`, of one estimator.
    """
    seeds, effects = rows["seed"].to_numpy(), rows["effect"].to_numpy()
    return Direction.of([effects[seeds == seed] for seed in np.unique(seeds)])


def curve_in_order(curve: Sequence[CurvePoint], bank: Bank | None, order: Sequence[str]) -> list[CurvePoint]:
    """Leave out sets of an attribution order that is not the present one: they were trained before it was made.

    Args:
        curve: all verified correction sets.
        bank: their agents; None: there are none.
        order: the wrong groups in the present order.
    """
    masks = [] if bank is None else bank.masks.select(["order", "size", "groups"]).to_pylist()
    sets = {row["size"]: set(row["groups"]) for row in masks if row["order"] == Order.ATTRIBUTION}
    earlier = {size for size, groups in sets.items() if groups != set(order[:size])}
    return [point for point in curve if point.order != Order.ATTRIBUTION or point.corrected.groups not in earlier]


def order_doubts(
    effects: Effects,
    rewards: Sequence[pa.Table],
    curve: Sequence[CurvePoint],
    evidence: Evidence,
    group_by: str,
    direction: Direction | None = None,
    nearest: Effects | None = None,
) -> tuple[Doubt, ...]:
    """Return why the order of the wrong groups is not to be trusted; nothing where it is, or where there is no order.

    Args:
        effects: predicted effect of correcting each wrong group; the most negative stands first.
        rewards: reward summary of the training of each seed.
        curve: verified correction sets; those of the attribution order are in the present one.
        evidence: rates with rewards as paid and with all corrected.
        group_by: what a group is.
        direction: of all corrections together; None: not known.
        nearest: effects of the estimator `nearest-observation`; None: it was not asked for.
    """
    if len(effects) < 2:
        return ()
    groups = _Groups.of(rewards)
    found = (
        _not_better_than_chance(curve),
        None if direction is None else _other_sign(direction, evidence),
        _same_error(groups, group_by),
        _as_well(effects, groups.counts(), "the number of wrong rewards"),
        None if nearest is None else _as_well(effects, {g: -e for g, e in nearest.items()}, _NEARNESS),
    )
    return tuple(doubt for doubt in found if doubt is not None)


def _not_better_than_chance(curve: Sequence[CurvePoint]) -> Doubt | None:
    sets = {(point.order, int(point.corrected.groups)): point.rates for point in curve}
    sizes = sorted(size for order, size in sets if order == Order.ATTRIBUTION and (Order.RANDOM, size) in sets)
    by_seed: dict[int, list[float]] = {}
    for size in sizes:
        chance = {rates.seed: rates.misbehaviour for rates in sets[Order.RANDOM, size]}
        for rates in sets[Order.ATTRIBUTION, size]:
            other = chance.get(rates.seed)
            if rates.misbehaviour is not None and other is not None:
                by_seed.setdefault(rates.seed, []).append(rates.misbehaviour - other)
    if not by_seed:
        return Doubt(
            "control", "Whether this order is better than a random one was not measured: no sets of the same size were "
            "trained again in both orders.",
        )  # fmt: skip
    change = mean_interval([float(np.mean(differences)) for differences in by_seed.values()])
    if change.high is None:
        return Doubt("control", "Whether this order is better than a random one cannot be told from one seed.")
    if change.high < 0.0:
        return None
    return Doubt(
        "control", "Agents corrected in this order do not clearly misbehave less than those corrected in random order "
        f"(difference of their rates {_points(change)}, mean over {counted(len(sizes), 'size')}, "
        f"{counted(len(by_seed), 'paired seed')}).",
    )  # fmt: skip


def _other_sign(direction: Direction, evidence: Evidence) -> Doubt | None:
    before, after = evidence.paired()
    pairs = zip(before, after, strict=False)  # none after: nothing was trained again
    both = [(x.misbehaviour, y.misbehaviour) for x, y in pairs]
    change = mean_interval([y - x for x, y in both if x is not None and y is not None])
    if change.low is None or change.high is None:
        return None
    if direction.claimed == "less" and change.high >= 0.0:
        predicted, measured = "less", "raised it" if change.low > 0.0 else "did not clearly change it"
    elif direction.claimed == "more" and change.high < 0.0:
        predicted, measured = "more", "lessened it"
    else:
        return None
    return Doubt(
        "sign", f"All corrections together are predicted to mean {predicted} misbehaviour, but retraining with them "
        f"{measured} (change of the rate {_points(change)}).",
    )  # fmt: skip


class _Groups(NamedTuple):
    """Groups of the training that were paid anything, over all seeds; arrays [G]."""

    names: list[str]
    wrong: NDArray[np.float64]
    events: NDArray[np.float64]
    error: NDArray[np.float64]
    largest: NDArray[np.float64]

    @staticmethod
    def of(rewards: Sequence[pa.Table]) -> _Groups:
        table = pa.concat_tables([one.replace_schema_metadata(None) for one in rewards])
        sums = table.group_by("group").aggregate(
            [("wrong_transitions", "sum"), ("reward_events", "sum"), ("error", "sum"), ("largest_error", "max")]
        )
        names = sums["group"].to_pylist()
        columns = ("wrong_transitions_sum", "reward_events_sum", "error_sum", "largest_error_max")
        wrong, events, error, largest = (sums[name].to_numpy().astype(np.float64) for name in columns)
        paid = events > 0.0
        return _Groups([n for n, p in zip(names, paid, strict=True) if p], *(
            values[paid] for values in (wrong, events, error, largest)
        ))  # fmt: skip

    def counts(self) -> Effects:
        return dict(zip(self.names, self.wrong.tolist(), strict=True))


def _same_error(groups: _Groups, group_by: str) -> Doubt | None:
    mistaken = groups.wrong > 0.0
    if not mistaken.any():
        return None
    largest = groups.largest[mistaken]
    for errors in (largest, groups.error[mistaken] / groups.wrong[mistaken]):
        if errors.max() - errors.min() > SAME_ERROR * errors.max():
            return None
    shares = groups.wrong / groups.events
    typical = float(np.median(shares))
    alike = mistaken & (np.abs(shares - typical) <= SAME_SHARE)
    if alike.mean() < NEARLY_ALL:
        return None
    other = " or ".join(f"group_by: {name}" for name in ("component", "transition") if name != group_by)
    return Doubt(
        "same error", f"All groups carry the same error ({largest.max():.3g} a wrong reward, in about "
        f"{percent(typical)} of the reward events of {alike.sum()} of {counted(len(alike), 'group')}), so their order "
        f"says nothing; {other} in the task asks which rewards it is in.",
    )  # fmt: skip


def _as_well(effects: Effects, counts: Effects, what: str) -> Doubt | None:
    names = [name for name in effects if name in counts]
    if len(names) < max(FEWEST_RANKED, len(effects)):
        return None
    predicted, other = (np.array([[values[name]] for name in names]) for values in (effects, counts))
    alike = float(rank_correlations(-predicted, other)[0])
    if alike < SAME_ORDER:
        return None
    return Doubt("counting", f"{what.capitalize()} orders the groups as well (rank correlation {_decimals(alike)}).")


def _decimals(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _points(change: Interval) -> str:
    value, low, high = (f"{round(100 * (end or 0.0)):+d}" for end in change)
    return f"{value} [{low}, {high}] percentage points"
