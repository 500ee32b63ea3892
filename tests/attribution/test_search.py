"""The adaptive search for a small sufficient correction, against oracles whose cause is planted."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit, logit

from aitia.attribution.effects.order import nested_sizes, random_order
from aitia.attribution.effects.search import MeasuredSet, next_set, smallest_sufficient

LEVEL = 0.1
PAID, CORRECTED = logit(0.9), logit(0.002)
GROUPS, CAUSAL, SEEDS = 48, 16, 5


class World:
    """Groups of which some cause the misbehaviour, all equally; the rate is a known function of how many are corrected.

    Args:
        seed: of the noise, of which groups are causal and of the order.
        steep: whether the rate falls suddenly, at about six tenths of the cause, or in proportion in log-odds.
        skill: how far causal groups stand in front in the order, in standard deviations.
        noise: standard deviation between seeds, in log-odds.
    """

    def __init__(self, seed: int, steep: bool, skill: float, noise: float = 0.3) -> None:
        generator = np.random.default_rng(seed)
        self.names = [f"g{i:02d}" for i in range(GROUPS)]
        self.causal = frozenset(generator.choice(self.names, CAUSAL, replace=False).tolist())
        score = [generator.normal() + skill * (name in self.causal) for name in self.names]
        self.order = [self.names[i] for i in np.argsort(score)[::-1]]
        self._steep, self._noise, self.seed, self.trained = steep, noise, seed, 0

    def measure(self, groups: frozenset[str]) -> MeasuredSet:
        """Train agents with a set corrected: the same set is measured the same."""
        self.trained += 1
        share = len(groups & self.causal) / CAUSAL
        ends = expit(20 * (np.array([share, 0.0, 1.0]) - 0.6))
        drop = (ends[0] - ends[1]) / (ends[2] - ends[1]) if self._steep else share
        generator = np.random.default_rng([self.seed, *(name in groups for name in self.names)])
        odds: NDArray[np.float64] = (
            PAID + (CORRECTED - PAID) * drop + generator.normal(0.0, self._noise, SEEDS) * bool(groups)
        )
        suffices = bool(np.sum(expit(odds) <= LEVEL) >= 0.8 * SEEDS)
        return MeasuredSet(groups, tuple((odds - PAID).tolist()), suffices)


class Found(NamedTuple):
    """The smallest sufficient set, and the sets trained to reach it after those that both searches share."""

    groups: frozenset[str]
    trained: int


def bisect(world: World, order: list[str], measured: list[MeasuredSet]) -> Found:
    """Bisect the first groups of an order, from what was measured of it."""
    by_size = {len(each.groups): each for each in measured if each.groups == frozenset(order[: len(each.groups)])}
    first = world.trained
    while True:
        high = min(size for size, each in by_size.items() if each.suffices)
        low = max((size for size in by_size if size < high), default=0)
        if high - low <= 1:
            return Found(by_size[high].groups, world.trained - first)
        middle = (low + high) // 2
        by_size[middle] = world.measure(frozenset(order[:middle]))
        measured.append(by_size[middle])


def shared(world: World) -> list[MeasuredSet]:
    """Everything corrected, nested points of attribution and chance, and bisections of chance and of another order."""
    chance = random_order(world.names)
    measured = [world.measure(frozenset(world.names))]
    for size in nested_sizes(GROUPS, 4):
        measured += [world.measure(frozenset(order[:size])) for order in (world.order, chance)]
    bisect(world, chance, measured)
    bisect(world, world.names, measured)
    return measured


def search(world: World, measured: list[MeasuredSet], most: int) -> Found:
    """Search adaptively, with at most so many sets."""
    first, above = world.trained, 0
    while world.trained - first < most:
        groups = next_set(world.order, measured, float(logit(LEVEL) - PAID), above)
        if groups is None:
            break
        smallest = smallest_sufficient(measured)
        assert smallest is not None and len(groups) < len(smallest)
        assert not any(each.groups.issuperset(groups) for each in measured if not each.suffices), (
            "a part of a set that does not suffice was trained"
        )
        measured.append(world.measure(frozenset(groups)))
        above = above if measured[-1].suffices else len(groups)
    best = smallest_sufficient(measured)
    assert best is not None
    return Found(best, world.trained - first)


@pytest.mark.parametrize(
    ("steep", "skill", "gain"), [(False, 0.8, 3.5), (True, 0.8, 0.8), (False, 2.0, -0.5), (True, 2.0, -0.5)]
)
def test_the_search_takes_no_more_trainings_than_bisection_and_returns_smaller_sets(
    steep: bool, skill: float, gain: float
) -> None:
    """Orders with an AUC of about .71 and .92; `gain` is the least mean difference of sizes, in groups.

    Measured over 10 worlds: 4.7, 1.6, -.1 and .1 groups smaller: where the order is good there is nothing to gain.
    """
    difference, causal = [], []
    for seed in range(10):
        world = World(seed, steep, skill)
        measured = shared(world)
        old = bisect(world, world.order, list(measured))
        nested = [each for each in measured if each.groups == frozenset(world.order[: len(each.groups)])]
        high = min(len(each.groups) for each in nested if each.suffices)
        low = max((len(each.groups) for each in nested if len(each.groups) < high), default=0)
        new = search(world, measured, (high - low).bit_length() - 1)
        assert new.trained <= old.trained
        difference.append(len(old.groups) - len(new.groups))
        causal.append(
            len(new.groups & world.causal) / len(new.groups) - len(old.groups & world.causal) / len(old.groups)
        )
    assert np.mean(difference) >= gain, difference
    assert np.mean(causal) >= -0.01, "what was measured brought harmless groups into the set"


def test_the_minimal_set_is_reached_once_what_was_measured_tells_the_groups_apart() -> None:
    """Every group alone, without noise: as many causal groups as are needed, whatever the order was."""
    needed = int(np.ceil(CAUSAL * (PAID - logit(LEVEL)) / (PAID - CORRECTED)))
    for seed in range(10):
        world = World(seed, steep=False, skill=0.8, noise=0.0)
        alone = [world.measure(frozenset({name})) for name in world.names]
        found = search(world, [*alone, *shared(world)], 10)
        assert len(found.groups) == needed and found.groups <= world.causal, (seed, found.groups)


def test_a_set_that_changes_nothing_puts_its_groups_behind_those_of_one_that_cures() -> None:
    order = [f"g{i:02d}" for i in range(12)]
    whole, last = (MeasuredSet(frozenset(groups), (-6.0,) * SEEDS, True) for groups in (order, order[6:]))
    first = MeasuredSet(frozenset(order[:6]), (-0.01,) * SEEDS, False)
    groups = next_set(order, [whole, first, last], -4.0)
    assert groups is not None and set(groups) <= set(order[6:]), "the order is believed against what was measured"


def test_the_search_depends_on_what_was_measured_alone_and_ends() -> None:
    world = World(0, steep=True, skill=1.0)
    measured = shared(world)
    needed = float(logit(LEVEL) - PAID)
    assert next_set(world.order, measured, needed) == next_set(world.order, list(measured), needed)
    assert next_set(world.order, measured, needed, taken=range(GROUPS)) is None, "every size is taken"
    assert next_set(world.order, measured[:0], needed) is None, "nothing was measured"
    failed = MeasuredSet(frozenset(world.names), (-0.1,) * SEEDS, False)
    assert next_set(world.order, [failed], needed) is None, "not even correcting everything suffices"
    harmful = MeasuredSet(frozenset(world.names), (0.1,) * SEEDS, True)
    assert next_set(world.order, [harmful], needed) is None, "correcting everything does not lower the log-odds"
