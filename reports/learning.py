"""Outcomes over training: how the episodes of each window ended, and whether that still changes at its end.

An agent that is still learning says little of what its rewards lead to: before more seeds, it is to be trained longer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..datasets.outcomes import Outcomes
from .chart import CONFIG, GOOD, MUTED, WARM, Chart, Spec, bounds, category, colours, quantity, records, trace
from .evidence import Bank
from .rows import rows_of
from .statistics import Interval, mean_interval, rate_interval

AS_PAID, CORRECTED = "rewards as paid", "all rewards corrected"
KINDS = ("desired", "misbehaved", "other")
_COLOURS = dict(zip(KINDS, (GOOD, WARM, MUTED), strict=True))
_MOST_STRETCHES = 32
_LAST = 3  # the end of a training is its last third
_FEWEST_WINDOWS = 3
SMALLEST_CHANGE = 0.05


@dataclass(frozen=True)
class Stage:
    """How episodes ended in a stretch of training.

    Attributes:
        agents: `AS_PAID` or `CORRECTED`.
        kind: one of `KINDS`.
        first, last: windows.
        rate: share of all episodes that ended in them, mean over seeds with its t-interval.
    """

    agents: str
    kind: str
    first: int
    last: int
    rate: Interval


@dataclass(frozen=True)
class Change:
    """By how much a rate changes over the last third of training.

    Attributes:
        agents, kind: as in `Stage`.
        change: slope of a straight line through a seed's windows times their span, mean over seeds with its t-interval.
        seeds: how many seeds have enough windows.
    """

    agents: str
    kind: str
    change: Interval
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the interval is clear of zero, and the change at least `SMALLEST_CHANGE`."""
        value, low, high = self.change
        if value is None or low is None or high is None:
            return False
        return (low > 0 or high < 0) and abs(value) >= SMALLEST_CHANGE


@dataclass(frozen=True)
class Learning:
    """Outcomes over training, of the agents trained with rewards as paid and of those trained with all corrected.

    Attributes:
        stages: for the figure.
        changes: at the end of training.
        corrected: whether corrected agents were trained; and, if so, whether their outcomes were kept.
    """

    stages: tuple[Stage, ...]
    changes: tuple[Change, ...]
    corrected: bool
    kept: bool

    @property
    def still(self) -> tuple[Change, ...]:
        """The clear changes at the end of training, the largest first."""
        return tuple(sorted((c for c in self.changes if c.clear), key=lambda c: -abs(c.change.value or 0.0)))

    def as_dict(self) -> list[dict[str, Any]]:
        """Return the changes as `summary.json` has them."""
        return [
            {"agents": c.agents, "outcomes": c.kind, "change": c.change.as_dict(), "seeds": c.seeds, "clear": c.clear}
            for c in self.changes
        ]


def find_learning(
    trainings: Mapping[int, pa.Table], bank: Bank | None, outcomes: pa.Table, declared: Outcomes
) -> Learning | None:
    """Return outcomes over training; None where no episode ended.

    Args:
        trainings: of each seed, how its recorded episodes ended (`datasets.schema.LEARNING`).
        bank: the counterfactual bank; None before it was made.
        outcomes: how episodes of the bank's trainings ended (`datasets.schema.BANK_LEARNING`).
        declared: the task's outcomes.
    """
    members = [] if bank is None else list(bank.members("all"))
    seeds = {
        AS_PAID: [_counts(table, declared) for table in trainings.values() if table.num_rows],
        CORRECTED: [
            _counts(found, declared)
            for member in members
            if (found := outcomes.filter(pc.field("member") == member)).num_rows
        ],
    }
    stages: list[Stage] = []
    changes: list[Change] = []
    for agents, counts in seeds.items():
        if counts:
            stages += _stages(agents, counts)
            changes += _changes(agents, counts)
    return Learning(tuple(stages), tuple(changes), bool(members), bool(seeds[CORRECTED])) if stages else None


class _Counts(NamedTuple):
    """Numbers of episodes of one training: windows in which some ended, ascending [W], by kind [W, 3]."""

    windows: NDArray[np.int64]
    episodes: NDArray[np.float64]

    @property
    def length(self) -> int:
        """The number of windows up to the last in which an episode ended."""
        return int(self.windows[-1]) + 1

    def between(self, first: int, end: int) -> NDArray[np.float64]:
        """Return the sums over windows from `first` to before `end`, [3]."""
        start, stop = np.searchsorted(self.windows, [first, end])
        return np.asarray(self.episodes[start:stop].sum(axis=0))


def _counts(table: pa.Table, declared: Outcomes) -> _Counts:
    kind = dict.fromkeys(declared.desired, 0) | dict.fromkeys(declared.misbehaved, 1)
    windows, place = np.unique(table["window"].to_numpy().astype(np.int64), return_inverse=True)
    episodes = np.zeros((len(windows), len(KINDS)))
    column = np.array([kind.get(outcome, 2) for outcome in table["outcome"].to_pylist()], dtype=np.int64)
    np.add.at(episodes, (place, column), table["episodes"].to_numpy())
    return _Counts(windows, episodes)


