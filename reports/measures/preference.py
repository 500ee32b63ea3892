"""What the reward as paid prefers: mean return by outcome. What can be said without an intended reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...datasets.outcomes import KINDS, Kind, Outcomes
from ...datasets.schema import RANDOM_POLICY_SEED
from ...datasets.words import counted
from ..statistics import NOTHING, Interval, mean_interval

_Trained = Mapping[int, Mapping[str, tuple[int, float]]]  # by seed and outcome: episodes, and the sum of their returns


@dataclass(frozen=True)
class Paid:
    """What episodes of one outcome return.

    Attributes:
        outcome, kind: how they ended, and what the task calls that.
        training, test: mean return as paid of the recorded training episodes, and of the agents' test episodes; means
            over seeds with t-intervals.
        training_episodes, test_episodes: how many there are.
    """

    outcome: str
    kind: Kind
    training: Interval
    test: Interval
    training_episodes: int
    test_episodes: int


@dataclass(frozen=True)
class Lead:
    """By how much one outcome returns more than another, within seeds: each seed is compared with itself only.

    Attributes:
        outcome, rival: two declared outcomes, one of them desired and the other misbehaved.
        returns: mean return as paid in training of each, over the seeds that had both.
        lead: their difference with its t-interval; the intervals of all such pairs hold together at 95%.
        seeds: how many had both.
    """

    outcome: Paid
    rival: Paid
    returns: tuple[float, float]
    lead: Interval
    seeds: int

    @property
    def worth(self) -> tuple[float, float]:
        """What pairs are ordered by: the lower end of the difference, and its mean."""
        value, low, _ = self.lead
        return float("-inf") if low is None else low, float("-inf") if value is None else value


@dataclass(frozen=True)
class Preference:
    """Returns by outcome.

    Attributes:
        outcomes: every outcome that some training or test episode had, by mean return in training.
        least: of the outcome whose differences within seeds speak most for it, the least clear one; None where no seed
            had a desired and a misbehaved outcome.
        not_compared: outcomes that could be its rivals, and fewer than two seeds had both.
    """

    outcomes: tuple[Paid, ...]
    least: Lead | None = None
    not_compared: tuple[str, ...] = ()

    @property
    def preferred(self) -> Paid | None:
        """The outcome that is clearly paid more than every one of the other kind that it was compared with; or None."""
        least = self.least
        return None if least is None or least.lead.low is None or least.lead.low <= 0.0 else least.outcome

    def in_words(self) -> str:
        """Say which outcome the reward prefers, or that this cannot be told."""
        declared = [paid for paid in self.outcomes if paid.kind != "other" and paid.training.value is not None]
        if not declared:
            return "Mean return as paid, by outcome: no training episode ended in a declared outcome."
        cannot, least = "Mean return as paid, by outcome: it cannot be told which outcome is paid more.", self.least
        if least is None:
            had = "; ".join(f"“{paid.outcome}” ({paid.kind}) returns {_number(paid.training)}" for paid in declared)
            one = len({paid.kind for paid in declared}) == 1
            why = (
                "No training episode ended in one of the other kind"
                if one
                else "No seed had both a desired and a misbehaved outcome"
            )
            return f"{cannot} {had}. {why}."
        (first, rival), (more, less) = (least.outcome, least.rival), least.returns
        if least.lead.low is None:
            return (
                f"{cannot} “{first.outcome}” ({first.kind}) returns {more:.3g} in training, “{rival.outcome}” "
                f"({rival.kind}) {less:.3g}. Fewer than two seeds had both, so nothing says how sure that is."
            )
        within = f"within the {counted(least.seeds, 'seed')} that had both"
        names = ", ".join(f"“{name}”" for name in self.not_compared)
        left = f" Fewer than two seeds tell how it compares with {names}." if names else ""
        if self.preferred is None:
            return (
                f"{cannot} “{first.outcome}” ({first.kind}) returns {more:.3g} in training and “{rival.outcome}” "
                f"({rival.kind}) {less:.3g}, {within}; the difference of {_number(least.lead)} is not clear of zero."
                f"{left}"
            )
        return (
            f"Mean return as paid, by outcome: your reward prefers “{first.outcome}” ({first.kind}): {more:.3g} in "
            f"training, against {less:.3g} for “{rival.outcome}” ({rival.kind}), {within}. The difference is "
            f"{_number(least.lead)}, which is clear of zero.{left}"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return it as `summary.json` has it."""
        least, preferred = self.least, self.preferred
        return {
            "outcomes": [
                {**asdict(paid), "training": paid.training.as_dict(), "test": paid.test.as_dict()}
                for paid in self.outcomes
            ],
            "prefers": None if preferred is None else preferred.outcome,
            "compared": None if least is None else [least.outcome.outcome, least.rival.outcome],
            "lead": (NOTHING if least is None else least.lead).as_dict(),
            "seeds": 0 if least is None else least.seeds,
        }


