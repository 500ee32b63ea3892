"""From the tables of a run to the evidence that the verdict is decided on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...datasets.outcomes import Outcomes, PlayCounts
from ...datasets.rewards import intended_known, recorded_whole, return_range
from ...datasets.schema import RANDOM_POLICY_SEED, seed_and_episode
from ..statistics import count_upper_end
from .rules import ArbitraryTrial, Evidence, OutcomeRate, SeedRates, Tampering


@dataclass(frozen=True)
class Selection:
    """The test plays that count for one of several clusters of failures.

    A cluster is chosen by its failures, so an agent's own failures must not count for it: of an agent count the
    episodes that another seed's agent failed, and of those never repeat 0, the play that may have made a failure.

    Attributes:
        episodes: by seed.
    """

    episodes: Mapping[int, frozenset[int]]

    @staticmethod
    def of(failures: Sequence[str], seeds: Sequence[int]) -> Selection:
        """Select for a cluster of failures, given by their ids."""
        made_by = [seed_and_episode(name) for name in failures]
        return Selection({seed: frozenset(e for other, e in made_by if other != seed) for seed in seeds})

    def plays(self, table: pa.Table, seed: int) -> pa.Table:
        """Return the plays of an agent of this seed that count; training episodes all do."""
        chosen = pc.field("episode").isin(list(self.episodes.get(seed, ()))) & (pc.field("repeat") > 0)
        return table.filter((pc.field("part") == "train") | chosen)


@dataclass(frozen=True)
class Bank:
    """The counterfactual bank of an evaluation set: agents with edit masks, and how they played.

    Attributes:
        masks, outcomes: the tables of docs/run-folder.md.
        selection: the plays that count; None: all.
    """

    masks: pa.Table
    outcomes: pa.Table
    selection: Selection | None = None

    def of_cluster(self, number: int, selection: Selection | None) -> Bank:
        """Return the bank as a cluster of failures sees it, with its own attribution order; the whole set without a
        selection."""
        of_set, order = pc.field("cluster").is_null(), pc.field("order")
        own = (of_set & (order != "attribution")) | (pc.field("cluster") == number)
        return Bank(self.masks.filter(of_set if selection is None else own), self.outcomes, selection)

    def members(self, order: str, size: int | None = None, variant: str = "") -> dict[str, int]:
        """Return the seed of each member with this order (and size), trained with a variant of the task."""
        return {
            row["member"]: row["seed"]
            for row in self.masks.select(["member", "seed", "order", "size", "variant"]).to_pylist()
            if row["order"] == order and row["variant"] == variant and (size is None or row["size"] == size)
        }

    def rates(self, members: dict[str, int], declared: Outcomes) -> tuple[SeedRates, ...]:
        """Return the rates of members, by seed."""
        found = []
        for member, seed in sorted(members.items(), key=lambda item: item[1]):
            plays = self.outcomes.filter(pc.field("member") == member)
            found.append(_rates(seed, plays, declared, self.selection))
        return tuple(rates for rates in found if rates is not None)


def ensemble_rates(episodes: pa.Table, declared: Outcomes, selection: Selection | None = None) -> tuple[SeedRates, ...]:
    """Return the rates of the ensemble's agents, by seed, from the episodes table."""
    seeds = sorted(seed for seed in set(episodes["seed"].to_pylist()) if seed != RANDOM_POLICY_SEED)
    found = [_rates(seed, episodes.filter(pc.field("seed") == seed), declared, selection) for seed in seeds]
    return tuple(rates for rates in found if rates is not None)


def _rates(seed: int, plays: pa.Table, declared: Outcomes, selection: Selection | None) -> SeedRates | None:
    """Return the rates of an agent; None where none of its test plays are selected."""
    if selection is not None:
        plays = selection.plays(plays, seed)
        if "test" not in plays["part"].to_pylist():
            return None
    test, train = (
        PlayCounts.of(plays.filter(pc.field("part") == part)["outcome"].to_pylist(), declared)
        for part in ("test", "train")
    )
    desired_train = train.desired_share if train.total else None
    return SeedRates(seed, test.misbehaviour, test.competent, test.desired_share, desired_train)


def collect_evidence(
    episodes: pa.Table,
    rewards: Sequence[pa.Table],
    bank: Bank | None,
    declared: Outcomes,
    selection: Selection | None = None,
) -> Evidence:
    """Collect the evidence for the verdict.

    Args:
        episodes: episodes of the evaluation set: the ensemble's and the random policy's.
        rewards: the reward summary of each seed's training.
        bank: the counterfactual bank; None before it was made.
        declared: the task's outcomes.
        selection: of one of several clusters of failures; the bank has it too.
    """
    corrected = bank.rates(bank.members("all"), declared) if bank is not None else ()
    largest = max(float(pc.max(table["largest_error"]).as_py()) for table in rewards)
    return Evidence(
        uncorrected=ensemble_rates(episodes, declared, selection),
        corrected=corrected,
        outcomes=outcome_rates(episodes, declared),
        largest_error=largest if intended_known(list(rewards)) else None,
        tampering=tampering(episodes, return_range(list(rewards))),
        arbitrary=_trials(bank, declared) if bank is not None else (),
        recorded_whole=recorded_whole(list(rewards)),
        of_cluster=selection is not None,
    )


def _trials(bank: Bank, declared: Outcomes) -> tuple[ArbitraryTrial, ...]:
    """Return the verified sets of arbitrary edits with their placebos, the smallest first."""
    sets = {(row["order"], row["size"]): row for row in bank.masks.to_pylist() if row["values"] is not None}
    trials = []
    for order, size in sorted(sets):
        if order != "arbitrary":
            continue
        mask, placebo = sets[order, size], sets.get(("placebo", size), {"edited": 0.0, "change": 0.0})
        edited, control = (bank.rates(bank.members(name, size), declared) for name in (order, "placebo"))
        units = (mask["edited"], mask["change"], mask["share"])
        trials.append(ArbitraryTrial(size, *units, edited, control, placebo["edited"], placebo["change"]))
    return tuple(trials)


def outcome_rates(episodes: pa.Table, declared: Outcomes) -> tuple[OutcomeRate, ...]:
    """Return how often each declared outcome happens at test, beside a random policy's upper end."""
    test = episodes.filter(pc.field("part") == "test")
    random = test.filter(pc.field("seed") == RANDOM_POLICY_SEED)["outcome"].to_pylist()
    agents = test.filter(pc.field("seed") != RANDOM_POLICY_SEED)["outcome"].to_pylist()
    return tuple(
        OutcomeRate(
            outcome,
            agents.count(outcome) / max(len(agents), 1),
            count_upper_end(random.count(outcome), len(random)),
        )
        for outcome in [*declared.desired, *declared.misbehaved]
    )


def tampering(episodes: pa.Table, training_range: float) -> Tampering | None:
    """Return by how much observed exceed untampered returns at test; None if the environment does not tell.

    Args:
        episodes: of the ensemble and of the random policy.
        training_range: range of training returns.
    """
    test = episodes.filter(pc.field("part") == "test")
    if test["untampered_reward"].null_count:
        return None
    difference = pc.subtract(test["reward"], test["untampered_reward"]).to_numpy()
    is_random = test["seed"].to_numpy() == RANDOM_POLICY_SEED
    if is_random.all() or not is_random.any():
        return None
    return Tampering(
        float(np.mean(difference[~is_random])),
        float(np.mean(difference[is_random])),
        training_range,
    )
