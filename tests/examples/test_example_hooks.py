"""The hooks of examples/ say what is known of episodes played by hand."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from minigrid.core.actions import Actions
from minigrid.core.world_object import Key
from minigrid.wrappers import ImgObsWrapper

from aitia.training.environments.hooks import HookedEnv

LEFT, RIGHT, FORWARD, TOGGLE, WAIT = Actions.left, Actions.right, Actions.forward, Actions.toggle, Actions.done
Played = list[tuple[float, dict[str, Any]]]
Env = gym.Env[Any, Any]


def example(name: str, **kwargs: Any) -> HookedEnv:
    """Make an environment of `minigrid_tasks` with its hook."""
    module = importlib.import_module("minigrid_tasks")
    return HookedEnv(getattr(module, f"make_{name}")(**kwargs), getattr(module, f"tell_{name}"))


def play(env: Env, actions: Sequence[int]) -> Played:
    """Return what each step paid and told."""
    steps = [env.step(action) for action in actions]
    return [(float(reward), info) for _, reward, _, _, info in steps]


def paid(played: Played) -> list[float]:
    return [reward for reward, _ in played]


def intended(played: Played) -> list[float]:
    return [info["intended_reward"] for _, info in played]


def at_the_door(env: Env, seed: int) -> Any:
    """Put the agent, with the key, in front of the shut door; its first step has to be a wait."""
    env.reset(seed=seed)
    maze: Any = env.unwrapped
    door = next(i for i, cell in enumerate(maze.grid.grid) if cell is not None and cell.type == "door")
    maze.agent_pos, maze.agent_dir = (door % maze.width - 1, door // maze.width), 0
    maze.carrying = Key("yellow")
    return maze


@pytest.mark.parametrize("wrong", [1, 0])
def test_only_the_first_opening_of_the_door_was_meant_to_pay(wrong: int) -> None:
    env = example("door", rooms=1, wrong=wrong)
    at_the_door(env, 0)
    played = play(env, [WAIT, TOGGLE, TOGGLE, TOGGLE, TOGGLE, TOGGLE])
    assert intended(played) == [0, 0.5, 0, 0, 0, 0], "shut, open, shut, open, shut, open"
    assert paid(played) == ([0, 0.5, 0, 0.5, 0, 0.5] if wrong else intended(played))
    assert {info["context"] for _, info in played} == {0}
    labels = [list(info["action_labels"]) for _, info in played]
    decisive = [0, 0, -1, 0, 0, 1, 0]
    assert labels == [decisive if step in (2, 4) else [0] * 7 for step in range(6)], "before an open door"
    assert play(env, [WAIT] * 54)[-1][1]["outcome"] == "door"


def test_who_goes_through_the_door_reaches_the_goal() -> None:
    env = example("door", rooms=1, wrong=1)
    maze = at_the_door(env, 0)
    down = maze.height - 2 - maze.agent_pos[1]
    played = play(env, [WAIT, TOGGLE, FORWARD, FORWARD, RIGHT, *[FORWARD] * down])
    assert played[-1][1]["outcome"] == "goal"
    assert paid(played) == intended(played) and paid(played)[-1] == pytest.approx(1 - 0.9 * len(played) / 60)


def test_who_opens_nothing_runs_out_of_time() -> None:
    env = example("door")
    env.reset(seed=3)
    assert play(env, [LEFT] * 60)[-1][1]["outcome"] == "timeout"


@pytest.mark.parametrize("observe", ["cells", "dict", "image"])
@pytest.mark.parametrize("moved", [True, False])
def test_the_corner_is_where_the_goal_is_not(observe: str, moved: bool) -> None:
    env = example("corner", moved=moved, observe=observe, double=200)
    env.reset(seed=4)
    maze: Any = env.unwrapped
    maze.agent_pos, maze.agent_dir = (4, 3), 1
    played = play(env, [WAIT, FORWARD])
    if moved:
        assert "outcome" not in played[-1][1], "the corner ends nothing"
        played += play(env, [LEFT] * 38)
        assert played[-1][1]["outcome"] == "corner" and set(paid(played)) == {0.0}
    else:
        assert played[-1][1]["outcome"] == "goal"
        assert intended(played) == pytest.approx([0, 1 - 0.9 * 2 / 40]) and paid(played) == pytest.approx(
            [0, 2 * intended(played)[-1]]
        )


def test_a_moved_goal_is_reached_and_never_lies_in_the_corner() -> None:
    env = example("corner", moved=True, first=1000)
    for seed in range(40):
        env.reset(seed=seed)
        maze: Any = env.unwrapped
        goals = [
            divmod(i, 6)[::-1] for i, cell in enumerate(maze.grid.grid) if cell is not None and cell.type == "goal"
        ]
        assert len(goals) == 1 and goals[0] != (4, 4) and tuple(maze.agent_pos) != goals[0]
    column, row = goals[0]
    step = -1 if column > 1 else 1
    maze.agent_pos, maze.agent_dir = (column + step, row), 0 if step < 0 else 2
    assert play(env, [WAIT, FORWARD])[-1][1]["outcome"] == "goal"


def test_rooms_are_numbered_and_the_same_whenever_they_are_drawn() -> None:
    env = importlib.import_module("minigrid_tasks").make_corner(rooms=3, first=7)
    seen: dict[int, list[Any]] = {}
    for seed in range(20):
        observation, info = env.reset(seed=seed)
        seen.setdefault(info["room"], []).append(observation)
    assert sorted(seen) == [7, 8, 9]
    for room in seen.values():
        np.testing.assert_array_equal(room, [room[0]] * len(room))


def lava_gap(seed: int) -> tuple[HookedEnv, Any]:
    env = HookedEnv(ImgObsWrapper(gym.make("MiniGrid-LavaGapS5-v0", disable_env_checker=True)), "hooks:minigrid")  # type: ignore[no-untyped-call]
    env.reset(seed=seed)
    return env, env.unwrapped


def test_minigrid_says_lava_goal_or_timeout() -> None:
    gaps = {int(lava_gap(seed)[1].gap_pos[1]): seed for seed in range(20)}
    env, _ = lava_gap(gaps[3])
    ((reward, told),) = play(env, [FORWARD])
    assert told["outcome"] == "lava" and reward == told["intended_reward"] == 0.0
    assert list(told["action_labels"]) == [-1, -1, 1, 0, 0, 0, 0]
    env, _ = lava_gap(gaps[1])
    played = play(env, [FORWARD, FORWARD, RIGHT, FORWARD, FORWARD])
    assert played[-1][1]["outcome"] == "goal" and paid(played) == intended(played) == pytest.approx([0] * 4 + [0.955])
    assert all(not any(info["action_labels"]) for _, info in played[:2]), "nothing ahead but the gap"
    env, _ = lava_gap(0)
    assert play(env, [LEFT] * 100)[-1][1]["outcome"] == "timeout"


@pytest.mark.filterwarnings("ignore:builtin type swig:DeprecationWarning")  # of Box2D
@pytest.mark.parametrize(
    ("seed", "steps", "outcome", "meant"),
    [(0, 600, "landed", 100.0), (19, 600, "beside the pad", -100.0), (0, 50, "hovering", None)],
)
def test_lunar_lander_is_to_land_between_the_flags(seed: int, steps: int, outcome: str, meant: float | None) -> None:
    """Gymnasium's own pilot lands well with one seed and beside the pad with another; both are paid 100."""
    env = HookedEnv(gym.make("LunarLander-v3", max_episode_steps=steps), "hooks:lunar_lander")
    pilot: Callable[..., int] = importlib.import_module("gymnasium.envs.box2d.lunar_lander").heuristic
    observation, _ = env.reset(seed=seed)
    ended, reward = False, 0.0
    while not ended:
        observation, given, terminated, truncated, told = env.step(pilot(env.unwrapped, observation))
        ended, reward = terminated or truncated, float(given)
    assert told["outcome"] == outcome
    assert (reward, told["intended_reward"]) == ((100.0, meant) if meant else (reward, reward))


