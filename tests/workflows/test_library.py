"""A run held in a notebook: reading runs nothing of it, numbers are the report's, and what is missing is said."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
import yaml
from pyarrow.dataset import Dataset
from small_task import SMALL_TASK
from stable_baselines3.common.policies import ActorCriticPolicy

import aitia
from aitia.attribution import Estimator, Trak, TrakProjected
from aitia.attribution.estimators.baselines import Random
from aitia.datasets.arrays import array_format, decode_actions, decode_arrays
from aitia.datasets.errors import InputError, RunFolderError, TaskError
from aitia.datasets.files.store import read_table, read_tensors
from aitia.datasets.schema import TOP_TRANSITIONS
from aitia.reports.statistics import mean_interval
from aitia.workflows.runs.task import Task
from aitia.workflows.runs.task_source import load_task

pytestmark = pytest.mark.slow
THEIR_ENV = """
from pathlib import Path

import gymnasium

Path(__file__).with_suffix(".ran").touch()


def make(**kwargs):
    return gymnasium.make("aitia/ArrowMaze-v0", **kwargs)
"""


@pytest.fixture
def copy(small_run: Path, tmp_path: Path) -> Path:
    """A run that may be changed."""
    shutil.copytree(small_run, tmp_path / "copy")
    return tmp_path / "copy"


@pytest.fixture
def sent(copy: Path, tmp_path: Path) -> Callable[[], bool]:
    """Let the copy be somebody else's, whose environment lies in a module beside it; return whether that was run."""
    code = tmp_path / "theirs"
    code.mkdir()
    (code / "library_test_env.py").write_text(THEIR_ENV)
    values = json.loads((copy / "run.json").read_text())
    values["task"]["env"], values["task_folder"] = "library_test_env:make", str(code)
    (copy / "run.json").write_text(json.dumps(values))
    return lambda: (code / "library_test_env.ran").exists()


def summary(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "reports/test/summary.json").read_text())
    return values


def test_an_opened_run_says_what_it_holds(small_run: Path) -> None:
    run = aitia.open(small_run)
    assert isinstance(run.task, Task) and run.task.name == "small-outer"
    assert run.seeds == [0, 1, 2, 3, 4] and run.sets == ["test"] == list(run) and "tset" not in run
    with pytest.raises(TaskError, match=r"`tset` was given, the task has test. Did you mean `test`"):
        run["tset"]
    with pytest.raises(RunFolderError, match=r"no run.json"):
        aitia.open(small_run.parent)


def test_verdict_rates_and_curve_are_those_of_the_report(small_run: Path) -> None:
    test, reported = aitia.open(small_run)["test"], summary(small_run)
    found = test.verdict
    assert (found.label, found.rule, found.basis) == (reported["verdict"], reported["rule"], reported["basis"])
    assert found.outer_share.as_dict() == reported["outer_share"] and list(found.reasons) == reported["reasons"]
    with pytest.raises(AttributeError):
        found.label = "inner"  # type: ignore[misc]
    assert test.curve.to_pylist() == reported["correction_curve"]
    rates: dict[str, dict[str, Any]] = {}
    for row in test.rates.to_pylist():
        rates.setdefault(row.pop("rate"), {})[row.pop("rewards")] = row
    assert rates == {name: reported[name] for name in ("misbehaviour_rate", "competence", "desired_rate")}


def test_failures_are_those_of_the_report(small_run: Path) -> None:
    columns = ["failure", "seed", "episode", "context", "outcome", "cluster", "verdict"]
    entries = json.loads((small_run / "reports/test/verdicts.json").read_text())
    failures = aitia.open(small_run)["test"].failures
    assert failures.column_names == columns
    assert failures.to_pylist() == [{name: entry[name] for name in columns} for entry in entries]


def test_influence_by_group_is_the_mean_over_seeds_with_its_interval(small_run: Path) -> None:
    run = aitia.open(small_run)
    test = run["test"]
    sums = read_table(small_run / "influence/test/groups.parquet").filter(pc.field("lambda") == 1e-3)
    for failure in (None, test.failure_ids[2]):
        table = test.influence(by="group", failure=failure)
        assert table.column_names == ["group", "effect", "low", "high", "transitions", "reward_events"]
        effects = table["effect"].to_pylist()
        assert effects == sorted(effects) and effects[0] < 0
        first, group = table.to_pylist()[0], pc.field("group").cast(pa.string()) == table["group"][0].as_py()
        rows = sums.filter(group if failure is None else group & (pc.field("failure").cast(pa.string()) == failure))
        by_seed = [float(np.mean(rows.filter(pc.field("seed") == s)["effect"].to_numpy())) for s in run.seeds]
        expected = mean_interval(by_seed)
        assert [first[name] for name in ("effect", "low", "high")] == pytest.approx(list(expected), rel=1e-12)
        counts = rows.group_by("seed").aggregate([("transitions", "min"), ("reward_events", "min")])
        for name in ("transitions", "reward_events"):
            assert first[name] == pytest.approx(float(np.mean(counts[f"{name}_min"].to_numpy())))


