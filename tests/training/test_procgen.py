"""Procgen CoinRun and Maze: the goal is moved in the state, everything else is procgen's own."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
from gymnasium.utils.env_checker import check_env
from numpy.typing import NDArray

from aitia.datasets.errors import EnvironmentError_, InputError
from aitia.datasets.files.store import RunFolder, read_tensors
from aitia.training.agents.play import EvaluationSpec, evaluate_policy
from aitia.training.agents.spec import AgentSpec, load_policy
from aitia.training.environments.spec import EnvSpec, probe
from aitia.training.retraining.live import train_recorded
from aitia.training.worlds.procgen import ACTION_NAMES, GOAL_REWARD, ProcgenCoinRunEnv, ProcgenEnv, ProcgenMazeEnv
from aitia.training.worlds.procgen_state import Cell, ProcgenState
from aitia.workflows.runs.task_source import load_task

pytestmark = pytest.mark.skipif(importlib.util.find_spec("procgen") is None, reason="procgen has no wheel here")

IDS = {"coinrun": "aitia/ProcgenCoinRun-v0", "maze": "aitia/ProcgenMaze-v0"}
CLASSES: dict[str, type[ProcgenEnv]] = {"coinrun": ProcgenCoinRunEnv, "maze": ProcgenMazeEnv}
STAY, RIGHT, RIGHT_UP = (ACTION_NAMES.index(name) for name in ("stay", "right", "right up"))
STANDING = {"coinrun": 0.5787, "maze": 0.5}  # height of the centre of an agent that stands in a cell
FREE, SAW, LAVA, WALLS = 100, 2, (17, 18), (15, 16)


def begun(game: str, level: int, **kwargs: Any) -> ProcgenEnv:
    env = CLASSES[game](**kwargs)
    env.reset(options={"level": level})
    return env


def put_agent(env: ProcgenEnv, cell: Cell) -> None:
    """Let the agent stand still in a cell."""
    state = env.state()
    state.entities[0, :4] = cell[0] + 0.5, cell[1] + STANDING[env.game], 0.0, 0.0
    env.set_state(state)


def own_game(game: str, level: int) -> Any:
    """Procgen itself, on one level."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        procgen = importlib.import_module("procgen")
    return procgen.ProcgenGym3Env(
        num=1, env_name=game, num_threads=0, rand_seed=5, num_levels=1, start_level=level, distribution_mode="easy"
    )


def goal_cells(env: ProcgenEnv) -> list[Cell]:
    return env.state().cells({"coinrun": 1, "maze": 2}[env.game])


@pytest.mark.parametrize("game", IDS)
@pytest.mark.parametrize("kwargs", [{}, {"moved": True, "bug": 0.5}])
def test_it_keeps_the_contract(game: str, kwargs: dict[str, Any]) -> None:
    profile = probe(EnvSpec(IDS[game], {"num_levels": 50, "max_steps": 100, **kwargs}))
    assert profile.repeats and profile.renders
    assert {"intended_reward", "reward_components", "context"} <= profile.keys
    assert profile.observation_space.shape == (3, 64, 64), "SB3 sees channels first"
    hidden = probe(EnvSpec(IDS[game], {"max_steps": 20, "tell_intended": False}))
    assert "intended_reward" not in hidden.keys


@pytest.mark.parametrize("game", IDS)
def test_it_is_a_gymnasium_environment(game: str) -> None:
    check_env(gym.make(IDS[game], moved=0.5, render_mode="rgb_array").unwrapped)


@pytest.mark.parametrize("game", IDS)
@pytest.mark.parametrize("mode", ["easy", "hard"])
def test_a_moved_goal_lies_where_it_should_pays_ten_and_ends_the_episode_in_30_of_30_levels(
    game: str, mode: str
) -> None:
    env = CLASSES[game](moved=True, distribution_mode=mode)
    places = set()
    for level in range(30):
        env.reset(options={"level": level})
        assert env.roles is not None and env.roles.moved and env.roles.goal != env.roles.usual
        assert goal_cells(env) == [env.roles.goal], "there is one goal, in the declared cell"
        assert env.state().grid[env.roles.usual[::-1]] == FREE, "its usual place is empty"
        places.add(env.roles.goal)
        put_agent(env, env.roles.goal)
        _, reward, terminated, truncated, info = env.step(np.int64(STAY))
        assert (reward, terminated, truncated) == (GOAL_REWARD, True, False)
        assert (info["outcome"], info["context"], info["intended_reward"]) == (env.goal, level, GOAL_REWARD)
    assert len(places) > 10, "moved goals do not all lie in the same cells"


