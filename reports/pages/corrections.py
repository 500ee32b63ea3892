"""The rewards to correct, as a file: what to train again with, in words for people and keys for programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pyarrow.compute as pc

from ...datasets.bank import Bank
from ...datasets.schema import Order
from ...datasets.words import counted
from ...training.edits.file import Edits, GroupBy, write_edits
from ..statistics import Interval
from ..verdict.rules import Verdict
from .findings import SetFindings


@dataclass(frozen=True)
class Correction:
    """A verified set of edited rewards.

    Attributes:
        groups: whose rewards are edited, by predicted effect.
        pay: what each group pays instead, of arbitrary edits; None: the intended reward.
        reward_events: reward events a run that the correction changes; None of arbitrary edits.
        misbehaviour: of agents trained with it.
        removes: whether it removes the misbehaviour, with competence kept; if not, it is the largest set.
    """

    groups: tuple[str, ...]
    pay: tuple[float, ...] | None
    reward_events: float | None
    misbehaviour: Interval
    removes: bool


def smallest_correction(findings: SetFindings, bank: Bank | None, order: Sequence[str]) -> Correction | None:
    """Return the smallest verified correction that removes the misbehaviour; else the largest that was verified.

    None unless the verdict is outer or mixed: elsewhere correcting rewards is not what to do.

    Args:
        findings: of the set.
        bank: the counterfactual bank.
        order: all wrong groups, the largest predicted drop first.
    """
    decision = findings.decision
    kind = "arbitrary" if decision.basis == "arbitrary" else "corrective"
    budget = next((each for each in findings.budgets if each.kind == kind), None)
    if bank is None or budget is None or decision.verdict not in (Verdict.OUTER, Verdict.MIXED):
        return None
    corrective = [Order.ATTRIBUTION, Order.ADAPTIVE, Order.ALL]
    names = pc.field("order").isin([Order.ARBITRARY] if kind == "arbitrary" else corrective)
    masks = bank.masks.filter(names & (pc.field("size") == budget.groups) & (pc.field("variant") == ""))
    mask = masks.slice(0, 1).to_pylist()[0]
    if mask["values"] is not None:
        return Correction(tuple(mask["groups"]), tuple(mask["values"]), None, budget.misbehaviour, budget.removes)
    rank = {group: index for index, group in enumerate(order)}
    groups = sorted(mask["groups"], key=lambda group: rank.get(group, len(rank)))
    point = next(p for p in findings.curve if p.order == mask["order"] and p.corrected.groups == budget.groups)
    return Correction(tuple(groups), None, point.corrected.reward_events, budget.misbehaviour, budget.removes)


def write_corrections(
    path: Path,
    correction: Correction | None,
    findings: SetFindings,
    source: Mapping[str, str],
    grouping: GroupBy,
    earlier: Edits | None = None,
) -> None:
    """Write an edits file (docs/task-file.md), or remove that of an earlier report where there is nothing to correct.

    Args:
        path: the file.
        correction: what to correct; None: nothing.
        findings: of the set, or of the cluster.
        source: where it comes from: the task's name, the evaluation set.
        grouping: what a group is.
        earlier: what the run itself was trained with, and is to be trained with again.
    """
    if correction is None:
        path.unlink(missing_ok=True)
        return
    set_of = (
        "smallest verified set that removes"
        if correction.removes
        else "largest verified set; it does not remove all of"
    )
    if correction.pay is not None:
        what = f"Rewards to look at: the {set_of} the misbehaviour. Nobody said that they are wrong (arbitrary edits)."
    else:
        what = f"Rewards to correct, groups in the order of their predicted effects: the {set_of} the misbehaviour."
    after, before = correction.misbehaviour.as_percent(), findings.decision.uncorrected.as_percent()
    comments = [
        what,
        f"Verdict: {findings.decision.verdict} (rule {findings.decision.rule}).",
        f"Measured: {after} of the competent plays misbehave after training with these edits, {before} without.",
    ]
    groups, values = list(correction.groups), None
    if correction.pay is not None:
        values = dict(zip(correction.groups, correction.pay, strict=True))
    if earlier is not None:
        if values is None and earlier.correct and earlier.grouping == grouping and isinstance(earlier.groups, list):
            groups += earlier.groups
            last = counted(len(earlier.groups), "group")
            comments.append(f"Of the end of the list, {last}: this run was trained with that already.")
        else:
            comments.append(f"To be made after those that this run was trained with, which stand elsewhere: {earlier}.")
    correct: Literal["intended"] | None = "intended" if values is None else None
    edits = Edits(grouping=grouping, groups=groups, correct=correct, values=values, source=dict(source))
    write_edits(path, edits, comments)
