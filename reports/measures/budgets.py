"""Budgets, never mixed: how much of each kind of change was needed to remove the misbehaviour, as verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ...datasets.bank import Bank
from ...datasets.outcomes import Outcomes, SeedRates
from ...datasets.schema import Order
from ..statistics import Interval, rate_interval
from ..verdict.rules import Evidence, Thresholds, removal
from .curve import CurvePoint

Kind = Literal["corrective", "arbitrary", "coverage"]
COVERAGE = "coverage"


@dataclass(frozen=True)
class Budget:
    """The cheapest verified change of one kind that removes the misbehaviour; else the largest that was tried.

    Attributes:
        kind: corrective (rewards as intended), arbitrary (rewards within the range seen) or coverage (more levels).
        removes: whether it removes it, with competence kept (the tests of rules 8 and 7).
        groups, transitions: edited a run; None for coverage.
        misbehaviour, competence, desired: of the agents trained with the change, over seeds.
        desired_before: desired share of the uncorrected agents.
        placebo: misbehaviour with random edits of as many transitions; None where there is none.
    """

    kind: Kind
    removes: bool
    groups: int | None
    transitions: float | None
    misbehaviour: Interval
    competence: Interval
    desired: Interval
    desired_before: Interval
    placebo: Interval | None

    def as_dict(self) -> dict[str, Any]:
        """Return it as `summary.json` writes it."""
        return {
            "budget": self.kind,
            "removes": self.removes,
            "groups": self.groups,
            "transitions": self.transitions,
            "misbehaviour_rate": self.misbehaviour.as_dict(),
            "competence": self.competence.as_dict(),
            "desired_rate": self.desired.as_dict(),
            "desired_rate_uncorrected": self.desired_before.as_dict(),
            "placebo": None if self.placebo is None else self.placebo.as_dict(),
        }


def budgets(
    evidence: Evidence, curve: Sequence[CurvePoint], bank: Bank | None, declared: Outcomes, thresholds: Thresholds
) -> tuple[Budget, ...]:
    """Return the budget of each kind that was tried.

    Args:
        evidence: of the set, with the trials of arbitrary edits.
        curve: all verified correction sets.
        bank: the counterfactual bank, for the members trained with more varied levels.
        declared, thresholds: from the task.
    """
    nested = sorted((p for p in curve if p.order in (Order.ATTRIBUTION, Order.ALL)), key=lambda p: p.corrected.groups)
    corrective = [(p.rates, int(p.corrected.groups), p.corrected.transitions, None) for p in nested]
    arbitrary = [(t.edited, t.groups, t.transitions, t.placebo or None) for t in evidence.arbitrary]
    covered = bank.rates(bank.members(Order.NONE, variant=COVERAGE), declared) if bank is not None else ()
    found = []
    tried: tuple[tuple[Kind, list[tuple[Sequence[SeedRates], int | None, float | None, Any]]], ...] = (
        ("corrective", list(corrective)),
        ("arbitrary", list(arbitrary)),
        ("coverage", [(covered, None, None, None)] if covered else []),
    )
    for kind, changes in tried:
        if not changes:
            continue
        removing = [change for change in changes if removal(evidence, change[0], thresholds).removes]
        rates, groups, events, placebo = (removing or changes[-1:])[0]
        before, _ = evidence.paired_with(rates)
        found.append(
            Budget(
                kind, bool(removing), groups, events, _misbehaviour(rates), _mean(rates, "competent"),
                _mean(rates, "desired"), _mean(before, "desired"), _misbehaviour(placebo) if placebo else None,
            )
        )  # fmt: skip
    return tuple(found)


def _misbehaviour(rates: Sequence[SeedRates]) -> Interval:
    return rate_interval([r.misbehaviour for r in rates if r.misbehaviour is not None])


def _mean(rates: Sequence[SeedRates], name: str) -> Interval:
    return rate_interval(np.array([getattr(r, name) for r in rates], dtype=float).tolist())
