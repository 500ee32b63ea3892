"""From the tables of a run to the evidence that the verdict is decided on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...datasets.bank import Bank, Selection, ensemble_rates
from ...datasets.outcomes import Outcomes
from ...datasets.rewards import intended_known, recorded_whole, return_range
from ...datasets.schema import RANDOM_POLICY_SEED, Order
from ..statistics import count_upper_end
from .rules import ArbitraryTrial, Evidence, OutcomeRate, Tampering


def collect_evidence(
    episodes: pa.Table,
    rewards: Sequence[pa.Table],
    bank: Bank | None,
    declared: Outcomes,
    selection: Selection | None = None,
) -> Evidence:
    """Collect the evidence for the verdict.

    Args:
        episodes: the episodes table of the evaluation set: the agents' and the random policy's.
        rewards: the reward summary of each seed's training.
        bank: the counterfactual bank; None before it was made.
        declared: the task's outcomes.
        selection: of one of several clusters of failures; the bank has it too.
    """
    corrected = bank.rates(bank.members(Order.ALL), declared) if bank is not None else ()
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
        if order != Order.ARBITRARY:
            continue
        mask, placebo = sets[order, size], sets.get((Order.PLACEBO, size), {"edited": 0.0, "change": 0.0})
        edited, control = (bank.rates(bank.members(name, size), declared) for name in (order, Order.PLACEBO))
        units = (mask["edited"], mask["change"], mask["share"])
        trials.append(ArbitraryTrial(size, *units, edited, control, placebo["edited"], placebo["change"]))
    return tuple(trials)


def outcome_rates(episodes: pa.Table, declared: Outcomes) -> tuple[OutcomeRate, ...]:
    """Return how often each declared outcome happens at test, and the upper end of a random policy's rate."""
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
    """Return by how much observed exceed untampered returns at test; None if the environment does not say.

    Args:
        episodes: of the agents and of the random policy.
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