def find_preference(trainings: Mapping[int, pa.Table], episodes: pa.Table, declared: Outcomes) -> Preference | None:
    """Return what the reward prefers; None where no episode ended.

    Args:
        trainings: of each seed, how its recorded episodes ended (`datasets.schema.LEARNING`).
        episodes: of the evaluation set: the agents' and the random policy's.
        declared: the task's outcomes.
    """
    trained = {seed: _sums(table, "episodes", "reward") for seed, table in trainings.items()}
    test = episodes.filter((pc.field("part") == "test") & (pc.field("seed") != RANDOM_POLICY_SEED))
    played = {}
    for seed in pc.unique(test["seed"]).to_pylist():
        mine = test.filter(pc.field("seed") == seed)
        played[seed] = _sums(mine.append_column("episodes", pa.repeat(1, mine.num_rows)), "episodes", "reward")
    names = sorted({name for seed in (*trained.values(), *played.values()) for name in seed})
    paid = [
        Paid(
            name, declared.kind_of(name), _mean_of(trained, name), _mean_of(played, name), _count(trained, name),
            _count(played, name),
        )
        for name in names
    ]  # fmt: skip
    if not paid:
        return None
    worst = float("-inf")
    paid.sort(key=lambda p: (-(worst if p.training.value is None else p.training.value), KINDS.index(p.kind)))
    return Preference(tuple(paid), *_least_clear(paid, trained))


def _least_clear(paid: Sequence[Paid], trained: _Trained) -> tuple[Lead | None, tuple[str, ...]]:
    """Return `Preference.least` and `Preference.not_compared`: the highest of every outcome's least clear lead.

    The best of several was picked by the data: intervals of all pairs are made to hold together.
    """
    had = [p for p in paid if p.training.value is not None]
    pairs = [(p, q) for p in had if p.kind == "desired" for q in had if q.kind == "misbehaved"]
    leads = [lead for p, q in pairs for lead in _leads(p, q, trained, len(pairs))]
    least = []
    for outcome in had:
        mine = [lead for lead in leads if lead.outcome is outcome]
        if compared := [lead for lead in mine if lead.seeds > 1] or mine:
            least.append(min(compared, key=lambda lead: lead.worth))
    if not least:
        return None, ()
    best = max(least, key=lambda lead: lead.worth)
    enough = {lead.rival.outcome for lead in leads if lead.outcome is best.outcome and lead.seeds > 1}
    rivals = [p.outcome for p in had if p.kind == best.rival.kind]
    return best, tuple(name for name in rivals if name not in enough)


def _leads(desired: Paid, misbehaved: Paid, trained: _Trained, pairs: int) -> list[Lead]:
    """Return what each of two outcomes returns more than the other; nothing where no seed had both."""
    names = (desired.outcome, misbehaved.outcome)
    both = [tuple(_mean(seed[name]) for name in names) for seed in trained.values() if {*names} <= seed.keys()]
    if not both:
        return []
    leads = []
    for outcome, rival, sign in ((desired, misbehaved, 1), (misbehaved, desired, -1)):
        more, less = (sum(column) / len(both) for column in list(zip(*both, strict=True))[::sign])
        lead = mean_interval([sign * (first - second) for first, second in both], pairs)
        leads.append(Lead(outcome, rival, (more, less), lead, len(both)))
    return leads


def _sums(table: pa.Table, count: str, total: str) -> dict[str, tuple[int, float]]:
    """Return number of episodes and sum of their returns by outcome."""
    rows = table.group_by("outcome").aggregate([(count, "sum"), (total, "sum")]).to_pylist()
    return {row["outcome"]: (row[f"{count}_sum"], row[f"{total}_sum"]) for row in rows}


def _mean(returns: tuple[int, float]) -> float:
    return returns[1] / returns[0]


def _mean_of(seeds: _Trained, name: str) -> Interval:
    return mean_interval([_mean(returns[name]) for returns in seeds.values() if name in returns])


def _count(seeds: _Trained, name: str) -> int:
    return sum(returns[name][0] for returns in seeds.values() if name in returns)


def _number(interval: Interval) -> str:
    value, low, high = interval
    return f"{value:.3g}" if low is None or high is None else f"{value:.3g} [{low:.3g}, {high:.3g}]"