def _stages(agents: str, counts: Sequence[_Counts]) -> list[Stage]:
    windows = max(found.length for found in counts)
    edges = np.unique(np.linspace(0, windows, min(windows, _MOST_STRETCHES) + 1).astype(int))
    stages = []
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        sums = [found.between(first, end) for found in counts]
        rates = [found / found.sum() for found in sums if found.sum()]
        for index, kind in enumerate(KINDS):
            if rates:
                rate = rate_interval([float(found[index]) for found in rates])
                stages.append(Stage(agents, kind, first, end - 1, rate))
    return stages


def _changes(agents: str, counts: Sequence[_Counts]) -> list[Change]:
    found = [change for each in counts if (change := _change(each)) is not None]
    by_kind = np.array(found).reshape(-1, len(KINDS)).T
    return [
        Change(agents, kind, mean_interval(values.tolist()), len(found))
        for kind, values in zip(KINDS, by_kind, strict=True)
    ]


def _change(counts: _Counts) -> NDArray[np.float64] | None:
    """Return by how much each rate of one training changes over its last third, [3]; None with too few windows.

    A line is fitted by least squares, each window weighted by its episodes.
    """
    late = counts.windows >= counts.length - max(counts.length // _LAST, _FEWEST_WINDOWS)
    windows = counts.windows[late]
    if len(windows) < _FEWEST_WINDOWS:
        return None
    episodes = counts.episodes[late].sum(axis=1)
    centred = windows - np.average(windows, weights=episodes)
    weighted = episodes * centred
    rates = counts.episodes[late] / episodes[:, None]
    slope = weighted @ rates / (weighted @ centred)
    return np.asarray(slope * (windows[-1] - windows[0]), dtype=np.float64)


def learning_chart(learning: Learning) -> Chart:
    """Draw outcomes over training: shares of episodes that end desired, misbehaved or otherwise."""
    columns = ("agents", "outcomes", "first_window", "last_window", "share", "low", "high")
    rows = rows_of(columns, [(s.agents, s.kind, s.first, s.last, *s.rate) for s in learning.stages])
    x = quantity("last_window", "training time (window)", axis={"tickMinStep": 1, "tickCount": 6})
    y = quantity("share", "share of episodes", axis={"format": ".0%"}, scale={"domain": [0, 1]})
    colour = colours("outcomes", _COLOURS)
    tip = [
        category("outcomes"), quantity("first_window", "from window"), quantity("last_window", "to window"),
        quantity("share", format=".1%"), *bounds(".1%"),
    ]  # fmt: skip
    points = len({stage.last for stage in learning.stages})
    layers = trace(x, y, colour, tip, points)
    panels = [agents for agents in (AS_PAID, CORRECTED) if any(stage.agents == agents for stage in learning.stages)]
    spec: Spec = {
        "config": {**CONFIG, "legend": {**CONFIG["legend"], "columns": len(KINDS)}},
        "data": {"values": records(rows)},
        "columns": 2,
        "facet": category("agents", header={"title": None}, sort=panels),
        "spec": {"width": 380, "height": 200, "layer": layers},
    }
    missing = (
        " How the corrected agents learned was not kept: an earlier version trained them."
        if learning.corrected and not learning.kept
        else "" if learning.corrected else " No agent was trained with corrected rewards."
    )  # fmt: skip
    caption = (
        "How the training episodes that ended in each window ended (actions drawn, on the training levels), as shares "
        f"of all of them; means over seeds with 95% t-intervals. Other: outcomes that the task does not declare."
        f"{missing}"
    )
    return Chart("learning", "Outcomes over training", caption, spec, rows)


def in_words(learning: Learning) -> str:
    """Say whether outcomes still change at the end of training, and what was asked."""
    asked = (
        f"Asked was whether a line through a seed's last third of windows (three or more) rises or falls by at least "
        f"{100 * SMALLEST_CHANGE:.0f} points, with a 95% interval over seeds that is clear of zero."
    )
    if still := learning.still:
        return f"Outcomes still change at the end of training: {'; '.join(map(change_in_words, still))}. {asked}"
    measured = [change for change in learning.changes if change.change.low is not None]
    if not measured:
        return (
            "Whether outcomes still change at the end of training cannot be said: that takes two seeds, and three "
            "windows at the end in which episodes ended."
        )
    largest = max(measured, key=lambda change: abs(change.change.value or 0.0))
    return (
        "At the end of training no share of outcomes changes clearly; the largest change is "
        f"{change_in_words(largest)}. {asked}"
    )


def change_in_words(change: Change) -> str:
    """Say a change at the end of training: `misbehaved +12 points [8, 16] (rewards as paid)`."""
    value, low, high = (round(100 * (x or 0.0)) + 0 for x in change.change)
    return f"{change.kind} {value:+d} points [{low}, {high}] ({change.agents})"
