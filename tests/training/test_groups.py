"""Groups: recorded and met while training again, a transition falls into the same one."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from aitia.datasets.errors import EnvironmentError_, InputError
from aitia.datasets.files.store import RunFolder, read_tensors
from aitia.datasets.groups import BY_CONTEXT, ByComponent, Grouping
from aitia.training.agents.spec import AgentSpec, load_policy, new_policy
from aitia.training.edits.edit import CorrectedRewards, RewardEdit
from aitia.training.edits.file import Edits, read_edits, write_edits
from aitia.training.edits.groups import ByCluster, ByTransition, fit_sample
from aitia.training.environments.spec import Env, EnvSpec
from aitia.training.retraining.live import train_recorded

AGENT = AgentSpec(total_timesteps=64, n_envs=2, hyperparameters={"n_steps": 16, "batch_size": 16, "n_epochs": 1})
ENV = EnvSpec("toy_environments:Corridor", {"components": 1.0, "intended_error": -0.25})
BOX = EnvSpec("toy_environments:Kinds", {"observe": "vector", "act": "box", "intended_error": -0.25})


@pytest.fixture(params=["context", "component", "cluster", "transition", "transition-box"])
def recorded(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[EnvSpec, Grouping, pa.Table, str]:
    env = BOX if request.param == "transition-box" else ENV
    folder = RunFolder(tmp_path)
    train_recorded(AGENT, env, 0, folder)
    table = pq.read_table(folder.transitions_path(0, 0))
    policy = load_policy(AGENT, env, read_tensors(folder.final_path(0)))
    groupings: dict[str, Any] = {
        "context": lambda: BY_CONTEXT,
        "component": ByComponent,
        "cluster": lambda: ByCluster.fit(env, policy, fit_sample([table]), 3),
        "transition": lambda: ByTransition(env),
    }
    return env, groupings[request.param.removesuffix("-box")](), table, request.param


class _Heard(CorrectedRewards):
    """Also keeps the group of every transition."""

    def __init__(self, env: Env, edit: RewardEdit) -> None:
        super().__init__(env, edit)
        self.groups: list[str] = []

    def step(self, action: Any) -> Any:
        left = self._left
        result = super().step(action)
        self.groups.append(self.edit.grouping.of_step(left, action, result[4]))
        return result


def test_the_group_of_a_transition_is_the_same_recorded_and_met_again(
    recorded: tuple[EnvSpec, Grouping, pa.Table, str],
) -> None:
    """The recorded actions are played again; every step falls into the recorded group."""
    from aitia.datasets.arrays import decode_actions
    from aitia.training.environments.spaces import env_action

    env_spec, grouping, table, kind = recorded
    first = table.filter(pa.array(table["env"].to_numpy() == 0))
    env = _Heard(env_spec.make(), RewardEdit(frozenset({"?"}), grouping))
    env.reset(seed=0)
    for action, ended in zip(
        decode_actions(first), first["terminated"].to_numpy() | first["truncated"].to_numpy(), strict=True
    ):
        env.step(env_action(env.action_space, action))
        if ended:
            env.reset()
    expected = grouping.of_table(first).tolist()
    assert env.groups == expected
    assert kind == "context" or len(set(expected)) > 1, "one group for all tests nothing"


def test_an_edit_corrects_its_groups_and_no_other(recorded: tuple[EnvSpec, Grouping, pa.Table, str]) -> None:
    _, grouping, table, _ = recorded
    names = grouping.of_table(table)
    chosen = frozenset({str(names[0])})
    edited = RewardEdit(chosen, grouping).rewards(table)
    paid, intended = table["reward"].to_numpy(), table["intended_reward"].to_numpy()
    np.testing.assert_array_equal(edited, np.where(names == names[0], intended, paid))
    np.testing.assert_array_equal(RewardEdit(None, grouping).rewards(table), intended)
    np.testing.assert_array_equal(RewardEdit(frozenset(), grouping).rewards(table), paid)


def test_clusters_come_back_from_disk_and_assign_new_states(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    train_recorded(AGENT, ENV, 0, folder)
    policy = load_policy(AGENT, ENV, read_tensors(folder.final_path(0)))
    table = pq.read_table(folder.transitions_path(0, 0))
    fitted = ByCluster.fit(ENV, policy, fit_sample([table]), 3)
    fitted.save(tmp_path / "clusters.safetensors")
    loaded = ByCluster.load(tmp_path / "clusters.safetensors", ENV, new_policy(AGENT, ENV))
    new = np.array([[0.1, 1.0], [0.9, 1.0]], dtype=np.float32)
    np.testing.assert_array_equal(fitted.assign(new), loaded.assign(new))
    assert fitted.assign(new)[0] != fitted.assign(new)[1]


def test_components_that_are_not_told_are_an_error() -> None:
    table = pa.table({"reward": [1.0]})
    with pytest.raises(InputError, match="reward_components"):
        ByComponent().of_table(table)
    with pytest.raises(EnvironmentError_, match="reward_components"):
        ByComponent().of_step(None, 0, {})


def _transitions(env: EnvSpec, folder: Path, policy: str = "MlpPolicy") -> pa.Table:
    train_recorded(AGENT.model_copy(update={"policy": policy}), env, 0, RunFolder(folder))
    return pq.ParquetFile(RunFolder(folder).transitions_path(0, 0)).read()


def test_names_of_states_and_actions_can_be_read(tmp_path: Path) -> None:
    names = set(ByTransition(ENV).of_table(_transitions(ENV, tmp_path / "corridor")).tolist())
    assert {"obs [0.5, 1] / 0", "obs [0.5, 1] / 1"} <= names, "exact numbers need no digest"
    maze = EnvSpec("aitia/ArrowMaze-v0")
    found = ByTransition(maze).of_table(_transitions(maze, tmp_path / "maze")).tolist()
    assert all(re.fullmatch(r"\d+ / obs \[[\d., ]+\]( #[0-9a-f]+)? / (up|down|left|right)", name) for name in found)
    table = TableEnv()
    assert table.metadata["action_names"] == ["left", "right"]
    discrete = EnvSpec("test_groups_environments:TableEnv")
    sys.modules["test_groups_environments"] = sys.modules[__name__]
    assert ByTransition(discrete).of_step(14, 0, {}) == "obs 14 / left"
    assert ByTransition(discrete).of_step(14, 1, {"context": 3}) == "3 / obs 14 / right"


class TableEnv(gym.Env[Any, Any]):
    """Discrete observations and named actions."""

    metadata: dict[str, Any] = {"action_names": ["left", "right"], "render_modes": []}  # noqa: RUF012 (as Gymnasium)
    observation_space = gym.spaces.Discrete(20)
    action_space = gym.spaces.Discrete(2)


def test_two_states_that_read_alike_are_two_groups_and_long_ones_have_a_digest() -> None:
    grouping = ByTransition(BOX)
    near = [np.array([0.25, value], np.float32) for value in (0.123401, 0.123402)]
    action = np.array([0.5, 0.5], np.float32)
    first, second = (grouping.of_step(state, action, {}) for state in near)
    assert first != second and first.startswith("obs [0.25, 0.123] #") and first.endswith(" / [0.5, 0.5]")
    assert first == grouping.of_step(near[0], action, {}), "stable"
    image = ByTransition(EnvSpec("toy_environments:Kinds", {"observe": "dict", "act": "multi"}))
    env = EnvSpec("toy_environments:Kinds", {"observe": "dict", "act": "multi"}).make()
    observation, _ = env.reset(seed=0)
    name = image.of_step(observation, np.array([1, 2]), {"context": "a / obs b"})
    assert re.fullmatch(r"a / obs b / obs #[0-9a-f]+ / \[1, 2\]", name)


@settings(max_examples=200, deadline=None)
@given(
    arrays(np.float32, 2, elements=st.floats(-2, 2, width=32)),
    arrays(np.float32, 2, elements=st.floats(-2, 2, width=32)),
)
def test_names_are_equal_only_of_equal_transitions(first: Any, second: Any) -> None:
    action = np.array([0.5, 0.5], np.float32)
    same = ByTransition(BOX).of_step(first, action, {}) == ByTransition(BOX).of_step(second, action, {})
    assert same == (first.tobytes() == second.tobytes())


def test_names_come_back_from_an_edits_file(tmp_path: Path) -> None:
    table = _transitions(BOX, tmp_path / "run")
    names = sorted(set(ByTransition(BOX).of_table(table).tolist()))
    write_edits(tmp_path / "edits.yaml", Edits(grouping="transition", groups=names[:3], correct="intended"))
    edit = read_edits(tmp_path / "edits.yaml").edit(BOX)
    assert edit.groups == frozenset(names[:3])
    changed = edit.rewards(table) != table["reward"].to_numpy()
    np.testing.assert_array_equal(changed, np.isin(ByTransition(BOX).of_table(table), names[:3]))


def test_names_of_version_0_1_are_refused_as_no_transition_has_them() -> None:
    old = Edits(grouping="transition", groups=["17/[0.5, 1]/0a1b2c3d"], correct="intended")
    with pytest.raises(InputError, match=r"0\.1 named states and actions(.|\n)*Attribute the run again"):
        old.edit(BOX)
