"""Effects of corrections as finite differences of the advantages: shared/INFLUENCE.md's known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from small_policies import gae, make_policy, make_targets, make_window

from aitia.attribution import Trak, TrakLinear, group_effects, influence
from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.adjoints.batches import normalised_change
from aitia.attribution.adjoints.critic import corrected_critic_change
from aitia.attribution.adjoints.gae import GaeAdvantages
from aitia.attribution.effects.window import attribute_window
from aitia.datasets.errors import InputError, NonFiniteError

GENERATOR = np.random.default_rng(7)


def bandit(rewards: NDArray[np.float64], minibatches: NDArray[np.int32] | None = None) -> GaeAdvantages:
    """Advantages of episodes of one step, values 0."""
    ones = np.ones(len(rewards))
    return GaeAdvantages(rewards, ones == 1.0, 1, 0.9, 0.8, True, ones, minibatches)


def effect(signal: GaeAdvantages, scores: NDArray[np.float64], change: NDArray[np.float64]) -> float:
    return float((signal.weights_of(signal.raw_change(change[:, None])).T @ scores)[0])


@pytest.mark.parametrize("kind", ["window", "minibatches", "ragged", "raw"])
def test_small_changes_have_the_effect_of_the_derivative(kind: str) -> None:
    """fd(epsilon dr) / epsilon goes to tau dr, with an error of the order of epsilon."""
    window, policy, targets = make_window(), make_policy(), make_targets()
    epochs = np.array(
        [GENERATOR.permutation(40) // (16 if kind == "minibatches" else 31) for _ in range(3)], np.int32
    ).T
    signal = replace(gae(window), normalize=kind != "raw", minibatches=None if kind == "window" else epochs)
    window = replace(window, signal=signal)
    change = GENERATOR.normal(size=(40, 2))
    expected = change.T @ influence(window, policy, targets).tau
    errors = [
        np.abs(group_effects(window, policy, targets, size * change) / size - expected).max()
        for size in (1e-2, 1e-3, 1e-4)
    ]
    if kind == "raw":
        assert max(errors) < 1e-12 + 0.02 * np.abs(expected).max()
        return
    assert errors[0] > 5.0 * errors[1] > 25.0 * errors[2] > 0.0 and errors[2] < 1e-3 * np.abs(expected).max()


def test_swapping_the_arms_of_a_bandit_reverses_the_advantages() -> None:
    """-2 mean(s A^); the linear form, which projects out what lies along the advantages, gives exactly 0."""
    rewards, scores = GENERATOR.integers(0, 2, 64).astype(float), GENERATOR.normal(size=64)
    signal = bandit(rewards)
    normalised = (rewards - rewards.mean()) / rewards.std(ddof=1)
    swapped = effect(signal, scores, 1.0 - 2.0 * rewards)
    assert swapped == pytest.approx(-2.0 * float(np.mean(scores * normalised)), rel=1e-6)
    linear = float((1.0 - 2.0 * rewards) @ signal.reward_influence(scores[:, None]).tau[:, 0])
    assert linear == pytest.approx(0.0, abs=1e-12) and abs(swapped) > 1e-3


def test_corrections_that_keep_the_order_do_nothing() -> None:
    """Rewards multiplied by 3, or shifted: the normalised advantages are the same ones."""
    rewards, scores = GENERATOR.normal(size=64), GENERATOR.normal(size=64)
    epochs = np.array([GENERATOR.permutation(64) // 16 for _ in range(2)], np.int32).T
    for signal in (bandit(rewards), bandit(rewards, epochs)):
        assert effect(signal, scores, 2.0 * rewards) == pytest.approx(0.0, abs=1e-7)
        assert effect(signal, scores, np.full(64, 5.0)) == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("sigma", [1e-6, 0.0])
def test_effects_are_bounded_where_advantages_are_nearly_equal(sigma: float) -> None:
    rewards, scores = sigma * GENERATOR.normal(size=64), GENERATOR.normal(size=64)
    change = GENERATOR.normal(size=64)
    rms = float(np.sqrt(np.mean(scores**2)))
    assert 0.0 < abs(effect(bandit(rewards), scores, change)) <= 2.0 * rms
    if sigma:
        linear = float(change @ bandit(rewards).reward_influence(scores[:, None]).tau[:, 0])
        assert abs(linear) > 1e3 * rms, "the derivative is of the order of 1 / sigma"


def test_a_minibatch_of_one_row_is_not_normalised_and_unused_rows_count_nothing() -> None:
    """Against the definition, minibatch by minibatch: ragged sizes, a single row, epochs that skip rows."""
    raw, change = GENERATOR.normal(size=12), GENERATOR.normal(size=(12, 3))
    minibatches = np.stack(
        [np.array([0] * 7 + [1] * 4 + [2]), np.array([1, 0, 0, 0, 0, -1, -1, 1, 1, 1, 1, 0])], axis=1
    )
    expected, batches = np.zeros((12, 3)), 0
    for epoch in minibatches.T:
        for number in range(epoch.max() + 1):
            rows = np.flatnonzero(epoch == number)
            batches += 1
            for g in range(3):
                before, after = raw[rows], raw[rows] + change[rows, g]
                if len(rows) > 1:
                    before, after = ((x - x.mean()) / (x.std(ddof=1) + 1e-8) for x in (before, after))
                expected[rows, g] += (after - before) / len(rows)
    found = normalised_change(raw, change, minibatches.astype(np.int32))
    np.testing.assert_allclose(found, expected / batches, rtol=1e-12, atol=1e-15)


def test_potential_based_shaping_changes_no_advantage_once_the_critic_is_corrected() -> None:
    """dr = gamma Phi(s') - Phi(s), tabular features, no ridge (Ng et al. 1999): a corrected critic absorbs it."""
    states, steps, gamma = 5, 60, 0.9
    visited = GENERATOR.integers(0, states, steps + 1)
    ended = np.zeros(steps, bool)
    ended[[14, 29, 44]] = True
    potential, table = GENERATOR.normal(size=states), np.eye(states)
    now, after = table[visited[:-1]], table[visited[1:]] * ~ended[:, None]
    change = gamma * after @ potential - now @ potential
    signal = GaeAdvantages(GENERATOR.normal(size=steps), ended, 1, gamma, 0.8, True, np.ones(steps))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("aitia.attribution.adjoints.critic._RIDGE", 1e-14)
        corrected = corrected_critic_change(signal, now, after, change[:, None])
    assert np.abs(signal.raw_change(change[:, None])).max() > 0.5
    np.testing.assert_allclose(corrected, 0.0, atol=1e-9)


def test_a_set_is_evaluated_as_a_set() -> None:
    """Not as the sum of its members: normalisation makes effects of large corrections anything but additive."""
    window, policy, targets = make_window(), make_policy(), make_targets()
    by_group = window.corrections_by_group().change
    single = group_effects(window, policy, targets, by_group)
    together = group_effects(window, policy, targets, by_group.sum(axis=1, keepdims=True))
    assert np.abs(single.sum(axis=0) - together[0]).max() > 0.05 * np.abs(together).max()
    found = attribute_window(window, as_actor(policy), targets, Trak()).sums
    np.testing.assert_allclose(found.together[0], together[0], rtol=1e-9)
    linear = TrakLinear(damping=1e-3)
    np.testing.assert_allclose(
        group_effects(window, policy, targets, by_group, linear).sum(axis=0),
        group_effects(window, policy, targets, by_group.sum(axis=1, keepdims=True), linear)[0], rtol=1e-8,
    )  # fmt: skip


def test_each_window_counts_the_same_and_later_failures_keep_its_mass() -> None:
    window, actor, targets = make_window(), as_actor(make_policy()), make_targets(6)
    effects = group_effects(window, make_policy(), targets, window.corrections_by_group().change)
    sums = attribute_window(window, actor, targets, Trak()).sums
    mass = np.abs(effects.mean(axis=1)).sum()
    assert sums.mass[0, 0] == pytest.approx(mass) and np.abs(sums.effects["effect"][0].mean(axis=0)).sum() == (
        pytest.approx(1.0)
    )
    np.testing.assert_allclose(sums.effects["effect"][0], effects.T / mass, rtol=1e-9)
    later = attribute_window(window, actor, make_targets(3), Trak(), mass=np.array([2.0])).sums
    own = group_effects(window, make_policy(), make_targets(3), window.corrections_by_group().change)
    np.testing.assert_allclose(later.effects["effect"][0], own.T / 2.0, rtol=1e-9)


def test_a_window_without_errors_adds_nothing() -> None:
    window = make_window()
    sums = attribute_window(
        replace(window, intended=window.reward), as_actor(make_policy()), make_targets(), Trak()
    ).sums
    assert sums.groups == [] and sums.mass[0, 0] == 0.0 and not sums.together.any()


@pytest.mark.parametrize("change", ["shift", "scale"])
def test_corrections_that_normalisation_takes_back_have_no_mass(change: str) -> None:
    """Rounding, and the 1e-8 of the normalisation, must not count as much as a window in which something happened."""
    window = make_window()
    signal = replace(gae(window), ended=np.ones(40, bool), raw=window.reward - window.reward.mean(), minibatches=None)
    intended = window.reward + 0.3 if change == "shift" else 3.0 * window.reward
    all_wrong = replace(window, signal=signal, intended=intended, group=np.full(40, "all"))
    sums = attribute_window(all_wrong, as_actor(make_policy()), make_targets(), Trak()).sums
    assert sums.groups == ["all"] and sums.mass[0, 0] == 0.0 and not sums.effects["effect"].any()


def test_changes_that_do_not_fit_are_refused() -> None:
    window, policy, targets = make_window(), make_policy(), make_targets()
    with pytest.raises(InputError, match=r"shape \(39, 2\), expected \[N, G\], N = 40"):
        group_effects(window, policy, targets, np.zeros((39, 2)))
    change = np.zeros((40, 2))
    change[3, 1] = np.nan
    with pytest.raises(NonFiniteError, match="row 3, column 1: nan"):
        group_effects(window, policy, targets, change)