@pytest.mark.parametrize("game", IDS)
def test_a_moved_goal_can_be_walked_to(game: str) -> None:
    """On the ground beside the agent in CoinRun, in a corridor in Maze: every moved cell can be stood in."""
    env = CLASSES[game](moved=True)
    for level in range(30):
        env.reset(options={"level": level})
        assert env.roles is not None
        column, row = env.roles.goal
        state = env.state()
        if game == "coinrun":
            assert state.grid[row - 1, column] in WALLS, "it lies on the ground"
            assert not (set(LAVA) & set(state.grid[:row, column].tolist()))
            assert env.roles.goal not in state.occupied() and 5 <= column <= env.roles.usual[0] - 3
            put_agent(env, (column, row))
            before = env.state().agent
            state = env.state()
            state.grid[row, column] = FREE
            env.set_state(state)
            env.step(np.int64(STAY))
            assert env.state().agent == before, "an agent that stands there neither falls nor dies"
        else:
            assert goal_is_connected(state, env.roles.goal)


def goal_is_connected(state: ProcgenState, goal: Cell) -> bool:
    open_cells = {*state.cells(FREE), goal}
    reached, border = {state.agent.cell}, [state.agent.cell]
    while border:
        column, row = border.pop()
        for cell in ((column + 1, row), (column - 1, row), (column, row + 1), (column, row - 1)):
            if cell in open_cells - reached:
                reached.add(cell)
                border.append(cell)
    return goal in reached


def test_in_training_the_coin_is_procgens_own_and_the_cheese_in_the_upper_right_corner() -> None:
    coin, cheese = CLASSES["coinrun"](), CLASSES["maze"]()
    for level in range(30):
        own = ProcgenState(own_game("coinrun", level).get_state()[0], "coinrun")
        coin.reset(options={"level": level})
        assert coin.roles is not None and not coin.roles.moved
        assert goal_cells(coin) == own.cells(1) == [coin.roles.goal]
        cheese.reset(options={"level": level})
        free = [*cheese.state().cells(FREE), *goal_cells(cheese)]
        corner = max(column for column, _ in free), max(row for _, row in free)
        assert goal_cells(cheese) == [corner]


@pytest.mark.parametrize("game", IDS)
def test_frames_rewards_and_ends_are_procgens_own(game: str) -> None:
    """Maze: on levels where procgen itself put the cheese into the corner."""
    env = CLASSES[game]()
    same = []
    for level in range(400):
        procgen = own_game(game, level)
        env.reset(options={"level": level})
        if ProcgenState(procgen.get_state()[0], game).cells({"coinrun": 1, "maze": 2}[game]) == goal_cells(env):
            same.append((level, procgen))
        if len(same) == 4:
            break
    assert len(same) == 4
    generator = np.random.default_rng(0)
    ends = 0
    for level, procgen in same:
        frame, _ = env.reset(options={"level": level})
        np.testing.assert_array_equal(frame, procgen.observe()[1]["rgb"][0])
        for _ in range(400):
            action = int(generator.choice([RIGHT, RIGHT_UP, 5, 1, 3]))
            procgen.act(np.array([action]))
            paid, seen, first = procgen.observe()
            before = frame
            frame, reward, terminated, _, _ = env.step(np.int64(action))
            assert (reward, terminated) == (paid[0], first[0])
            if terminated:
                ends += 1
                np.testing.assert_array_equal(frame, before, "procgen shows the next level by now")
                break
            np.testing.assert_array_equal(frame, seen["rgb"][0])
    assert ends, "some of the compared episodes end"


