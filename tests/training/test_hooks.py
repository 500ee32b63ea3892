from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_hooks
from toy_environments import Corridor, Kinds

from aitia.datasets.errors import AitiaError, EnvironmentError_
from aitia.datasets.files.store import RunFolder, read_table
from aitia.training.agents.spec import AgentSpec
from aitia.training.environments.hooks import Columns, HookedEnv
from aitia.training.environments.spec import EnvSpec, probe
from aitia.training.retraining.arrays import Member, make_array_env
from aitia.training.retraining.live import train_recorded

SILENT: dict[str, Any] = {"tell": (), "limit": 5}
CORRIDOR = "toy_environments:Corridor"
TRAINING = AgentSpec(total_timesteps=128, n_envs=2, hyperparameters={"n_steps": 32, "batch_size": 32, "n_epochs": 2})


def test_a_hook_gives_the_record_that_the_environment_itself_would_have_given(tmp_path: Path) -> None:
    told = {"tell": ("outcome", "intended_reward"), "limit": 5}
    for name, env in (("told", EnvSpec(CORRIDOR, told)), ("hook", EnvSpec(CORRIDOR, SILENT, "toy_hooks:corridor"))):
        train_recorded(TRAINING, env, 3, RunFolder(tmp_path / name))
    one, other = (read_table(RunFolder(tmp_path / name).transitions_path(3, 1)) for name in ("told", "hook"))
    assert one.num_rows == 64 and set(one["outcome"].to_pylist()) > {None}
    assert one.drop_columns(["context"]).equals(other.drop_columns(["context"]))
    assert other["context"].to_pylist() == [str(t) for t in other["t"].to_pylist()], "and what it did not tell itself"


def test_a_task_with_a_hook_probes_as_if_the_environment_told() -> None:
    assert probe(EnvSpec(CORRIDOR, SILENT, "toy_hooks:corridor")).keys == {"intended_reward", "context"}
    with pytest.raises(EnvironmentError_, match="without info"):
        probe(EnvSpec(CORRIDOR, SILENT))


def collect(env: HookedEnv, actions: list[int]) -> None:
    env.reset(seed=0)
    for action in actions:
        env.step(action)


def test_columns_are_the_whole_episode_so_far() -> None:
    seen: list[dict[str, Any]] = []

    def hook(columns: Columns) -> dict[str, Any]:
        seen.append(dict(columns))
        return {}

    steps = 75  # more rows than are set aside at first
    collect(HookedEnv(Corridor(length=400, limit=100), hook), [1] * steps)
    assert [len(columns["t"]) for columns in seen] == list(range(1, steps + 1))
    last = seen[-1]
    np.testing.assert_allclose(last["observation"][:, 0], np.arange(200, 275) / 400)
    np.testing.assert_array_equal(last["observation"][1:], last["next_observation"][:-1])
    assert last["action"].tolist() == [1] * steps and len(last["info"]) == steps and last["reset_info"] == {}
    assert not last["terminated"].any() and last["reward"].shape == (steps,)
    with pytest.raises(ValueError, match="read-only"):
        last["reward"][0] = 1.0


def test_dictionary_observations_come_by_name() -> None:
    shapes = {}

    def hook(columns: Columns) -> dict[str, Any]:
        shapes.update({name: values.shape for name, values in columns["observation"].items()})
        return {}

    collect(HookedEnv(Kinds("dict"), hook), [1, 0, 1])
    assert shapes == {"image": (3, 36, 40, 1), "vector": (3, 2), "cell": (3,)}


def test_the_last_row_of_each_key_is_told_and_the_outcome_only_at_the_end() -> None:
    def hook(columns: Columns) -> dict[str, Any]:
        t = columns["t"]
        parts = {"base": columns["reward"] - t, "late": t}
        return {"outcome": ["goal"] * len(t), "reward_components": parts, "action_labels": [[1, -1]] * len(t)}

    env = HookedEnv(Corridor(tell=()), hook)
    env.reset(seed=0)
    first, second = env.step(1)[4], env.step(1)[4]
    assert first == {"reward_components": {"base": 0.0, "late": 0}, "action_labels": [1, -1]}
    assert second["outcome"] == "goal" and second["reward_components"] == {"base": 0.0, "late": 1}


def test_a_hook_can_leave_a_key_to_the_environment() -> None:
    env = HookedEnv(Corridor(), lambda columns: {"outcome": [None] * len(columns["t"])})
    env.reset(seed=0)
    env.step(0)
    assert env.step(0)[4]["outcome"] == "pit"


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (toy_hooks.too_short, r"too_short` returned 0 values for `outcome`, expected 1"),
        (lambda columns: {"outcome": "goal"}, r"returned 'goal' for `outcome`, expected 1: one for each row"),
        (lambda columns: {"context": 3}, r"returned 3 for `context`"),
        (lambda columns: {"outcomes": ["goal"]}, r"returned `outcomes`, expected keys among.*Did you mean `outcome`"),
        (lambda columns: ["goal"], "returned a list, expected a dictionary"),
        (lambda columns: columns["speed"], r"failed at step 0.*KeyError.*given the columns observation"),
    ],
)
def test_a_hook_that_breaks_its_contract_is_told_so(hook: Callable[[Columns], Any], message: str) -> None:
    env = HookedEnv(Corridor(), hook)
    env.reset(seed=0)
    with pytest.raises(EnvironmentError_, match=message):
        env.step(1)


@pytest.mark.parametrize("named", ["no_such_module:f", "toy_hooks:no_such"])
def test_a_hook_that_does_not_exist_is_named(named: str) -> None:
    with pytest.raises(AitiaError, match=f"hooks: `{named}` was given"):
        EnvSpec(CORRIDOR, {}, named).make()


def test_a_hook_keeps_a_family_from_being_stepped_as_arrays() -> None:
    """The arrays would not ask it."""

    def kind(hooks: str | None) -> str:
        env = EnvSpec("aitia/CoinRun-v0", {}, hooks)
        return type(make_array_env(TRAINING, env, [Member(0, None)])).__name__

    assert (kind(None), kind("toy_hooks:corridor")) == ("WorldArrays", "GymArrays")
