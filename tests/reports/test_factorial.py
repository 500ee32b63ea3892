"""The factorial: planted two-way designs, pure interaction among them, and whether its intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from aitia.reports.measures.factorial import SOURCES, analyse

SEEDS = 8


def design(cells: list[list[float]], spread: float, seed: int = 0, seeds: int = SEEDS) -> NDArray[np.float64]:
    """Rates of [biases, rewards] cells with independent noise between seeds."""
    noise = np.random.default_rng(seed).normal(0.0, spread, (len(cells), 2, seeds))
    return np.array(cells)[:, :, None] + noise


@pytest.mark.parametrize(
    ("cells", "primary", "largest"),
    [
        ([[0.9, 0.05], [0.88, 0.02]], "rewards", "rewards"),
        ([[0.9, 0.88], [0.05, 0.06]], "bias", "bias"),
        ([[0.9, 0.1], [0.1, 0.9]], "undetermined", "interaction"),  # pure interaction
        ([[0.5, 0.5], [0.5, 0.5]], "undetermined", "seed"),
    ],
)
def test_planted_designs(cells: list[list[float]], primary: str, largest: str) -> None:
    found = analyse(design(cells, 0.03), ["as it is", "other"])
    assert found.shares is not None and found.primary == primary
    values = {name: interval.value for name, interval in found.shares.items()}
    assert max(values, key=lambda name: values[name] or 0.0) == largest
    assert sum(value or 0.0 for value in values.values()) == pytest.approx(1.0)
    share = found.shares[largest]
    assert share.low is not None and share.high is not None and 0 <= share.low <= (share.value or 0) <= share.high <= 1


def test_rewards_that_change_nothing_leave_everything_to_the_bias() -> None:
    """No reward is wrong, encodings decide (row N9): absolute and one-hot misbehave, relative does not."""
    rates = np.repeat(np.array([1.0, 0.0, 1.0])[:, None, None], 2, axis=1) * np.ones(SEEDS)
    found = analyse(rates, ["absolute", "relative", "one-hot"])
    assert found.shares is not None and found.primary == "bias"
    assert found.shares["bias"].value == 1.0 and found.shares["rewards"].value == 0.0


def test_nothing_varies_or_one_seed_only() -> None:
    found = analyse(np.full((2, 2, SEEDS), 0.7), ["a", "b"])
    assert found.shares is None and found.primary == "undetermined"
    few = analyse(design([[0.9, 0.1], [0.8, 0.1]], 0.02, seeds=2), ["a", "b"])
    assert few.shares is not None and few.primary == "undetermined", "two seeds give no interval"


def test_intervals_cover_the_true_share() -> None:
    """True parts: rewards .04, bias .01, interaction 0, seed .01. Over 400 designs of 8 seeds."""
    cells = [[0.8, 0.4], [0.6, 0.2]]
    truth = np.array([0.04, 0.01, 0.0, 0.01]) / 0.06
    hits = np.zeros(4)
    for number in range(400):
        shares = analyse(design(cells, 0.1, seed=number), ["a", "b"]).shares
        assert shares is not None
        for index, name in enumerate(SOURCES):
            low, high = shares[name].low, shares[name].high
            assert low is not None and high is not None
            hits[index] += low - 1e-9 <= truth[index] <= high + 1e-9
    assert (hits / 400 >= 0.9).all(), hits / 400
