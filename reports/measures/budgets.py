"""Budgets, never mixed: how much of each kind of change was needed to remove the misbehaviour, as verified."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

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
    orders = (Order.ATTRIBUTION, Order.ADAPTIVE, Order.ALL)
    nested = sorted((p for p in curve if p.order in orders), key=lambda p: p.corrected.groups)
    covered = bank.rates(bank.members(Order.NONE, variant=COVERAGE), declared) if bank is not None else ()
    tried: dict[Kind, list[_Tried]] = {
        "corrective": [_Tried(p.rates, int(p.corrected.groups), p.corrected.transitions) for p in nested],
        "arbitrary": [_Tried(t.edited, t.groups, t.transitions, t.placebo) for t in evidence.arbitrary],
        "coverage": [_Tried(covered)] if covered else [],
    }
    cheapest = []
    for kind, changes in tried.items():
        removing = [change for change in changes if removal(evidence, change.rates, thresholds).removes]
        for rates, groups, transitions, placebo in (removing or changes[-1:])[:1]:
            before, _ = evidence.paired_with(rates)
            budget = Budget(
                kind, bool(removing), groups, transitions, _misbehaviour(rates), _mean(rates, "competent"),
                _mean(rates, "desired"), _mean(before, "desired"), _misbehaviour(placebo) if placebo else None,
            )  # fmt: skip
            cheapest.append(budget)
    return tuple(cheapest)


class _Tried(NamedTuple):
    """One verified change: rates of the agents trained with it, what it edits a run, and rates of its placebo."""

    rates: Sequence[SeedRates]
    groups: int | None = None
    transitions: float | None = None
    placebo: Sequence[SeedRates] = ()


def _misbehaviour(rates: Sequence[SeedRates]) -> Interval:
    return rate_interval([r.misbehaviour for r in rates if r.misbehaviour is not None])


def _mean(rates: Sequence[SeedRates], name: str) -> Interval:
    return rate_interval(np.array([getattr(r, name) for r in rates], dtype=float).tolist())
