"""The task file: defaults, and messages that name the key and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aitia.datasets.errors import TaskError
from aitia.workflows.runs.task import Task, make_task
from aitia.workflows.runs.task_source import load_task

LEAST: dict[str, Any] = {"name": "n", "env": "e", "outcomes": {"desired": ["a"], "misbehaved": ["b"]}}


def test_every_key_but_three_has_the_contracts_default() -> None:
    resolved = make_task(LEAST, "task").resolved()
    assert resolved["seeds"] == list(range(8))
    assert resolved["evaluation"] == {"episodes": 128, "repeats": 16, "deterministic": False}
    assert resolved["verify"] == {
        "seeds": 5, "points": 5, "budget": None, "minimal": None,
        "sets": {}, "arbitrary": False, "coverage": None, "clusters": 8,
    }  # fmt: skip
    assert resolved["verdict"] == {"few": 0.10, "outer_share": 0.5, "inner_share": 0.2}
    assert (resolved["group_by"], resolved["target"]) == ("context", "auto")
    assert resolved["agent"]["hyperparameters"]["gamma"] == 0.97
    assert make_task(resolved, "again").resolved() == resolved


def test_seeds_are_a_number_or_a_list() -> None:
    assert make_task({**LEAST, "seeds": 3}, "t").seeds == [0, 1, 2]
    assert make_task({**LEAST, "seeds": [7, 5]}, "t").paired_seeds == [7, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": 3}, "unknown key `sedes`.*`seeds`"),
        ({"verify": {"point": 3}}, r"unknown key `verify.point`.*`points`"),
        ({"agent": {"algoritm": "PPO"}}, "`algorithm`"),
        ({"agent": {"algorithm": "DQN"}}, "DQN.*PPO, A2C"),
        ({"hooks": "m"}, "hooks.*expected module:callable"),
        ({"group_by": "level"}, "group_by"),
        ({"target": "label"}, "`labels`"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"outcomes": {"desired": ["a"], "misbehaved": ["a"]}}, "both desired and misbehaved"),
        ({"outcomes": {"desired": ["a"]}}, "outcomes.misbehaved"),
        ({"evaluation": {"episodes": 0}}, "evaluation.episodes"),
        ({"verdict": {"few": 2}}, "verdict.few"),
        ({"verdict": {"inner_share": 0.6}}, "inner_share below outer_share"),
        ({"sets": {"test": {}}}, "`test`"),
        ({"verify": {"sets": {"random": ["1"]}}}, "`random`.*none of"),
        ({"biases": {"coverage": {}}}, "`coverage`"),
        ({"biases": {"wide": {"hyperparameter": {}}}}, "unknown key `biases.wide.hyperparameter`.*`hyperparameters`"),
        ({"agent": {"hyperparameters": {"learning_rate": "linear"}}}, "lin_0.001"),
        ({"agent": {"hyperparameters": {"gama": 1}}}, "`gamma`"),
    ],
)
def test_a_bad_key_is_named_with_what_was_expected(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        make_task({**LEAST, **change}, "task.yaml")


def test_missing_keys_and_files_are_said(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="`env` is missing"):
        make_task({"name": "n", "outcomes": LEAST["outcomes"]}, "t")
    with pytest.raises(TaskError, match="does not exist"):
        load_task(tmp_path / "no.yaml")
    (tmp_path / "bad.yaml").write_text("name: [")
    with pytest.raises(TaskError, match="not YAML"):
        load_task(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(TaskError, match="list"):
        load_task(tmp_path / "list.yaml")


def test_seeds_target_verify_verdict_and_name_may_change_in_a_run(write_task: Callable[..., Path]) -> None:
    first = load_task(write_task())
    more = load_task(write_task(seeds=7, verify={"points": 2}, name="renamed", target="log-odds"))
    other = load_task(write_task(train_kwargs={"size": 5}))
    assert more.differences(first.resolved()) == []
    assert first.hashes()["training"] == more.hashes()["training"] != other.hashes()["training"]
    assert [text.partition(":")[0] for text in other.differences(first.resolved())] == ["train_kwargs"]


def test_episodes_and_sets_may_be_added_to_a_run_and_nothing_else_of_them_may_change(
    write_task: Callable[..., Path],
) -> None:
    spec, sets = {"episodes": 12, "repeats": 4}, {"near": {"size": 4}}
    first = load_task(write_task(evaluation=spec, sets=sets)).resolved()

    def refused(**changes: Any) -> list[str]:
        task = load_task(write_task(**{"evaluation": spec, "sets": sets, **changes}))
        return [text.partition(":")[0] for text in task.differences(first)]

    assert refused(evaluation={**spec, "episodes": 13}, sets={"far": {"size": 5}, **sets}) == []
    for change in ({"episodes": 11}, {"episodes": 13, "repeats": 5}, {"deterministic": True}):
        assert refused(evaluation={**spec, **change}) == ["evaluation"]
    for other in ({}, {"near": {"size": 5}}, {"nearer": {"size": 4}}):
        assert refused(sets=other) == ["sets"]
    fewer = load_task(write_task(evaluation={**spec, "episodes": 11}, sets={})).differences(first)
    assert "only grow" in fewer[1] and "only be added" in fewer[0]


def test_the_demo_tasks_and_examples_are_valid() -> None:
    root = Path(__file__).parents[2]
    paths = [
        *sorted((root / "workflows" / "tasks").glob("*.yaml")),
        *sorted((root / "examples").glob("*.yaml")),
    ]
    assert len(paths) >= 4
    tasks: list[Task] = [load_task(path) for path in paths]
    assert all(task.name == path.stem for task, path in zip(tasks, paths, strict=True))
