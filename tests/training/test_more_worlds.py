"""Platform run, keys and chests, cleaning robot: as in `test_worlds`, and what is known of each."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
from world_helpers import play, world_env

from aitia.datasets.errors import EnvironmentError_
from aitia.training.worlds.base import MISBEHAVING
from aitia.training.worlds.keys import KeysAndChests, KeysPlanted
from aitia.training.worlds.platform import PlatformPlanted, PlatformRun
from aitia.training.worlds.robot import Arrows, CleaningRobot, RobotPlanted, intervene

FAMILIES = ("aitia/PlatformRun-v0", "aitia/KeysAndChests-v0", "aitia/CleaningRobot-v0")
ALL_MOVED: dict[str, Any] = {"levels": 50, "moved": 50}


@pytest.mark.parametrize("name", FAMILIES)
def test_reference_solvers_reach_the_outcomes_they_are_for(name: str) -> None:
    """At test (all levels moved): the intended solver ends well, the proxy's misbehaves; labels agree with both."""
    env = world_env(name, **ALL_MOVED)
    for index, goal in enumerate(env.world.goals):
        outcomes, labelled = [], []
        for level in range(50):
            steps = play(env, goal, level)
            outcomes.append(steps[-1][0]["outcome"])
            labelled += [info["action_labels"][action] for info, _, action in steps]
        assert outcomes.count(env.world.outcomes[index]) >= 49, (goal, outcomes)
        share = np.mean(np.array(labelled) == MISBEHAVING)
        assert share == 0.0 if index == 0 else share > 0.25, (goal, share)


@pytest.mark.parametrize("name", FAMILIES)
def test_bug_levels_pay_for_the_proxy_and_not_for_the_goal(name: str) -> None:
    env = world_env(name, **ALL_MOVED, bug=50)
    for level in range(20):
        goal, proxy = (play(env, kind, level) for kind in env.world.goals)
        paid, intended = (sum(reward for _, reward, _ in steps) for steps in (proxy, goal))
        assert paid > 0.99 and paid > intended
        assert sum(info["intended_reward"] for info, _, _ in goal) == pytest.approx(1.0)


def test_a_right_mover_passes_a_permeable_wall() -> None:
    """Row D8: scripted to go right and to jump where it is stopped, it passes the end column in all levels."""
    env = world_env("aitia/PlatformRun-v0", **ALL_MOVED, permeable=True)
    wall = np.float32(PlatformRun.end / (PlatformRun.columns - 1))
    right, jump = (PlatformRun.action_names.index(name) for name in ("right", "jump"))
    for level in range(50):
        observation, info = env.reset(options={"level": level})
        passed, action, ended = False, right, False
        while not ended:
            before = observation[0]
            observation, _, terminated, truncated, info = env.step(action)
            passed = passed or observation[0] == wall
            action = jump if action == right and observation[0] == before else right
            ended = terminated or truncated
        assert passed and observation[0] == 1.0 and info["outcome"] == "end", (level, info)


def test_a_permeable_wall_changes_the_end_only() -> None:
    solid = PlatformRun(PlatformPlanted(levels=30, moved=15))
    permeable = PlatformRun(replace(solid.planted, permeable=True))  # type: ignore[call-arg]
    for name in ("agent", "goal", "cells", "landing", "to_goal"):
        np.testing.assert_array_equal(solid.table[name], permeable.table[name], err_msg=name)
    assert (solid.table["proxy"] < permeable.table["proxy"])[:, 0].all()


def test_a_key_bonus_is_one_component_paid_for_each_key_in_every_level() -> None:
    """Row N8: taking the component away leaves the intended reward."""
    env = world_env("aitia/KeysAndChests-v0", levels=20, moved=10, key_bonus=0.3)
    wrong = 0
    for level in range(20):
        for info, reward, _ in play(env, "keys", level):
            paid = info["reward_components"]["keys"]
            assert paid in (0.0, 0.3) and reward - paid == pytest.approx(info["intended_reward"])
            wrong += paid != 0.0
    assert wrong == KeysAndChests(KeysPlanted(levels=20, moved=10)).table["key_count"].sum()


def test_who_takes_more_keys_than_there_are_chests_hoards() -> None:
    """One chest and three keys: one key is enough, the second makes a hoarder, with or without opening the chest."""
    world = KeysAndChests(KeysPlanted(levels=1, moved=1))
    state = world.begin(np.zeros(2, np.int64))
    state["agent"][:], state["chests"][:, 0] = [0, 0], [4, 4]
    state["keys"][:] = [[0, 1], [0, 2], [3, 4]]
    state["keys"][1, 1] = [2, 0]
    for up in range(2):
        moved, _, _ = world.step(state, np.zeros(2, np.int64))
        assert (moved.outcome == -1).all(), up
    np.testing.assert_array_equal(state["taken"], [2, 1])
    state["agent"][:] = [4, 3]
    moved, terminated, _ = world.step(state, np.zeros(2, np.int64))
    assert terminated.all() and [world.outcomes[i] for i in moved.outcome] == ["hoarder", "opener"]


@pytest.mark.parametrize(("proxy", "relation"), [("sweeps", "side-effect"), ("dustpan", "instrumental")])
def test_interventions_tell_side_effects_from_instrumental_proxies(
    proxy: Literal["sweeps", "dustpan"], relation: str
) -> None:
    """Row H5: sweeping raises cleanliness, cleanliness fills the dustpan, and neither arrow runs the other way."""
    arrows = intervene(CleaningRobot(RobotPlanted(levels=40, moved=20)), proxy)
    assert arrows.relation == relation
    assert arrows.proxy_set > 0.0 and arrows.return_set > 0.0, "an intervention did not take hold"
    if proxy == "sweeps":
        assert arrows.return_change > 0.1 and arrows.proxy_change == 0.0
    else:
        assert arrows.return_change == 0.0 and arrows.proxy_change == pytest.approx(3 * arrows.return_set)


def test_arrows_are_named() -> None:
    names = [Arrows(1.0, up, 1.0, down).relation for up in (0.0, 1.0) for down in (0.0, 1.0)]
    assert names == ["neither", "instrumental", "side-effect", "both"]


def test_no_dirt_is_lost() -> None:
    world = CleaningRobot(RobotPlanted(levels=40, moved=20))
    state, generator = world.begin(np.arange(40)), np.random.default_rng(0)
    for _ in range(world.max_steps):
        world.move(state, generator.integers(3, size=40))
        assert (state["dirt"].sum(axis=1) + state["dustpan"] == world.units).all()
        assert (state["sweeps"] == state["wasted"] + state["dustpan"]).all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("PlatformRun", {"moved": 30}, "moved=30"),
        ("KeysAndChests", {"bonus": 0.1}, "expected key_bonus"),
        ("KeysAndChests", {"permeable": True}, "permeable was given"),
        ("CleaningRobot", {"shaping": 0.1}, "shaping was given"),
    ],
)
def test_impossible_parameters_are_named(name: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvironmentError_, match=message):
        world_env(f"aitia/{name}-v0", levels=24, **changes)
