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

from ...datasets.bank import Bank
from ...datasets.outcomes import KINDS, Kind, Outcomes
from ...datasets.schema import Order
from ...datasets.words import counted
from ..statistics import Interval, mean_interval, rate_interval

AS_PAID, CORRECTED = "rewards as paid", "all rewards corrected"
_MOST_STRETCHES = 32
_LAST = 3  # the end of a training is its last third
_FEWEST_WINDOWS = 3
SMALLEST_CHANGE = 0.05


@dataclass(frozen=True)
class Stage:
    """How episodes ended in a stretch of training.

    Attributes:
        agents: `AS_PAID` or `CORRECTED`.
        kind: what the task calls their outcomes.
        first, last: windows.
        rate: share of all episodes that ended in them, mean over seeds with its t-interval.
    """

    agents: str
    kind: Kind
    first: int
    last: int
    rate: Interval


@dataclass(frozen=True)
class Change:
    """By how much a rate changes over the last third of training.

    Attributes:
        agents, kind: as in `Stage`.
        change: slope of a straight line through a seed's windows times their span, mean over seeds with its t-interval;
            the intervals of all shares of a run hold together at 95%.
        seeds: how many seeds have enough windows.
    """

    agents: str
    kind: Kind
    change: Interval
    seeds: int

    @property
    def clear(self) -> bool:
        """Whether the interval is clear of zero, and the change at least `SMALLEST_CHANGE`."""
        value, low, high = self.change
        if value is None or low is None or high is None:
            return False
        return (low > 0 or high < 0) and abs(value) >= SMALLEST_CHANGE


class Silence(NamedTuple):
    """Agents of whom no episode ended after a window: nothing is known of how later ones would have ended.

    Attributes:
        agents: as in `Stage`.
        seeds, of: in how many of how many seeds.
        last, windows: the last window in which an episode ended (the earliest such of the seeds), of how many windows.
    """

    agents: str
    seeds: int
    of: int
    last: int
    windows: int

    def in_words(self) -> str:
        """Say it in a sentence."""
        every = "every seed" if self.seeds == self.of else f"{self.seeds} of {counted(self.of, 'seed')}"
        return (
            f"In {every} ({self.agents}) no episode ended near the end of training, in the earliest case after window "
            f"{self.last} of windows 0 to {self.windows - 1}: how the agents behaved later is not known."
        )


@dataclass(frozen=True)
class Learning:
    """Outcomes over training, of the agents trained with rewards as paid and of those trained with all corrected.

    Attributes:
        stages: for the figure.
        changes: at the end of training.
        corrected, kept: whether corrected agents were trained; and, if so, whether their outcomes were kept.
        silences: agents of whom no episode ended near the end of training.
    """

    stages: tuple[Stage, ...]
    changes: tuple[Change, ...]
    corrected: bool
    kept: bool
    silences: tuple[Silence, ...] = ()

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
    trainings: Mapping[int, pa.Table],
    bank: Bank | None,
    outcomes: pa.Table,
    declared: Outcomes,
    windows: Mapping[int, int] | None = None,
) -> Learning | None:
    """Return outcomes over training; None where no episode ended.

    Args:
        trainings: of each seed, how its recorded episodes ended (`datasets.schema.LEARNING`).
        bank: the counterfactual bank; None before it was made.
        outcomes: how episodes of the bank's trainings ended (`datasets.schema.BANK_LEARNING`).
        declared: the task's outcomes.
        windows: of each seed, how many windows its training had (retrainings have as many); of a seed that is not there
            up to the last in which an episode ended.
    """
    members = {} if bank is None else bank.members(Order.ALL)
    long = windows or {}
    tables = {
        AS_PAID: [(seed, table) for seed, table in trainings.items()],
        CORRECTED: [(seed, outcomes.filter(pc.field("member") == member)) for member, seed in members.items()],
    }
    seeds = {
        agents: [_counts(table, declared, long.get(seed, 0)) for seed, table in mine if table.num_rows]
        for agents, mine in tables.items()
    }
    late = {
        agents: np.array([c for each in counts if (c := _change(each)) is not None]) for agents, counts in seeds.items()
    }
    tests = len(KINDS) * sum(len(values) > 1 for values in late.values())
    stages = [stage for agents, counts in seeds.items() if counts for stage in _stages(agents, counts)]
    changes = [
        Change(agents, kind, mean_interval(values.tolist(), max(tests, 1)), len(late[agents]))
        for agents, counts in seeds.items()
        if counts
        for kind, values in zip(KINDS, late[agents].reshape(-1, len(KINDS)).T, strict=True)
    ]
    silences = [_silence(agents, counts) for agents, counts in seeds.items()]
    if not stages:
        return None
    return Learning(
        tuple(stages),
        tuple(changes),
        bool(members),
        bool(seeds[CORRECTED]),
        tuple(s for s in silences if s is not None),
    )


