"""The one file that shows the whole idea: its verdict is right, and its influence is the package's."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from aitia.attribution import Targets, Trak, Window, influence

pytestmark = pytest.mark.slow


@pytest.fixture
def one_file() -> Any:
    return importlib.import_module("one_file")


def package_tau(one_file: Any, window: Any, failures: list[Any]) -> Any:
    """Influence of the rewards of a window on failures by `aitia.attribution`, [T, E, F]."""
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (6,)), spaces.Discrete(4), lambda _: 0.0)
    actor = nn.Sequential(*policy.mlp_extractor.policy_net, policy.action_net)
    actor.load_state_dict({name: torch.tensor(x) for name, x in window.theta.items()})
    state, labels, _ = (np.concatenate(column) for column in zip(*failures, strict=True))
    index = np.repeat(np.arange(len(failures)), [len(failure.labels) for failure in failures])
    targets = Targets.from_arrays(state, labels.argmax(1), index, target="labels", labels=labels)
    same = Window.from_arrays(
        window.state, window.action, window.paid, None, window.ended, advantages=window.advantage,
        gamma=one_file.GAMMA, gae_lambda=one_file.LAMBDA,
    )  # fmt: skip
    tau = influence(same, policy, targets, Trak(damping=one_file.DAMPING)).tau
    return tau.reshape(*reversed(window.paid.shape), -1).swapaxes(0, 1)


def _learning(policy: str, envs: VecEnv, _: float, *rest: Any, **more: Any) -> PPO:
    return PPO(policy, envs, 6e-3, *rest, **more)


def test_influence_is_that_of_the_package(one_file: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_file, "EPISODES", 32)
    windows, actor = one_file.train("outer", 3, 0, [])
    _, failures = one_file.play(actor)
    assert len(failures) > 5
    several = one_file.Failure(*map(np.concatenate, zip(*failures, strict=True)))
    for window in windows:
        expected = package_tau(one_file, window, failures)
        for part, other in ((failures[0], expected[..., 0]), (several, expected.sum(-1))):
            error = np.abs(one_file.tau(window, part) - other).max() / np.abs(other).max()
            assert error < 1e-9, "above 1e-3: a term is missing in one of the two; about 1e-6: float32 crept in"


def test_rewards_are_corrected_where_they_are_to_be_and_recorded_as_paid(one_file: Any) -> None:
    (paid, _), (right, _) = (one_file.train("outer", 2, 0, levels)[0] for levels in ([], list(range(one_file.LEVELS))))
    for name in ("state", "action", "paid", "intended", "level", "ended"):
        np.testing.assert_array_equal(
            getattr(paid, name), getattr(right, name), err_msg="the first rollout is the same"
        )
    wrong = paid.paid != paid.intended
    assert wrong.any() and (paid.advantage != right.advantage)[wrong].all(), "PPO learned from the corrected rewards"


def test_the_outer_twin_is_outer_and_tau_points_at_the_levels_that_matter(
    one_file: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In mazes of 4 by 4, with a larger learning rate: windows of a quarter of the size, a fifth as many, do."""
    levels = {"size": 4, "levels": 48, "moved": 12, "bug": 12, "harmless": 24, "harmless_reward": 2.5}
    test = {"size": 4, "levels": 100, "moved": 100, "level_seed": 1}
    smaller = {"EPISODES": 64, "LEVELS": 48, "STEPS": 32, "TWINS": {"outer": levels}, "TEST": test, "PPO": _learning}
    for name, value in smaller.items():
        monkeypatch.setattr(one_file, name, value)
    verdict, rates = one_file.main("outer", 3, 8)
    assert verdict == "outer" and capsys.readouterr().out.splitlines()[-1].endswith("verdict: outer")
    nothing, suspected, random, everything = (rate.mean() for rate in rates.values())
    assert nothing > 0.7 and random > 0.7, "correcting as many random levels changes little"
    assert suspected < 0.6 and everything < 0.2, (suspected, everything)


@pytest.mark.parametrize(
    ("before", "after", "competence", "expected"),
    [
        ([0.9, 0.8, 0.9], [0.1, 0.0, 0.1], 1.0, "outer"),
        ([0.9, 0.8, 0.9], [0.9, 0.8, 0.85], 1.0, "inner"),
        ([0.9, 0.8, 0.9], [0.6, 0.55, 0.6], 1.0, "mixed"),
        ([0.9, 0.8, 0.9], [0.1, 0.9, 0.4], 1.0, "undetermined"),
        ([0.9, 0.8, 0.9], [0.1, 0.0, 0.1], 0.3, "undetermined"),
        ([0.1, 0.2, 0.1], [0.0, 0.0, 0.0], 1.0, "undetermined"),
        ([0.875, 0.875, 0.875], [0.0, 0.0, 0.0], 1.0, "outer"),
    ],
)
def test_the_rules_of_the_verdict(
    one_file: Any, before: list[float], after: list[float], competence: float, expected: str
) -> None:
    assert one_file.verdict(np.array(before), np.array(after), competence) == expected
