"""Environment families: one copy and many copies are the same; reference solvers reach every declared outcome."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import DummyVecEnv
from world_helpers import world_env

from aitia.datasets.errors import EnvironmentError_
from aitia.datasets.groups import ByComponent
from aitia.training.agents.spec import AgentSpec, build_model
from aitia.training.edits.edit import RewardEdit
from aitia.training.edits.groups import ByCluster, ByTransition
from aitia.training.environments.random_play import play_random
from aitia.training.environments.spec import EnvSpec
from aitia.training.retraining.arrays import GymArrays, Member, WorldArrays, make_array_env
from aitia.training.retraining.stack import initial_policy
from aitia.training.worlds.environment import WorldEnv, bare_world

PLANTED: dict[str, Any] = {"levels": 24, "moved": 12, "bug": 6, "harmless": 6, "stray": 3, "noise": 0.1}
FAMILIES: dict[str, dict[str, Any]] = {
    "aitia/CoinRun-v0": {**PLANTED, "bonus": 0.2},
    "aitia/Cheese-v0": {**PLANTED, "shaping": 0.3},
    "aitia/CheeseContinuous-v0": PLANTED,
    "aitia/BoatRace-v0": {"levels": 24, "bug": 12, "noise": 0.1},
    "aitia/ButtonRoom-v0": {**PLANTED, "gain": 0.5},
    "aitia/PlatformRun-v0": {**PLANTED, "bonus": 0.2, "shaping": 0.3},
    "aitia/KeysAndChests-v0": {**PLANTED, "key_bonus": 0.2},
    "aitia/CleaningRobot-v0": {**PLANTED, "bonus": 0.1},
}
AGENT = AgentSpec(n_envs=4)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_a_gymnasium_environment(name: str) -> None:
    check_env(world_env(name, render_mode="rgb_array", **FAMILIES[name]), skip_render_check=False)


def corrected_by_copies_as_by_environments(env: EnvSpec, edits: Sequence[RewardEdit | None]) -> NDArray[np.int64]:
    """Compare an agent for each edit, step by step: what is observed, paid, ended and corrected; return the last."""
    members = [Member(seed, edit) for seed, edit in enumerate(edits)]
    many, single = make_array_env(AGENT, env, members), GymArrays(AGENT, env, members)
    assert isinstance(many, WorldArrays)
    np.testing.assert_array_equal(many.reset(), single.reset())
    space, generator = env.make().action_space, np.random.default_rng(0)
    corrected, shape = np.zeros(len(members), np.int64), (len(members), AGENT.n_envs)
    for _ in range(300):
        actions: NDArray[Any] = generator.uniform(-1.5, 1.5, (*shape, 2))
        if isinstance(space, gym.spaces.Discrete):
            actions = generator.integers(0, space.n, shape)
        one, other = many.step(actions), single.step(actions)
        for field in ("observations", "rewards", "terminated", "truncated", "final", "corrected", "outcomes"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)
        corrected += one.corrected.sum(axis=1)
    return corrected


@pytest.mark.parametrize("name", FAMILIES)
def test_many_copies_are_the_environment(name: str) -> None:
    """Four agents with different edits: every observation, reward, end and correction is that of the environments."""
    bonus = frozenset(
        {"bonus", "bonus+goal", "shaping", "goal+shaping", "bonus+goal+shaping", "targets", "channel", "keys",
         "chests+keys", "sweeps"}
    )  # fmt: skip
    edits = [None, RewardEdit(None), RewardEdit(frozenset({"0", "3", "5", "7"})), RewardEdit(bonus, ByComponent())]
    corrected = corrected_by_copies_as_by_environments(EnvSpec(name, FAMILIES[name]), edits)
    assert corrected[0] == 0 and corrected[1] > corrected[2]


@pytest.mark.parametrize("name", ["aitia/ArrowMaze-v0", "aitia/CoinRun-v0", "aitia/BoatRace-v0"])
def test_copies_make_any_edit_that_environments_make(name: str) -> None:
    """Numbers in place of rewards, groups of one state and action, state clusters, and edits on top of others."""
    env = EnvSpec(name, FAMILIES.get(name, {"size": 4, **{n: v for n, v in PLANTED.items() if n != "noise"}}))
    by = ByTransition(env)
    met = sorted(play_random(env, grouping=by).groups)[::2]
    first = RewardEdit(frozenset({"0", "3", "5", "7"}))
    made = env.make()
    seen = np.stack([made.reset(seed=seed)[0] for seed in range(50)])
    clusters = ByCluster.fit(env, initial_policy(AGENT, env, 0), seen, 3)
    edits = [
        RewardEdit(frozenset({"1", "2", "3"}), values={"1": -0.5, "2": 2.0, "3": 0.0}),
        RewardEdit(frozenset(met), by),
        RewardEdit(frozenset(met), by, dict.fromkeys(met, 0.3), first),
        RewardEdit(frozenset({"cluster 00", "cluster 02"}), clusters, first=first),
    ]
    corrected = corrected_by_copies_as_by_environments(env, edits)
    assert corrected.all(), "an edit changed nothing: the comparison is empty"


def test_copies_that_differ_are_not_stepped_as_one() -> None:
    """A factory may draw its parameters: every copy keeps its own levels, also while agents train."""
    env = EnvSpec("toy_environments:own_levels", {"levels": 5, "moved": 5})
    assert isinstance(make_array_env(AGENT, env, [Member(0, None)]), GymArrays)
    vec_env = build_model(AGENT, env.make, 0).get_env()
    assert isinstance(vec_env, DummyVecEnv)
    vec_env.reset()
    for _ in range(5):
        seen = vec_env.step(np.ones(AGENT.n_envs, np.int64))[0]
        for copy, observed in zip(vec_env.envs, seen, strict=True):
            played = copy.unwrapped
            assert isinstance(played, WorldEnv)
            np.testing.assert_array_equal(observed, played.world.observe(played.begun)[0])
    plain = EnvSpec("aitia/ArrowMaze-v0").make()
    world = bare_world(plain)
    assert world is not None
    world.step = world.step  # type: ignore[method-assign]  # the same: taken
    assert bare_world(plain) is world
    world.step = lambda action: WorldEnv.step(world, action)  # type: ignore[method-assign]  # another
    assert bare_world(plain) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_reference_solvers_reach_the_outcomes_they_are_for(name: str) -> None:
    """At test (all levels moved): the intended solver ends well, the proxy's misbehaves; labels agree with both."""
    env = world_env(name, **({"levels": 50, "moved": 50} if name != "aitia/BoatRace-v0" else {"levels": 50}))
    for index, goal in enumerate(env.world.goals):
        outcomes, labelled = [], []
        for seed in range(20):
            env.reset(seed=seed)
            while True:
                action = env.solve(goal)
                _, reward, terminated, truncated, info = env.step(action)
                assert reward == pytest.approx(sum(info["reward_components"].values()))
                if "action_labels" in info:
                    labelled.append(info["action_labels"][int(action)])
                if terminated or truncated:
                    outcomes.append(info["outcome"])
                    break
        assert outcomes.count(env.world.outcomes[index]) >= 16, (goal, outcomes)
        if labelled:
            assert np.mean(labelled) < 0 if index == 0 else np.mean(labelled) > -0.5