def test_influence_by_window_is_that_of_all_its_corrections(small_run: Path) -> None:
    """Not divided by the window's mass, and so in another unit than that of groups: a correction helps in both."""
    test = aitia.open(small_run)["test"]
    for failure in (None, test.failure_ids[0]):
        windows = test.influence(by="window", failure=failure)
        assert windows.column_names == ["seed", "window", "effect"] and windows.num_rows == 5 * 8
        effects = windows["effect"].to_pylist()
        assert effects == sorted(effects)
        table = read_table(small_run / "influence/test/windows.parquet")
        mine = table if failure is None else table.filter(pc.field("failure").cast(pa.string()) == failure)
        failures = len(test.failure_ids) if failure is None else 1
        assert sum(effects) == pytest.approx(float(pc.sum(mine["effect"]).as_py()) / failures, rel=1e-9)
        assert sum(effects) < 0.0


def test_influence_by_transition_is_of_one_failure(small_run: Path) -> None:
    test = aitia.open(small_run)["test"]
    name = test.failure_ids[1]
    table = test.influence(by="transition", failure=name)
    assert table.column_names == [*TOP_TRANSITIONS.names, "effect"]
    assert set(table["failure"].to_pylist()) == {name}
    rows = table.to_pylist()
    assert [row["effect"] for row in rows] == [(row["intended_reward"] - row["reward"]) * row["tau"] for row in rows]
    assert [row["effect"] for row in rows] == sorted(row["effect"] for row in rows)


def test_what_nobody_can_answer_is_said_with_the_nearest_name(small_run: Path) -> None:
    run = aitia.open(small_run)
    test, known = run["test"], run["test"].failure_ids[0]
    with pytest.raises(InputError, match=f"the failure {known}9 was given.* Did you mean `"):
        test.influence(failure=f"{known}9")
    with pytest.raises(InputError, match="the failure 17 was given"):
        test.influence(failure=17)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"without a failure, expected one such as failure='{known}'"):
        test.influence(by="transition")
    with pytest.raises(ValueError, match="by='level' was given, expected group, window, transition"):
        test.influence(by="level")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"seed 7 was given, .* has seeds 0, 1, 2, 3, 4"):
        run.transitions(seed=7)
    with pytest.raises(InputError, match="window 8 was given, expected one of the 8 windows of seed 0, from 0 to 7"):
        run.policy(seed=0, window=8)


def test_before_a_stage_a_set_says_which_command_is_missing(copy: Path) -> None:
    shutil.rmtree(copy / "reports")
    assert aitia.open(copy)["test"].verdict.label == "outer", "a verdict needs no report"
    shutil.rmtree(copy / "bank")
    test = aitia.open(copy)["test"]
    assert (test.verdict.label, test.verdict.rule) == ("undetermined", 11) and test.curve.num_rows == 0
    assert "aitia verify" in test.verdict.reasons[0]
    shutil.rmtree(copy / "influence")
    test = aitia.open(copy)["test"]
    assert test.failures["cluster"].null_count == test.failures.num_rows > 0
    for asked in (lambda: test.verdict, test.influence):
        with pytest.raises(RunFolderError, match=r"influence/test/.* is missing: `aitia attribute` writes it"):
            asked()
    assert "not yet: " in repr(test) and "aitia attribute" in repr(test)
    shutil.rmtree(copy / "evaluations")
    run = aitia.open(copy)
    assert run.sets == []
    with pytest.raises(RunFolderError, match="`aitia evaluate` writes it"):
        run["test"].failures  # noqa: B018


