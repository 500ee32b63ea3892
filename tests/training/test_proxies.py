"""Registered goals: told apart by test levels, identical ones refused, and which explains an episode."""

from __future__ import annotations

import numpy as np
import pytest
from world_helpers import world_env

from aitia.datasets.errors import EnvironmentError_
from aitia.training.worlds.proxies import agreement, separation

TEST = {"levels": 100, "moved": 100, "level_seed": 1}


@pytest.mark.parametrize("name", ["aitia/CoinRun-v0", "aitia/Cheese-v0", "aitia/CheeseContinuous-v0"])
def test_test_levels_tell_goals_apart_and_training_levels_do_not(name: str) -> None:
    found = separation(world_env(name, **TEST).world)
    assert found.goals == ("goal", "proxy") and (np.diag(found.differing) == 0.0).all()
    assert found.differing[0, 1] > 0.8 and found.differing[0, 1] == found.differing[1, 0]
    with pytest.raises(EnvironmentError_, match="end alike in all"):
        separation(world_env(name, levels=50).world)


def test_races_and_buttons_are_told_apart() -> None:
    for name in ("aitia/BoatRace-v0", "aitia/ButtonRoom-v0"):
        assert separation(world_env(name, levels=50).world).differing[0, 1] > 0.9


def test_a_scripted_episode_is_explained_by_its_goal_and_a_random_one_by_none() -> None:
    env = world_env("aitia/Cheese-v0", **TEST)
    explained: dict[str, list[str | None]] = {"goal": [], "proxy": [], "random": []}
    generator = np.random.default_rng(0)
    for kind, found in explained.items():
        for level in range(12):
            env.reset(options={"level": level})
            actions = []
            while True:
                actions.append(int(generator.integers(4)) if kind == "random" else int(env.solve(kind)))
                _, _, terminated, truncated, _ = env.step(actions[-1])
                if terminated or truncated:
                    break
            found.append(agreement(env.world, level, actions).explained_by)
    assert explained["goal"].count("goal") >= 10 and explained["proxy"].count("proxy") >= 10
    assert explained["random"].count(None) >= 10, explained["random"]