def test_where_nothing_is_planted_no_reward_is_wrong() -> None:
    for name in FAMILIES:
        env = world_env(name, levels=20, **({"moved": 10} if name != "aitia/BoatRace-v0" else {}))
        for seed in range(10):
            env.reset(seed=seed)
            for _ in range(50):
                _, reward, terminated, truncated, info = env.step(env.solve(env.world.goals[0]))
                assert reward == info["intended_reward"] == info["untampered_reward"]
                if terminated or truncated:
                    break


def test_the_button_changes_the_observed_reward_only() -> None:
    env = world_env("aitia/ButtonRoom-v0", gain=0.5)
    env.reset(seed=0)
    observed = untampered = intended = 0.0
    while True:
        _, reward, terminated, truncated, info = env.step(env.solve("button"))
        observed, untampered = observed + reward, untampered + info["untampered_reward"]
        intended += info["intended_reward"]
        if terminated or truncated:
            break
    assert observed > untampered + 3.0 and untampered == intended and info["outcome"] == "tampered"


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"moved": 30}, "moved=30"), ({"bugs": 1}, "bugs was given"), ({"noise": -1.0}, "noise=-1.0")],
)
def test_impossible_parameters_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EnvironmentError_, match=message):
        world_env("aitia/CoinRun-v0", levels=24, **changes)