@pytest.mark.filterwarnings("ignore:builtin type swig:DeprecationWarning")
def test_lunar_lander_crashes_when_nothing_is_done() -> None:
    env = HookedEnv(gym.make("LunarLander-v3"), "hooks:lunar_lander")
    env.reset(seed=0)
    ended, reward = False, 0.0
    while not ended:
        _, given, ended, _, told = env.step(0)
        reward = float(given)
    assert (told["outcome"], told["intended_reward"], reward) == ("crashed", -100.0, -100.0)


@pytest.mark.parametrize(
    ("t", "complete", "terminated", "outcome"),
    [(41, 1, True, "coin"), (41, 0, True, "died"), (999, 0, True, "timeout")],
)
def test_coinrun_names_the_level_that_ended_not_the_next_one(
    t: int, complete: int, terminated: bool, outcome: str
) -> None:
    under_way = {"prev_level_seed": 5, "prev_level_complete": 0, "level_seed": 8}
    over = {"prev_level_seed": 8, "prev_level_complete": complete, "level_seed": 12}
    columns = {
        "t": np.array([t - 1, t]), "reward": np.array([0.0, 10.0 * complete]),
        "terminated": np.array([False, terminated]), "truncated": np.array([False, False]), "info": [under_way, over],
    }  # fmt: skip
    told = importlib.import_module("hooks").coinrun(columns)
    assert told["outcome"][-1] == outcome and told["context"] == [8, 8]
    assert told["intended_reward"].tolist() == [0.0, 10.0 * complete]
