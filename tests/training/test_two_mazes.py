"""Two arrow mazes in one: each is played by its own actions, and nothing of the other is seen."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from aitia.datasets.errors import EnvironmentError_
from aitia.training.environments.spec import EnvSpec, probe
from aitia.training.worlds.maze import ArrowMazeEnv
from aitia.training.worlds.two_mazes import NAMES, TwoMazesEnv

ARGUMENTS = ({"size": 5, "levels": 6, "moved": 6, "bug": 6}, {"size": 4, "levels": 8, "harmless": 2})


def make() -> TwoMazesEnv:
    env = gym.make("aitia/TwoMazes-v0", first=ARGUMENTS[0], second=ARGUMENTS[1]).unwrapped
    assert isinstance(env, TwoMazesEnv)
    return env


def test_each_maze_is_played_as_if_it_were_alone() -> None:
    env, generator, seen = make(), np.random.default_rng(0), set()
    for seed in range(40):
        observation, info = env.reset(seed=seed)
        name, _, level = info["context"].partition("-")
        which = NAMES.index(name)
        alone = ArrowMazeEnv(**ARGUMENTS[which])  # type: ignore[arg-type]
        expected, _ = alone.reset(options={"level": int(level)})
        seen.add(name)
        ended = False
        while not ended:
            assert observation.reshape(2, 6)[which].tolist() == expected.tolist()
            assert not observation.reshape(2, 6)[1 - which].any()
            move = int(generator.integers(4))
            observation, reward, terminated, truncated, info = env.step(np.int64(4 * which + move))
            expected, *told, inner = alone.step(np.int64(move))
            assert [reward, terminated, truncated] == told and info.get("outcome") == inner.get("outcome")
            assert info["action_labels"][4 * which : 4 * which + 4] == inner["action_labels"]
            assert not any(info["action_labels"][4 - 4 * which :][:4])
            ended = terminated or truncated
    assert seen == set(NAMES)


def test_actions_of_the_other_maze_stay_in_place_and_take_time() -> None:
    env = make()
    observation, info = env.reset(seed=0)
    which = NAMES.index(info["context"].partition("-")[0])
    for step in range(30):
        after, reward, terminated, truncated, info = env.step(np.int64(4 * (1 - which)))
        assert after.tolist() == observation.tolist() and reward == 0.0 and not terminated
        assert truncated == (step == 29)
    assert info["outcome"] == "timeout"


@pytest.mark.parametrize("goal", ["arrow", "corner"])
def test_solvers_play_the_maze_that_is_played(goal: str) -> None:
    env = make()
    for seed in range(12):
        env.reset(seed=seed)
        ended, info = False, dict[str, Any]()
        while not ended:
            *_, terminated, truncated, info = env.step(np.int64(env.solve(goal)))
            ended = terminated or truncated
        assert info["outcome"] in (goal, "arrow"), "both where the arrow stands in the corner"


def test_it_keeps_the_contract_and_takes_coordinates_only() -> None:
    spec = EnvSpec("aitia/TwoMazes-v0", {"first": ARGUMENTS[0], "second": ARGUMENTS[1]})
    assert {"intended_reward", "untampered_reward", "context", "action_labels"} <= probe(spec).keys
    with pytest.raises(EnvironmentError_, match="coordinates"):
        TwoMazesEnv({"observation": "planes"}, {})
