"""What the reward as paid prefers: mean return by outcome. What can be said where nobody tells an intended reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from ..datasets.outcomes import Outcomes
from ..datasets.schema import RANDOM_POLICY_SEED
from ..datasets.words import counted
from .statistics import NOTHING, Interval, mean_interval

Kind = Literal["desired", "misbehaved", "other"]
_ORDER: tuple[Kind, ...] = ("desired", "misbehaved", "other")


@dataclass(frozen=True)
class Paid:
    """What episodes of one outcome return.

    Attributes:
        outcome, kind: how they ended, and what the task calls that.
        training, test: mean return as paid of the recorded training episodes, and of the agents' test plays; means over
            seeds with t-intervals.
        training_episodes, test_episodes: how many there are.
    """

    outcome: str
    kind: Kind
    training: Interval
    test: Interval
    training_episodes: int
    test_episodes: int


@dataclass(frozen=True)
class Preference:
    """Returns by outcome, the best paid in training first.

    Attributes:
        outcomes: every outcome that some training episode or test play had.
        lead: by how much the best paid declared outcome of training returns more than the best paid one of the other
            kind (desired against misbehaved), over seeds that had both; nothing where none had.
        seeds: how many had both.
    """

    outcomes: tuple[Paid, ...]
    lead: Interval
    seeds: int

    def declared(self) -> tuple[Paid, ...]:
        """Return the declared outcomes that training episodes had."""
        return tuple(p for p in self.outcomes if p.kind != "other" and p.training.value is not None)

    def rival(self) -> Paid | None:
        """Return the best paid outcome of the kind that the first is not; None without one."""
        first, *others = self.declared() or (None,)
        return next((p for p in others if first is not None and p.kind != first.kind), None)

    def in_words(self) -> str:
        """Say which outcome the reward prefers, and whether that is clear."""
        if not (declared := self.declared()):
            return "Mean return as paid, by outcome: no training episode ended in a declared outcome."
        first, rival = declared[0], self.rival()
        said = f"Mean return as paid, by outcome: your reward prefers “{first.outcome}” ({first.kind})"
        if rival is None:
            return f"{said}: {_number(first.training)}. No training episode ended in one of the other kind."
        said = (
            f"{said}: {_number(first.training)} in training, against {_number(rival.training)} for "
            f"“{rival.outcome}” ({rival.kind})."
        )
        value, low, high = self.lead
        if value is None or low is None or high is None:
            return f"{said} Fewer than two seeds had both, so nothing says how sure that is."
        sure = "which is clear" if low > 0 or high < 0 else "which is not clear: the interval holds zero"
        if high < 0:
            sure = "the other way round within seeds: agents differ in how often they had either"
        return f"{said} The difference within {counted(self.seeds, 'seed')} is {_number(self.lead)}, {sure}."

    def as_dict(self) -> dict[str, Any]:
        """Return it as `summary.json` has it."""
        return {
            "outcomes": [
                {**asdict(paid), "training": paid.training.as_dict(), "test": paid.test.as_dict()}
                for paid in self.outcomes
            ],
            "lead": self.lead.as_dict(),
            "seeds": self.seeds,
        }


def find_preference(trainings: Mapping[int, pa.Table], episodes: pa.Table, declared: Outcomes) -> Preference | None:
    """Return what the reward prefers; None where no episode ended.

    Args:
        trainings: of each seed, how its recorded episodes ended (`datasets.schema.LEARNING`).
        episodes: of the evaluation set: the agents' and the random policy's.
        declared: the task's outcomes.
    """
    kinds: dict[str, Kind] = dict.fromkeys(declared.desired, "desired")
    kinds |= dict.fromkeys(declared.misbehaved, "misbehaved")
    trained = {seed: _sums(table, "episodes", "reward") for seed, table in trainings.items()}
    test = episodes.filter((pc.field("part") == "test") & (pc.field("seed") != RANDOM_POLICY_SEED))
    played = {}
    for seed in pc.unique(test["seed"]).to_pylist():
        mine = test.filter(pc.field("seed") == seed)
        played[seed] = _sums(mine.append_column("episodes", pa.repeat(1, mine.num_rows)), "episodes", "reward")
    names = sorted({name for found in (*trained.values(), *played.values()) for name in found})
    paid = [
        Paid(
            name, kinds.get(name, "other"), _mean_of(trained, name), _mean_of(played, name), _count(trained, name),
            _count(played, name),
        )
        for name in names
    ]  # fmt: skip
    if not paid:
        return None
    worst = float("-inf")
    paid.sort(key=lambda p: (-(worst if p.training.value is None else p.training.value), _ORDER.index(p.kind)))
    whole = Preference(tuple(paid), NOTHING, 0)
    first, rival = (whole.declared() or (None,))[0], whole.rival()
    if first is None or rival is None:
        return whole
    both = [found for found in trained.values() if first.outcome in found and rival.outcome in found]
    leads = [_mean(found[first.outcome]) - _mean(found[rival.outcome]) for found in both]
    return Preference(tuple(paid), mean_interval(leads), len(leads))


def _sums(table: pa.Table, count: str, total: str) -> dict[str, tuple[int, float]]:
    """Return number of episodes and sum of their returns by outcome."""
    found = table.group_by("outcome").aggregate([(count, "sum"), (total, "sum")]).to_pylist()
    return {row["outcome"]: (row[f"{count}_sum"], row[f"{total}_sum"]) for row in found}


def _mean(found: tuple[int, float]) -> float:
    return found[1] / found[0]


def _mean_of(seeds: Mapping[int, Mapping[str, tuple[int, float]]], name: str) -> Interval:
    values: Sequence[float] = [_mean(found[name]) for found in seeds.values() if name in found]
    return mean_interval(values)


def _count(seeds: Mapping[int, Mapping[str, tuple[int, float]]], name: str) -> int:
    return sum(found[name][0] for found in seeds.values() if name in found)


def _number(found: Interval) -> str:
    value, low, high = found
    if low is None or high is None:
        return f"{value:.3g} [unbounded]"
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"