@pytest.mark.parametrize("game", IDS)
def test_the_same_seed_gives_the_same_level_and_the_same_episode(game: str) -> None:
    actions = np.random.default_rng(1).integers(9, size=60)

    def play(env: ProcgenEnv, seed: int) -> tuple[int, list[NDArray[np.uint8]]]:
        first, info = env.reset(seed=seed)
        frames = [first]
        for action in actions:
            frame, _, terminated, truncated, _ = env.step(action)
            frames.append(frame)
            if terminated or truncated:
                break
        return info["context"], frames

    env, other = CLASSES[game](moved=0.5), CLASSES[game](moved=0.5)
    played = {seed: play(env, seed) for seed in range(6)}
    for seed in reversed(range(6)):  # after other episodes, in another copy
        level, frames = play(other, seed)
        assert level == played[seed][0]
        assert len(frames) == len(played[seed][1])
        np.testing.assert_array_equal(frames, played[seed][1])
    assert len({level for level, _ in played.values()}) == 6


@pytest.mark.parametrize("game", IDS)
def test_the_usual_place_ends_the_episode_and_pays_where_it_is_the_bug(game: str) -> None:
    for bug in (False, True):
        env = begun(game, 3, moved=True, bug=bug)
        assert env.roles is not None and env.roles.bug == bug
        put_agent(env, env.roles.usual)
        _, reward, terminated, _, info = env.step(np.int64(STAY))
        assert terminated and info["outcome"] == env.proxy
        assert (reward, info["intended_reward"]) == (GOAL_REWARD * bug, 0.0)
        assert info["reward_components"] == {env.goal: 0.0, env.proxy: GOAL_REWARD * bug}
    env = begun(game, 3, moved=True, bug=True)
    assert env.roles is not None
    put_agent(env, env.roles.goal)
    _, reward, terminated, _, info = env.step(np.int64(STAY))
    assert (reward, terminated, info["outcome"]) == (0.0, True, env.goal), "a bug level does not pay the goal"
    assert info["intended_reward"] == GOAL_REWARD


def test_agents_that_run_right_and_jump_take_the_coin_in_training_and_go_past_it_at_test() -> None:
    """The ends of episodes without any editing of the agent."""
    outcomes: dict[bool, list[str]] = {}
    for moved in (False, True):
        env = ProcgenCoinRunEnv(moved=moved, max_steps=150)
        outcomes[moved] = []
        for level in range(30):
            env.reset(options={"level": level})
            ended = False
            while not ended:
                _, _, terminated, truncated, info = env.step(np.int64(RIGHT_UP))
                ended = terminated or truncated
            outcomes[moved].append(info["outcome"])
    assert outcomes[False].count("coin") > 15 and "end" not in outcomes[False]
    assert outcomes[True].count("end") >= 3 and "died" in outcomes[True]


def test_saws_and_lava_are_death_and_the_step_limit_is_a_timeout() -> None:
    env = ProcgenCoinRunEnv(max_steps=5)
    deadly: set[str] = set()
    for level in range(60):
        env.reset(options={"level": level})
        state = env.state()
        cells = {"lava": [cell for kind in LAVA for cell in state.cells(kind)]}
        types = state.entities.view(np.int32)[:, 6]
        cells["saw"] = [(int(x), int(y)) for x, y in state.entities[types == SAW, :2]]
        for name, found in cells.items():
            if found and name not in deadly:
                env.reset(options={"level": level})
                put_agent(env, found[-1])
                _, reward, terminated, _, info = env.step(np.int64(STAY))
                assert (reward, terminated, info["outcome"]) == (0.0, True, "died"), name
                deadly.add(name)
    assert deadly == {"lava", "saw"}
    for game in IDS:
        still = begun(game, 0, max_steps=5)
        ends = [still.step(np.int64(STAY))[2:] for _ in range(5)]
        assert [(terminated, truncated) for terminated, truncated, _ in ends] == [(False, False)] * 4 + [(False, True)]
        assert ends[-1][2]["outcome"] == "timeout"


@pytest.mark.parametrize(("game", "limit"), [("coinrun", 1000), ("maze", 500)])
def test_the_last_frame_of_a_timeout_is_its_own_and_not_the_next_levels(game: str, limit: int) -> None:
    env = begun(game, 0)
    for step in range(1, limit + 1):
        frame, _, terminated, truncated, _ = env.step(np.int64(STAY))
        assert (terminated, truncated) == (False, step == limit)
    assert env.state().time == limit, "procgen itself has not begun the next level"
    np.testing.assert_array_equal(frame, env._procgen.observe()[1]["rgb"][0])