class _Counts(NamedTuple):
    """Numbers of episodes of a training of `length` windows: windows in which some ended [W], and by kind [W, 3]."""

    windows: NDArray[np.int64]
    episodes: NDArray[np.float64]
    length: int

    def between(self, first: int, end: int) -> NDArray[np.float64]:
        """Return the sums over windows from `first` to before `end`, [3]."""
        start, stop = np.searchsorted(self.windows, [first, end])
        return np.asarray(self.episodes[start:stop].sum(axis=0))


def _counts(table: pa.Table, declared: Outcomes, length: int) -> _Counts:
    windows, place = np.unique(table["window"].to_numpy().astype(np.int64), return_inverse=True)
    episodes = np.zeros((len(windows), len(KINDS)))
    column = np.array([KINDS.index(declared.kind_of(outcome)) for outcome in table["outcome"].to_pylist()], np.int64)
    np.add.at(episodes, (place, column), table["episodes"].to_numpy())
    return _Counts(windows, episodes, max(length, int(windows[-1]) + 1))


def _stages(agents: str, counts: Sequence[_Counts]) -> list[Stage]:
    windows = max(training.length for training in counts)
    edges = np.unique(np.linspace(0, windows, min(windows, _MOST_STRETCHES) + 1).astype(int))
    stages = []
    for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        sums = [training.between(first, end) for training in counts]
        rates = [episodes / episodes.sum() for episodes in sums if episodes.sum()]
        for index, kind in enumerate(KINDS):
            if rates:
                rate = rate_interval([float(shares[index]) for shares in rates])
                stages.append(Stage(agents, kind, first, end - 1, rate))
    return stages


def _silence(agents: str, counts: Sequence[_Counts]) -> Silence | None:
    quiet = [each for each in counts if each.length - 1 - int(each.windows[-1]) >= _FEWEST_WINDOWS]
    if not quiet:
        return None
    first = min(quiet, key=lambda each: int(each.windows[-1]))
    return Silence(agents, len(quiet), len(counts), int(first.windows[-1]), first.length)


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


def in_words(learning: Learning) -> str:
    """Say whether outcomes still change at the end of training, and what was asked."""
    asked = (
        "How this is judged: a straight line is fitted to each share over the last third of each seed's training (at "
        "least three windows; a window is one rollout). A share counts as changing if these lines rise or fall by "
        f"{100 * SMALLEST_CHANGE:.0f} percentage points or more on average over seeds, with a t-interval that excludes "
        "zero (widened: where nothing changes, testing all shares at once finds a change in at most 5% of cases)."
    )
    asked = " ".join([*(silence.in_words() for silence in learning.silences), asked])
    if still := learning.still:
        return f"Outcomes still change at the end of training: {'; '.join(map(change_in_words, still))}. {asked}"
    measured = [change for change in learning.changes if change.change.low is not None]
    if not measured:
        unknown = (
            "Whether outcomes still change at the end of training cannot be said: that takes two seeds, and three "
            "windows at the end in which episodes ended."
        )
        return " ".join([unknown, *(silence.in_words() for silence in learning.silences)])
    largest = max(measured, key=lambda change: abs(change.change.value or 0.0))
    return (
        "At the end of training no share of outcomes changes clearly; the largest change is "
        f"{change_in_words(largest)}. {asked}"
    )


def change_in_words(change: Change) -> str:
    """Say a change at the end of training: `misbehaved +12 points [8, 16] (rewards as paid)`."""
    value, low, high = (round(100 * (x or 0.0)) + 0 for x in change.change)
    return f"{change.kind} {value:+d} points [{low}, {high}] ({change.agents})"
