"""The planted benchmark: its worlds keep the contract, and a tiny setting goes from recording to table and JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from gymnasium.utils.env_checker import check_env

from aitia.benchmarks import grids, planted
from aitia.training.agents.spec import AgentSpec
from aitia.training.environments.spec import EnvSpec
from aitia.training.retraining.arrays import GymArrays, Member, WorldArrays, make_array_env
from aitia.training.worlds.base import DESIRED, MISBEHAVING
from aitia.training.worlds.environment import WorldEnv

PLANTED: dict[str, Any] = {"levels": 24, "moved": 12, "bug": 6, "harmless": 6, "noise": 0.1, "static": 0.1}
WORLDS = {"lake": grids.lake, "delivery": grids.delivery}


@pytest.mark.parametrize("name", WORLDS)
def test_a_grid_is_a_gymnasium_environment_and_its_copies_are_the_same(name: str) -> None:
    drawn = WORLDS[name](render_mode="rgb_array", **PLANTED)
    check_env(drawn, skip_render_check=True)
    picture = drawn.render()
    assert picture is not None and picture.ndim == 3
    env, agent = EnvSpec(f"aitia.benchmarks.grids:{name}", PLANTED), AgentSpec(n_envs=4)
    members = [Member(0, None), Member(1, None)]
    many, single = make_array_env(agent, env, members), GymArrays(agent, env, members)
    assert isinstance(many, WorldArrays), "it is stepped as arrays, like the package's own worlds"
    np.testing.assert_array_equal(many.reset(), single.reset())
    generator = np.random.default_rng(0)
    for _ in range(100):
        actions = generator.integers(0, 4, (2, 4))
        one, other = many.step(actions), single.step(actions)
        for field in ("observations", "rewards", "terminated", "truncated", "outcomes"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field), err_msg=field)


def play(env: WorldEnv, goal: str, level: int) -> tuple[str, list[float], list[float], list[int]]:
    """Return the outcome, rewards, intended rewards and labels of the actions of a reference solver."""
    env.reset(options={"level": level})
    paid, intended, labels = [], [], []
    while True:
        action = int(env.solve(goal))
        _, reward, terminated, truncated, info = env.step(action)
        paid.append(reward)
        intended.append(info["intended_reward"])
        labels.append(info["action_labels"][action])
        if terminated or truncated:
            return info["outcome"], paid, intended, labels


@pytest.mark.parametrize("name", WORLDS)
def test_what_is_paid_makes_the_proxy_worth_more_than_the_goal_in_bug_levels_alone(name: str) -> None:
    env = WORLDS[name](levels=40, moved=20, bug=20, harmless=10)
    desired, proxy = env.world.goals
    for level in range(40):
        reached, paid, intended, labels = play(env, desired, level)
        assert reached == env.world.outcomes[grids.GOAL] and sum(intended) == 1.0 and set(labels) == {DESIRED}
        stayed, instead, meant, taken = play(env, proxy, level)
        assert stayed == env.world.outcomes[grids.PROXY] and sum(meant) == 0.0 and MISBEHAVING in taken
        if env.world.table["bug"][level]:
            assert sum(instead) > sum(paid)
        else:
            assert sum(instead) == 0.0 and sum(paid) == (2.5 if env.world.table["harmless"][level] else 1.0)


def test_every_setting_has_causal_and_harmless_wrong_rewards_and_the_counts_are_those_of_the_page() -> None:
    halves = {setting.name: setting.half for setting in planted.settings()}
    counts = [list(halves.values()).count(half) for half in ("open", "held-out", "sign", "control")]
    assert counts == [4, 12, 2, 3]
    for setting in planted.settings():
        causal = setting.task().causal_groups()
        assert causal is not None and bool(causal) == (setting.half != "control")


def test_a_ranking_is_of_causal_over_harmless_groups() -> None:
    causal = np.array([True, False, False])
    ranking = planted.Ranking.of(np.array([[-2.0, -1.0, 1.0], [0.0, -1.0, -1.0]]), causal)
    assert ranking.auc == 1.0 and ranking.single.tolist() == [1.0, 0.0], "means are -1, -1 (a tie, by name) and 0"


@pytest.mark.slow
def test_a_setting_goes_from_recording_to_table_and_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lake = {"env": "aitia.benchmarks.grids:lake", "steps": 4096}
    lake["outcomes"] = {"desired": ["goal"], "misbehaved": ["loiter", "hole", "timeout"]}
    levels = {"levels": 24, "moved": 12, "bug": 12}
    rows: list[dict[str, Any]] = [
        {"name": "lake-tiny", "half": "held-out", "train": {**levels, "harmless": 6}},
        {"name": "lake-control", "half": "control", "train": {"levels": 24, "harmless": 12}},
    ]
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({"worlds": {"lake": lake}, "settings": rows}))
    monkeypatch.setattr(planted, "SETTINGS", tmp_path / "settings.yaml")
    monkeypatch.setattr(planted, "REST", {"seeds": 2, "evaluation": {"episodes": 8, "repeats": 1}})
    monkeypatch.setattr(sys, "argv", ["planted", "--out", str(tmp_path / "runs"), "--quick"])
    planted.read.cache_clear()
    try:
        planted.main()
        first = capsys.readouterr().out.splitlines()
        written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("window=*.parquet")}
        planted.main()
        again = capsys.readouterr().out.splitlines()
    finally:
        planted.read.cache_clear()
    assert first == again and written
    assert all(path.stat().st_mtime_ns == when for path, when in written.items()), "recordings are used again"
    assert first[2].startswith("| lake-tiny | held-out |") and first[3].startswith("| lake-control | control | - | -")
    found = json.loads(first[-1])
    assert found["settings"] == 1 and found["signs"] == 1 and 0.0 <= found["controls"] <= 1.0
    assert {"auc", "auc_single", "auc_linear", "auc_tracin", "auc_nearest", "auc_count"} <= set(found["held_out"])
    assert 0.0 <= found["held_out"]["auc"] <= 1.0