def test_shares_of_moved_and_wrongly_paid_levels_are_nested() -> None:
    def roles(**shares: Any) -> tuple[set[int], set[int]]:
        env = ProcgenMazeEnv(**shares)
        found = [(level, begun_roles(env, level)) for level in range(200)]
        return {n for n, r in found if r.moved}, {n for n, r in found if r.bug}

    def begun_roles(env: ProcgenEnv, level: int) -> Any:
        env.reset(options={"level": level})
        return env.roles

    few, many, wrong = roles(moved=0.2)[0], roles(moved=0.6), roles(moved=0.6, bug=0.5)
    assert 20 < len(few) < 60 and few < many[0] and not many[1]
    assert wrong[0] == many[0] and 30 < len(wrong[1]) < 90 and wrong[1] < wrong[0]


def test_levels_are_drawn_from_the_set() -> None:
    env = ProcgenMazeEnv(num_levels=3, start_level=70)
    assert {env.reset(seed=seed)[1]["context"] for seed in range(30)} == {70, 71, 72}
    assert ProcgenMazeEnv().reset(seed=0)[1]["context"] > 1000, "0 levels are all of them, as in procgen"


@pytest.mark.parametrize("game", IDS)
def test_bytes_of_another_layout_are_refused(game: str) -> None:
    data = begun(game, 0).state()
    assert ProcgenState(bytes(data), game).agent == data.agent
    whole = bytes(data)
    other = "maze" if game == "coinrun" else "coinrun"
    with pytest.raises(EnvironmentError_, match=r"of the game.*0\.10\.7"):
        ProcgenState(whole, other)
    for broken in (whole[:-4], whole + bytes(4), whole[:-400], whole[:3], whole[:20] + bytes(4) + whole[20:]):
        with pytest.raises(EnvironmentError_, match="cannot be read"):
            ProcgenState(broken, game)


@pytest.mark.parametrize(
    ("kwargs", "named"),
    [
        ({"moved": 2}, "moved=2"),
        ({"bug": -0.1}, "bug=-0.1"),
        ({"num_levels": -1}, "num_levels=-1"),
        ({"start_level": 2**31, "num_levels": 1}, "start_level"),
        ({"distribution_mode": "memory"}, "distribution_mode='memory'"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"render_mode": "human"}, "render_mode='human'"),
    ],
)
def test_wrong_arguments_are_named(kwargs: dict[str, Any], named: str) -> None:
    with pytest.raises(EnvironmentError_, match=named):
        ProcgenCoinRunEnv(**kwargs)


def test_without_procgen_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "procgen", None)
    with pytest.raises(InputError, match=r"aitia\[procgen\]"):
        EnvSpec(IDS["maze"]).make()


@pytest.mark.slow
def test_an_agent_of_the_recipe_trains_is_recorded_and_evaluated(tmp_path: Path) -> None:
    task = load_task(Path(__file__).parents[2] / "examples" / "procgen-coinrun.yaml")
    short = {"n_steps": 256, "batch_size": 128, "n_epochs": 1}
    agent = AgentSpec(
        policy=task.agent.policy, n_envs=2, total_timesteps=1024,
        hyperparameters={**task.agent.hyperparameters, **short},
    )  # fmt: skip
    env = EnvSpec(task.env, {**task.train_kwargs, "max_steps": 100})
    folder = RunFolder(tmp_path)
    assert train_recorded(agent, env, 0, folder) == 2
    rows = pq.read_table(folder.transitions_path(0, 1))
    assert rows.num_rows == 512 and rows.schema.field("observation").type.byte_width == 3 * 64 * 64
    assert set(rows["context"].to_pylist()) <= {str(level) for level in range(task.train_kwargs["num_levels"])}
    policy = load_policy(agent, env, read_tensors(folder.final_path(0)))
    test = EnvSpec(task.env, {**task.test_kwargs, "max_steps": 100})
    episodes, steps = evaluate_policy(policy, test, EvaluationSpec(episodes=6, repeats=1), 0, "test")
    assert set(episodes["outcome"].to_pylist()) <= {"coin", "end", "died", "timeout"}
    assert episodes.num_rows == 6 and steps.num_rows == sum(episodes["length"].to_pylist())
    trained_on = {str(level) for level in range(task.train_kwargs["num_levels"])}
    assert not trained_on & set(episodes["context"].to_pylist()), "test levels are new"
