"""The coin line: the published numbers, the theorems, and the environment against the exact model.

A wrong number in a table row means another model (start sites, walls, horizon, what a wrong episode pays), not
another accuracy: the flow is solved to nine digits.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from aitia.datasets.errors import EnvironmentError_, NonFiniteError
from aitia.training.environments.spec import EnvSpec, probe
from aitia.training.worlds.coin_line import CoinLine, CoinLineEnv, Encoding, action_labels
from aitia.training.worlds.coin_line_exact import (
    cloning_limit,
    compute_returns,
    compute_reward_attribution,
    expected_return,
    first_correction_time,
    flip_share,
    gradient_flow,
    probe_at_return,
    probe_logit,
    return_gradient,
)

ENCODINGS: tuple[Encoding, ...] = ("absolute", "relative", "one-hot", "tabular")
LEFT, RIGHT = np.int64(0), np.int64(1)


def trained_probe(model: CoinLine, time: float = 1e4) -> float:
    return probe_logit(model, gradient_flow(model, time).weights)


@pytest.mark.parametrize(("encoding", "expected"), [("absolute", 1.19), ("relative", -2.87)])
def test_without_moved_coins_the_encoding_decides_proxy_or_goal(encoding: Encoding, expected: float) -> None:
    model = CoinLine(encoding=encoding)
    weights = gradient_flow(model, 1e4).weights
    assert expected_return(model, weights) == pytest.approx(1.0, abs=5e-4)
    assert probe_logit(model, weights) == pytest.approx(expected, abs=0.02)


def test_one_hot_sites_choose_the_proxy_too() -> None:
    assert trained_probe(CoinLine(encoding="one-hot")) > 0.5


@pytest.mark.parametrize(("scale", "expected"), [(0.1, 0.877), (1.0, 1.038), (10.0, 1.193)])
def test_no_reward_scale_corrects_the_probe(scale: float, expected: float) -> None:
    assert trained_probe(CoinLine(reward_scale=scale), 1e3) == pytest.approx(expected, abs=0.002)


def test_a_reward_scale_is_a_scale_of_time() -> None:
    scaled = gradient_flow(CoinLine(epsilon=0.1, reward_scale=10.0), 1e2).weights
    np.testing.assert_allclose(scaled, gradient_flow(CoinLine(epsilon=0.1), 1e3).weights, rtol=1e-6)


@pytest.mark.parametrize(
    ("wrong_share", "expected"), [(1.0, 3.96), (0.6, 2.00), (0.5, 0.53), (0.4, -0.88), (0.3, -4.56), (0.0, -6.07)]
)
def test_the_share_of_wrong_rewards_is_a_dial(wrong_share: float, expected: float) -> None:
    assert trained_probe(CoinLine(epsilon=1.0, wrong_share=wrong_share)) == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize(("time", "expected"), [(1e4, 0.4602), (1e3, 0.4683)])
def test_the_probe_flips_at_the_published_wrong_share(time: float, expected: float) -> None:
    assert flip_share(CoinLine(epsilon=1.0), time, 0.44, 0.5) == pytest.approx(expected, abs=0.002)


@pytest.mark.parametrize("length", [4, 5, 8])
def test_behaviour_cloning_goes_to_the_max_margin_directions_of_the_theorem(length: int) -> None:
    """Without moved coins the proxy (the probe is above 0); with any share of them the goal, if L is at least 4."""
    clean, moved = CoinLine(length=length), CoinLine(length=length, epsilon=1e-6)
    np.testing.assert_allclose(cloning_limit(clean), np.array([1, 0, length]) / math.sqrt(1 + length**2), atol=1e-6)
    np.testing.assert_allclose(cloning_limit(moved), np.array([0, -1, 1]) / math.sqrt(2), atol=1e-6)
    relative = CoinLine(length=length, encoding="relative")
    np.testing.assert_allclose(cloning_limit(relative), np.array([1, 1]) / math.sqrt(2), atol=1e-6)
    assert probe_logit(clean, cloning_limit(clean)) > 0.0 > probe_logit(moved, cloning_limit(moved))
    assert probe_logit(relative, cloning_limit(relative)) < 0.0


def test_the_first_correction_takes_the_theorems_power_of_the_share_as_it_goes_to_zero() -> None:
    """T(epsilon) = Theta(epsilon^-157/138); the local slope comes down to it slowly, so its limit is extrapolated."""
    times = [first_correction_time(CoinLine(epsilon=10.0**-k), limit=1e25) for k in (2, 4, 6, 8, 10)]
    slopes = np.diff(np.log10(times)) / 2
    assert (np.diff(slopes) < 0).all() and slopes[-1] > 157 / 138
    one, two, last = slopes[-3:]
    assert last - (last - two) ** 2 / (last - 2 * two + one) == pytest.approx(157 / 138, abs=0.02), "Aitken's limit"


def test_early_in_training_the_flip_needs_more_than_six_tenths_wrong() -> None:
    assert trained_probe(CoinLine(epsilon=1.0, wrong_share=0.6), 1e2) < 0.0
    assert trained_probe(CoinLine(epsilon=1.0, wrong_share=0.65), 1e2) > 0.0


@cache
def correction_time(epsilon: float) -> float:
    return first_correction_time(CoinLine(epsilon=epsilon))


CORRECTION = {0.3: 3.58, 0.1: 16.2, 0.03: 84.7, 0.02: 148.0, 0.01: 388.0, 0.003: 2068.0, 0.001: 9427.0}


@pytest.mark.parametrize(("epsilon", "expected"), CORRECTION.items())
def test_the_first_correction_time_is_the_published_one(epsilon: float, expected: float) -> None:
    assert correction_time(epsilon) == pytest.approx(expected, rel=0.01)


def test_the_local_slope_of_the_correction_time_is_the_published_one() -> None:
    times = {epsilon: correction_time(epsilon) for epsilon in (0.03, 0.02, 0.01, 0.003, 0.001)}
    pairs = zip(list(times)[:-1], list(times)[1:], strict=True)
    slopes = [math.log(times[low] / times[high]) / math.log(high / low) for high, low in pairs]
    assert all(1.37 <= slope <= 1.39 for slope in slopes), slopes


def test_without_moved_coins_the_probe_is_never_corrected() -> None:
    assert first_correction_time(CoinLine(), 1e4) == math.inf
    assert first_correction_time(CoinLine(encoding="tabular", epsilon=1.0), 1e3) == math.inf
    assert first_correction_time(CoinLine(encoding="relative"), 1e3) == 0.0


@pytest.mark.parametrize(
    ("epsilon", "at_99", "at_999"),
    [(0.02, 0.53, -1.67), (0.05, -0.17, -2.19), (0.001, 0.49, 0.70), (0.01, 0.51, -1.19)],
)
def test_the_stopping_rule_decides_the_probe(epsilon: float, at_99: float, at_999: float) -> None:
    model = CoinLine(epsilon=epsilon)
    assert probe_at_return(model, 0.99) == pytest.approx(at_99, abs=0.02)
    assert probe_at_return(model, 0.999) == pytest.approx(at_999, abs=0.02)


def test_a_return_that_is_never_reached_has_no_probe() -> None:
    assert math.isnan(probe_at_return(CoinLine(), 0.999, limit=1.0))


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
def test_a_tabular_probe_never_moves_and_owes_nothing_to_any_reward(epsilon: float) -> None:
    model = CoinLine(epsilon=epsilon, wrong_share=0.5, encoding="tabular")
    weights = gradient_flow(model, 1e2).weights
    assert np.abs(weights).max() > 0.5, "nothing was trained"
    assert probe_logit(model, weights) == 0.0
    attribution = compute_reward_attribution(model, 1e2)
    assert attribution.shape == (len(model.kinds()),)
    assert (attribution == 0.0).all()


@pytest.mark.parametrize("encoding", ["absolute", "relative"])
def test_attributions_sum_to_the_effect_of_more_time(encoding: Encoding) -> None:
    model = CoinLine(epsilon=1.0, wrong_share=0.4, reward_scale=2.0, encoding=encoding)
    time = 10.0
    attribution = compute_reward_attribution(model, time)
    assert (np.abs(attribution) > 1e-4).any()
    slope = return_gradient(model, gradient_flow(model, time).weights) @ model.encode(*model.probe)
    assert 2.0 * attribution.sum() == pytest.approx(time * slope, rel=1e-3), "a scale of rewards is a scale of time"


def test_an_attribution_is_the_change_under_changed_rewards() -> None:
    model = CoinLine(epsilon=1.0, wrong_share=0.5)
    contexts = [kind.context for kind in model.kinds()]
    rewards = np.ones(len(contexts))
    rewards[contexts.index("c=1")] += 0.01
    change = probe_logit(model, gradient_flow(model, 10.0, rewards).weights) - trained_probe(model, 10.0)
    attribution = compute_reward_attribution(model, 10.0)[contexts.index("c=1")]
    assert change == pytest.approx(0.01 * attribution, rel=0.02)
    assert attribution < 0.0, "paying the coin at the left must correct the probe"


def test_any_positive_reweighting_of_the_starts_keeps_the_proxy() -> None:
    generator = np.random.default_rng(0)
    for _ in range(8):
        weights = tuple(float(weight) for weight in generator.exponential(size=5) ** 3 + 1e-3)
        model = CoinLine(start_weights=weights)
        assert trained_probe(model, 1e3) > 0.0, weights
        assert trained_probe(model, 1.0) > 0.0, weights


@pytest.mark.parametrize("length", [2, 3, 5])
def test_the_proxy_wins_at_other_lengths_too(length: int) -> None:
    assert trained_probe(CoinLine(length=length), 1e3) > 0.0


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(("epsilon", "wrong_share"), [(0.0, 0.0), (0.3, 0.2), (1.0, 1.0)])
def test_the_gradient_equals_finite_differences_of_the_return(
    encoding: Encoding, epsilon: float, wrong_share: float
) -> None:
    starts = (0.1, 0.5, 2.0, 1.0, 0.7)
    model = CoinLine(4, epsilon, wrong_share, 3.0, encoding, starts)
    weights = np.random.default_rng(1).normal(size=model.features) * 0.5
    differences = [
        (expected_return(model, weights + step) - expected_return(model, weights - step)) / 2e-6
        for step in 1e-6 * np.eye(model.features)
    ]
    np.testing.assert_allclose(return_gradient(model, weights), differences, atol=1e-8)


def test_a_short_line_has_the_return_worked_out_by_hand() -> None:
    model = CoinLine(length=2)  # coin at 2, four steps, w = 0
    # (V(0), V(1)) within 1, 2, 3, 4 steps: (0, 1/2), (1/4, 1/2), (3/8, 5/8), (1/2, 11/16); V(2) = 1.
    assert expected_return(model, np.zeros(3)) == pytest.approx((1 / 2 + 11 / 16 + 1) / 3, abs=1e-15)


def play(env: CoinLineEnv, weights: NDArray[np.float64], episodes: int) -> NDArray[np.float64]:
    """Return the paid return of every episode under the linear policy, float64 [episodes]."""
    generator = np.random.default_rng(5)
    returns = np.zeros(episodes)
    observation, _ = env.reset(seed=3)
    for episode in range(episodes):
        ended = False
        while not ended:
            right = generator.random() < 1.0 / (1.0 + math.exp(-float(observation @ weights)))
            observation, reward, terminated, truncated, _ = env.step(RIGHT if right else LEFT)
            returns[episode] += reward
            ended = terminated or truncated
        observation, _ = env.reset()
    return returns


@pytest.mark.parametrize(
    ("encoding", "epsilon", "wrong_share"),
    [
        ("absolute", 0.0, 0.0),
        ("absolute", 1.0, 0.6),
        ("relative", 0.5, 0.3),
        ("one-hot", 0.7, 0.0),
        ("tabular", 1.0, 1.0),
    ],
)
def test_the_environment_pays_the_exact_return_on_average(
    encoding: Encoding, epsilon: float, wrong_share: float
) -> None:
    model = CoinLine(4, epsilon, wrong_share, 2.0, encoding)
    env = CoinLineEnv(4, epsilon, wrong_share, 2.0, encoding)
    weights = np.random.default_rng(2).normal(size=model.features) * 0.4
    returns = play(env, weights, 3000)
    error = returns.std() / math.sqrt(len(returns))
    assert 0.0 < error < 0.03
    assert abs(returns.mean() - expected_return(model, weights)) < 4.0 * error


def test_the_environment_meets_every_kind_at_its_share() -> None:
    model = CoinLine(4, 0.6, 0.3)
    env = CoinLineEnv(4, 0.6, 0.3)
    env.reset(seed=0)
    met = [(env.reset()[1]["context"], env.position) for _ in range(4000)]
    assert {context for context, _ in met} == {kind.context for kind in model.kinds()}
    for kind in model.kinds():
        share = np.mean([context == kind.context for context, _ in met])
        assert abs(share - kind.share) < 4.0 * math.sqrt(kind.share * (1.0 - kind.share) / len(met)), kind
    for site in range(5):
        assert abs(np.mean([position == site for _, position in met]) - 0.2) < 4.0 * math.sqrt(0.16 / len(met))


@pytest.mark.parametrize("observation", ENCODINGS)
def test_it_is_a_gymnasium_environment(observation: Encoding) -> None:
    check_env(CoinLineEnv(epsilon=1.0, wrong_share=0.5, observation=observation), skip_render_check=True)


def test_it_keeps_the_contract_of_infos() -> None:
    profile = probe(EnvSpec("aitia.training.worlds.coin_line:CoinLineEnv", {"epsilon": 1.0, "wrong_share": 0.5}))
    assert profile.keys == {
        "intended_reward", "untampered_reward", "reward_extensions", "context", "action_labels"
    }  # fmt: skip
    assert profile.repeats and not profile.renders


def walk(env: CoinLineEnv, position: int, coin: int, actions: list[np.int64]) -> list[tuple[float, dict[str, Any]]]:
    """Play the actions from a start and return (reward, info) of each step; the last must end the episode."""
    env.reset(seed=0, options={"position": position, "coin": coin})
    told = []
    for number, action in enumerate(actions):
        _, reward, terminated, truncated, info = env.step(action)
        told.append((reward, info))
        assert (terminated or truncated) == (number == len(actions) - 1)
        assert ("outcome" in info) == (number == len(actions) - 1)
        assert terminated == (reward > 0.0)
    return told


@pytest.mark.parametrize(
    ("position", "coin", "actions", "paid", "intended", "outcome"),
    [
        (1, 3, [RIGHT, RIGHT], [0.0, 1.0], [0.0, 1.0], "coin"),
        (3, 3, [LEFT], [1.0], [1.0], "coin"),
        (2, 0, [RIGHT] * 8, [0.0] * 8, [0.0] * 8, "end"),
        (1, 4, [LEFT] * 8, [0.0] * 8, [0.0] * 8, "timeout"),
        (3, 4, [LEFT, RIGHT] * 4, [0.0] * 8, [0.0] * 8, "timeout"),
    ],
)
def test_right_episodes_pay_the_coin(
    position: int, coin: int, actions: list[np.int64], paid: list[float], intended: list[float], outcome: str
) -> None:
    told = walk(CoinLineEnv(), position, coin, actions)
    assert [reward for reward, _ in told] == paid
    assert [info["intended_reward"] for _, info in told] == intended
    assert all(info["untampered_reward"] == reward and info["context"] == f"c={coin}" for reward, info in told)
    assert told[-1][1]["outcome"] == outcome


@pytest.mark.parametrize(
    ("position", "coin", "actions", "paid", "intended", "outcome"),
    [
        (1, 2, [RIGHT] * 3, [0.0, 0.0, 1.0], [1.0, 0.0, 0.0], "coin"),
        (3, 2, [RIGHT], [1.0], [0.0], "end"),
        (4, 2, [LEFT], [1.0], [0.0], "end"),
        (2, 2, [LEFT, RIGHT, RIGHT, RIGHT], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0], "coin"),
        (3, 4, [RIGHT], [1.0], [1.0], "coin"),
    ],
)
def test_wrong_episodes_pay_and_end_at_the_right_end(
    position: int, coin: int, actions: list[np.int64], paid: list[float], intended: list[float], outcome: str
) -> None:
    told = walk(CoinLineEnv(wrong_share=1.0), position, coin, actions)
    assert [reward for reward, _ in told] == paid
    assert [info["intended_reward"] for _, info in told] == intended
    assert all(info["context"] == f"c={coin}/end-paid" for _, info in told)
    assert told[-1][1]["outcome"] == outcome


def test_actions_are_labelled_by_the_coin_and_the_right_end() -> None:
    assert action_labels(3, 1) == [-1, 1]
    assert action_labels(1, 3) == [0, -1]
    assert action_labels(2, 2) == [0, 0]
    env = CoinLineEnv(coin=0)
    env.reset(seed=0, options={"position": 2})
    assert env.step(RIGHT)[4]["action_labels"] == [-1, 1], "labels are of the state in which the action was taken"


def test_a_seed_and_the_actions_determine_an_episode_and_parameters_keep_seeds_paired() -> None:
    first, second = CoinLineEnv(epsilon=0.5, wrong_share=0.5), CoinLineEnv(epsilon=0.5, wrong_share=0.0)
    for seed in range(20):
        observation, info = first.reset(seed=seed)
        again, same = first.reset(seed=seed)
        np.testing.assert_array_equal(observation, again)
        assert info == same
        np.testing.assert_array_equal(second.reset(seed=seed)[0], observation)


def test_a_fixed_coin_stays_and_is_observed() -> None:
    env = CoinLineEnv(coin=0, observation="relative")
    for seed in range(10):
        observation, info = env.reset(seed=seed)
        assert info == {"context": "c=0"}
        assert observation.tolist() == [1.0, -float(env.position)]


@pytest.mark.parametrize(
    "arguments",
    [
        {"length": 1},
        {"epsilon": 1.5},
        {"wrong_share": -0.1},
        {"reward_scale": 0.0},
        {"observation": "pixels"},
        {"coin": 5},
        {"render_mode": "rgb_array"},
    ],
)
def test_a_parameter_out_of_range_is_named(arguments: dict[str, Any]) -> None:
    name = "encoding" if "observation" in arguments else next(iter(arguments))
    with pytest.raises(EnvironmentError_, match=f"{name}=.* was given, expected"):
        CoinLineEnv(**arguments)


def test_misuse_of_the_model_is_named() -> None:
    model = CoinLine()
    with pytest.raises(EnvironmentError_, match="start_weights"):
        CoinLine(start_weights=(1.0, 0.0, 1.0, 1.0, 1.0))
    with pytest.raises(EnvironmentError_, match=r"shape \(2,\) were given, expected \(3,\)"):
        compute_returns(model, np.zeros(2))
    with pytest.raises(NonFiniteError, match="weights"):
        probe_logit(model, np.array([0.0, np.nan, 0.0]))
    with pytest.raises(EnvironmentError_, match=r"rewards of shape \(2,\)"):
        gradient_flow(model, 1.0, np.ones(2))
    with pytest.raises(NonFiniteError, match="rewards"):
        gradient_flow(model, 1.0, np.array([np.inf]))
    with pytest.raises(EnvironmentError_, match="flow time"):
        gradient_flow(model, 0.0)
    with pytest.raises(EnvironmentError_, match="opposite signs"):
        flip_share(model, 1.0)
    env = CoinLineEnv()
    with pytest.raises(EnvironmentError_, match="reset"):
        env.step(RIGHT)
    with pytest.raises(EnvironmentError_, match="position"):
        env.reset(options={"position": 5})