def test_what_is_attributed_is_told_before_all_failures_are(copy: Path) -> None:
    whole, name = aitia.open(copy)["test"], aitia.open(copy)["test"].failure_ids[3]
    shutil.rmtree(copy / "influence")
    aitia.attribute(copy, failure=[name], workers=0)
    test = aitia.open(copy)["test"]
    assert test.failures["failure"].equals(whole.failures["failure"]) and test.failures["verdict"].null_count > 0
    for by in ("group", "window", "transition"):
        one, other = (np.array(s.influence(by, name)["effect"]) for s in (test, whole))
        np.testing.assert_allclose(one, other, rtol=1e-6)
    for asked in (test.influence, lambda: test.verdict, lambda: test.influence(failure=whole.failure_ids[0])):
        with pytest.raises(InputError, match=r"were not attributed \(the first is 0-"):
            asked()
    assert f"failures  {len(whole.failure_ids)}\n" in repr(test)


def test_a_run_in_which_a_command_removes_its_pieces_is_opened(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walk = os.walk(copy)
    monkeypatch.setattr(os, "walk", lambda _: [(where, folders, [*names, "gone"]) for where, folders, names in walk])
    assert aitia.open(copy).sets == ["test"]


def test_transitions_are_lazy_and_whole(copy: Path) -> None:
    transitions = aitia.open(copy).transitions(seed=1)
    assert isinstance(transitions, Dataset) and len(transitions.files) == 8
    parts = [read_table(copy / f"transitions/seed=1/window={w:05d}.parquet") for w in range(8)]
    assert transitions.to_table().equals(pa.concat_tables(parts))
    assert array_format(transitions.schema, "observation").shape
    (copy / "transitions/seed=1/window=00005.parquet").unlink()
    with pytest.raises(RunFolderError, match=r"window=00005.parquet is missing"):
        aitia.open(copy).transitions(seed=1)


def test_a_policy_is_the_one_that_collected_the_window(small_run: Path) -> None:
    run = aitia.open(small_run)
    table = read_table(small_run / "transitions/seed=2/window=00003.parquet")
    observations = torch.as_tensor(decode_arrays(table["observation"], array_format(table.schema, "observation")))
    policy = run.policy(seed=2, window=3)
    assert isinstance(policy, ActorCriticPolicy) and not policy.training
    with torch.no_grad():
        _, log_prob, _ = policy.evaluate_actions(observations, torch.as_tensor(decode_actions(table)))
    np.testing.assert_allclose(log_prob.numpy(), table["log_prob"].to_numpy(), atol=1e-5)
    final = run.policy(seed=2).state_dict()
    recorded = read_tensors(small_run / "checkpoints/seed=2/final.safetensors")
    assert final.keys() == recorded.keys()
    assert all(torch.equal(value, recorded[name]) for name, value in final.items())


def test_reading_a_run_of_somebody_else_runs_nothing_of_it(copy: Path, sent: Callable[[], bool]) -> None:
    before = list(sys.path)
    run = aitia.open(copy)
    test = run["test"]
    repr(run), repr(test), run._repr_html_(), test.failures, test.rates, test.curve, test.verdict
    for by in ("group", "window", "transition"):
        test.influence(by, failure=test.failure_ids[0])
    run.transitions(seed=0).head(1)
    run.group_rows()
    assert sys.path == before and not sent()


def test_a_policy_of_somebody_elses_run_is_asked_for(
    copy: Path, sent: Callable[[], bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(InputError, match=r"library_test_env:make.*--trust"):
        aitia.open(copy).policy(seed=0)
    assert not sent()
    assert isinstance(aitia.open(copy).policy(seed=0, trust=True), ActorCriticPolicy) and sent()
    assert isinstance(aitia.open(copy).policy(seed=0), ActorCriticPolicy), "trust is remembered"


def test_run_set_and_verdict_show_themselves(small_run: Path) -> None:
    run = aitia.open(small_run)
    test = run["test"]
    share = test.verdict.outer_share.as_percent()
    for text in (repr(run), repr(test), repr(test.verdict)):
        assert "outer" in text and share in text and len(text.splitlines()) <= 8
    assert "0, 1, 2, 3, 4 trained of 5" in repr(run) and "small-outer" in repr(run)
    assert f"{test.failures.num_rows} failures" in repr(run)
    assert "evaluated, attributed, verified, reported" in repr(test)
    for shown in (run, test, test.verdict):
        assert "<table>" in shown._repr_html_()
        assert shown._repr_mimebundle_() == {"text/plain": repr(shown), "text/html": shown._repr_html_()}


def test_text_of_a_run_steers_neither_console_nor_notebook(copy: Path) -> None:
    values = json.loads((copy / "run.json").read_text())
    values["task"]["name"] = "a\x1b[31m<script>alert(1)</script>\nb"
    (copy / "run.json").write_text(json.dumps(values))
    run = aitia.open(copy)
    for shown in (run, run["test"]):
        assert "\x1b" not in repr(shown) and r"\x1b[31m" in repr(shown).splitlines()[0]
        assert "<script>" not in shown._repr_html_() and "&lt;script&gt;" in shown._repr_html_()


def test_a_task_may_be_values_or_a_model(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(SMALL_TASK))
    from_file = load_task(file)
    assert load_task(SMALL_TASK) == from_file == load_task(from_file)
    changed = from_file.model_copy(update={"seeds": "many"})
    with pytest.warns(UserWarning, match="Pydantic"), pytest.raises(TaskError, match="the task: key `seeds`"):
        load_task(changed)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"nmae": "x"}, "unknown key `nmae`.*Did you mean `name`"),
        ({"edits": {"groups": "all"}}, "`edits` is no key of a task file"),
        ({"train_kwargs": {"size": np.int64(4)}}, "cannot .*int64 is not JSON serializable.*module:callable"),
        ({"train_kwargs": {"size": float("nan")}}, "what a task file cannot"),
        ({"env": "__main__:Mine"}, "`__main__:Mine`, which is in the running script or notebook"),
    ],
)
def test_a_task_given_as_values_is_one_that_a_file_could_hold(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        load_task({**SMALL_TASK, **changes})


def test_a_run_begun_with_values_goes_on_with_the_same_task_in_a_file(tmp_path: Path) -> None:
    agent = {**SMALL_TASK["agent"], "total_timesteps": 512}
    values, out = {**SMALL_TASK, "agent": agent, "seeds": 1}, tmp_path / "run"
    drawn = torch.get_rng_state()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():  # what the caller has set does not matter
            aitia.train(values, out, workers=0)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    run = aitia.open(out)
    assert {value.dtype for value in run.policy(0).state_dict().values()} == {torch.float32}
    assert torch.equal(torch.get_rng_state(), drawn)
    assert (run.manifest.task_folder, run.manifest.task_file) == (None, None)
    trained = run.folder.final_path(0).stat().st_mtime_ns
    aitia.train(run.task, out, workers=0)
    file = tmp_path / "task.yaml"
    file.write_text(yaml.safe_dump(values))
    aitia.train(file, out, workers=0)
    assert run.folder.final_path(0).stat().st_mtime_ns == trained, "the same task is not trained again"
    manifest = aitia.open(out).manifest
    assert (manifest.task_folder, manifest.task_file) == (str(tmp_path), "task.yaml")
    with pytest.raises(RunFolderError, match=r"holds a run of another task .*test_kwargs"):
        aitia.train({**values, "test_kwargs": {"size": 4}}, out, workers=0)
    aitia.evaluate(out, workers=0)
    assert aitia.open(out).sets == ["test"]


def test_an_estimator_with_parameters_stands_next_to_the_verdicts_own(copy: Path) -> None:
    test = aitia.open(copy)["test"]
    name, before = test.failure_ids[0], test.influence()
    own = TrakProjected(dimension=16)
    aitia.attribute(copy, failure=[name], estimator=own, workers=0)
    sums = read_table(copy / "influence/test/groups.parquet")
    labels = set(pc.unique(sums["estimator"]).to_pylist())
    assert labels == {"trak", "trak-projected(dimension=16)"}
    assert aitia.open(copy)["test"].influence().equals(before), "answers are of the estimator that the verdict rests on"


@dataclasses.dataclass(frozen=True)
class TakesAName(Trak):
    """Another estimator under a name that is taken."""


class WithHiddenParameters(Random):
    """Its rows could not be told from those of other parameters."""

    name = "hidden"

    def __init__(self) -> None:
        object.__setattr__(self, "scale", 2.0)


@pytest.mark.parametrize(
    ("estimator", "said"),
    [
        (TakesAName(), "TakesAName was given with the name `trak`, which is that of Trak"),
        (WithHiddenParameters(), "parameters scale, which are no fields of a dataclass"),
        ("treak", "Did you mean `trak`"),
    ],
)
def test_an_estimator_whose_rows_tables_could_not_name_is_refused(
    copy: Path, estimator: str | Estimator, said: str
) -> None:
    before = (copy / "influence/test/groups.parquet").stat().st_mtime_ns
    with pytest.raises(InputError, match=said):
        aitia.attribute(copy, estimator=estimator, workers=0)
    assert (copy / "influence/test/groups.parquet").stat().st_mtime_ns == before
