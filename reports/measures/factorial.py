"""The factorial: rewards (as paid, corrected) times inductive biases. Which of the two moves the misbehaviour?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ...datasets.bank import Bank
from ...datasets.outcomes import Outcomes
from ...datasets.schema import Order
from ..statistics import Interval, mean_half_width

Source = Literal["rewards", "bias", "interaction", "seed"]
SOURCES: tuple[Source, ...] = get_args(Source)
AS_GIVEN = "as it is"


@dataclass(frozen=True)
class Factorial:
    """Shares of the variance of the misbehaviour rate between agents.

    Attributes:
        biases: the levels of the inductive bias; the first is the task as it is.
        seeds: paired seeds with competent episodes in every cell.
        rates: mean misbehaviour rate, float64 [biases, 2]: rewards as paid, corrected.
        shares: share of each source; None where nothing varies.
        primary: the source with the largest share, if its interval lies above every other share's value; `rewards` or
            `bias`, else `undetermined`: also where the interaction or the seed is the largest.
    """

    biases: tuple[str, ...]
    seeds: int
    rates: NDArray[np.float64]
    shares: dict[Source, Interval] | None
    primary: str

    def __post_init__(self) -> None:
        if self.rates.shape != (len(self.biases), 2):
            raise ValueError(f"rates are of shape {self.rates.shape}, expected {(len(self.biases), 2)}: [biases, 2]")

    def as_dict(self) -> dict[str, Any]:
        """Return it as `summary.json` writes it."""
        return {
            "biases": list(self.biases),
            "seeds": self.seeds,
            "rates": [{"as_given": row[0], "corrected": row[1]} for row in self.rates.tolist()],
            "shares": None if self.shares is None else {name: x.as_dict() for name, x in self.shares.items()},
            "primary": self.primary,
        }


def factorial(bank: Bank | None, biases: Sequence[str], declared: Outcomes, any_wrong: bool) -> Factorial | None:
    """Return the factorial of a bank; None where not every cell was trained.

    Args:
        bank: the counterfactual bank.
        biases: the task's variants, without the task as it is.
        declared: the task's outcomes.
        any_wrong: whether some training reward is wrong; if none is, correcting changes nothing.
    """
    if bank is None or not biases:
        return None
    cells = []
    for variant in ("", *biases):
        as_paid = bank.rates(bank.members(Order.NONE, variant=variant), declared)
        corrected = bank.rates(bank.members(Order.ALL, variant=variant), declared) if any_wrong else as_paid
        cells.append([{r.seed: r.misbehaviour for r in rates} for rates in (as_paid, corrected)])
    everywhere = set.intersection(*({s for s, m in cell.items() if m is not None} for row in cells for cell in row))
    if len(everywhere) < 2:
        return None
    seeds = sorted(everywhere)
    rates = np.array([[[cell[seed] for seed in seeds] for cell in row] for row in cells], dtype=np.float64)
    return analyse(rates, [AS_GIVEN, *biases])


def analyse(rates: NDArray[np.float64], biases: Sequence[str]) -> Factorial:
    """Split the variance of misbehaviour rates.

    Fixed effects of a two-way layout with paired seeds (a seed has its own row in every cell); squared effects are
    corrected for the noise of their means (Searle, Casella and McCulloch 1992, chapter 4). Intervals: jackknife over
    seeds with t quantiles, clipped to [0, 1].

    Args:
        rates: float64 [biases, 2, seeds].
        biases: their names.
    """
    count = rates.shape[2]
    whole = _shares(rates)
    cells = rates.mean(axis=2)
    if whole is None:
        return Factorial(tuple(biases), count, cells, None, "undetermined")
    shares = {name: Interval(float(value), 0.0, 1.0) for name, value in zip(SOURCES, whole, strict=True)}
    parts = [_shares(np.delete(rates, seed, axis=2)) for seed in range(count)] if count > 2 else []
    half = mean_half_width(count)
    if half is not None and parts and all(part is not None for part in parts):
        left_out = np.stack([part for part in parts if part is not None])
        error = half * np.sqrt((count - 1) / count * ((left_out - left_out.mean(axis=0)) ** 2).sum(axis=0))
        for name, value, width in zip(SOURCES, whole.tolist(), error.tolist(), strict=True):
            shares[name] = Interval(value, max(0.0, value - width), min(1.0, value + width))
    return Factorial(tuple(biases), count, cells, shares, _primary(shares))


def _primary(shares: dict[Source, Interval]) -> str:
    largest = max(SOURCES, key=lambda name: shares[name].value or 0.0)
    low = shares[largest].low or 0.0
    clear = all(low > (shares[name].value or 0.0) for name in SOURCES if name != largest)
    return largest if clear and largest in ("rewards", "bias") else "undetermined"


def _shares(rates: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """Return the shares of rewards, bias, interaction and seed [4] of rates [B, 2, S]; None where nothing varies."""
    grand = rates.mean(axis=(0, 1), keepdims=True)
    reward = rates.mean(axis=0, keepdims=True) - grand  # [1, 2, S]
    bias = rates.mean(axis=1, keepdims=True) - grand  # [B, 1, S]
    both = rates - grand - reward - bias
    parts = [_squared_mean(effect) for effect in (reward, bias, both)]
    parts.append(float(rates.var(axis=2, ddof=1).mean()) if rates.shape[2] > 1 else 0.0)
    total = sum(parts)
    return np.array(parts) / total if total > 1e-12 else None


def _squared_mean(effect: NDArray[np.float64]) -> float:
    """Return the mean square of effects [..., S] over the cells, without what the noise between seeds adds."""
    seeds = effect.shape[2]
    noise = effect.var(axis=2, ddof=1) / seeds if seeds > 1 else np.zeros(effect.shape[:2])
    return max(float((effect.mean(axis=2) ** 2 - noise).mean()), 0.0)
