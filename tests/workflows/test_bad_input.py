"""Bad input: one clear message (given, expected, what to do), exit code 2, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import Finished

from aitia.datasets.errors import NonFiniteError

Command = Callable[..., Finished]
WriteTask = Callable[..., Path]
CORRIDOR = {
    "env": "toy_environments:Corridor",
    "test_kwargs": {},
    "outcomes": {"desired": ["goal"], "misbehaved": ["pit"]},
}
BOX = {**CORRIDOR, "env": "toy_environments:Kinds", "train_kwargs": {"act": "box"}, "test_kwargs": {"act": "box"}}
TINY = {
    "total_timesteps": 256,
    "n_envs": 2,
    "hyperparameters": {"n_steps": 64, "batch_size": 64, "n_epochs": 1},
}


def refused(done: Finished, *parts: str) -> None:
    assert done.code == 2, done.err
    for part in parts:
        assert part in done.err
    assert "Traceback" not in done.err


@pytest.fixture(scope="module")
def own_run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small run for commands that begin to compute in it, and so lock it and count seconds."""
    return Path(shutil.copytree(small_run, tmp_path_factory.mktemp("own") / "run"))


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"seedz": 3}, ("unknown key `seedz`", "Did you mean `seeds`?")),
        ({"env": "aitia/NoSuchMaze-v0"}, ("NoSuchMaze", "expected a Gymnasium id or module:name")),
        ({"env": "nowhere:Env"}, ("`nowhere` cannot be imported",)),
        (
            {**CORRIDOR, "train_kwargs": {"tell": ["intended_reward"]}},
            ("outcome", "last step of every episode"),
        ),
        ({**CORRIDOR, "train_kwargs": {}, "test_kwargs": {"tell": ["intended_reward"]}}, ("outcome",)),
        ({**CORRIDOR, "train_kwargs": {"nan_after": 3}}, ("nan", "finite")),
        ({"env": "toy_environments:Spoken", "train_kwargs": {}, "test_kwargs": {}}, ("Text", "expected Discrete")),
        ({**CORRIDOR, "train_kwargs": {"components": 0.5}}, ("reward_components", "sums to")),
        (
            {**CORRIDOR, "train_kwargs": {}, "hooks": "toy_hooks:too_short"},
            ("toy_hooks:too_short", "expected 1: one"),
        ),
        ({"test_kwargs": {"size": 4, "observation": "planes"}}, ("observation_space", "test_kwargs")),
        ({"agent": {"hyperparameters": {"n_step": 5}}}, ("n_step", "`n_steps`")),
        ({"target": "no_such_module:f"}, ("no_such_module:f", "module:callable")),
        ({**CORRIDOR, "train_kwargs": {}, "target": "labels"}, ("action_labels", "`log-odds`")),
        ({"agent": {"policy": "CnnPolicy"}}, ("CnnPolicy", "images")),
        ({"agent": {"policy": "MlpPolice"}}, ("MlpPolice", "Did you mean `MlpPolicy`")),
        ({"agent": {**TINY, "hyperparameters": {"n_steps": "many"}}}, ("n_steps",)),
        ({"agent": {"algorithm": "TRPO"}}, ("`TRPO` is not supported so far", "MaskablePPO, RecurrentPPO")),
        ({"agent": {"algorithm": "MaskablePPO"}}, ("no method `action_masks`", "ActionMasker")),
        ({"agent": {"algorithm": "RecurrentPPO", "policy": "MlpPolicy"}}, ("agent.policy", "MlpLstmPolicy")),
        (
            {**BOX, "agent": {"hyperparameters": {"policy_kwargs": {"use_sde": True}}}},
            ("use_sde", "expected Gaussian actions"),
        ),
    ],
)
def test_a_bad_task_writes_nothing(
    changes: dict[str, Any],
    parts: tuple[str, ...],
    tmp_path: Path,
    write_task: WriteTask,
    aitia_command: Command,
) -> None:
    refused(
        aitia_command("run", write_task(**changes), "--out", tmp_path / "run", "--workers", 0),
        *parts,
    )
    assert not (tmp_path / "run").exists(), "something was left half-written"


def test_a_nan_reward_in_the_middle_of_training_writes_nothing(
    tmp_path: Path, write_task: WriteTask, aitia_command: Command
) -> None:
    """After more steps than the short look at the environment takes of one copy."""
    agent = {**TINY, "total_timesteps": 2048}
    task = write_task(**CORRIDOR, train_kwargs={"nan_after": 500}, agent=agent, seeds=1)
    done = aitia_command("train", task, "--out", tmp_path / "run", "--workers", 0)
    refused(done, "window 7, env 0, step 52", "reward nan", "fix the reward function")
    assert not (tmp_path / "run").exists()


def test_components_that_do_not_sum_in_one_seed_leave_the_others_whole(
    tmp_path: Path, write_task: WriteTask, aitia_command: Command
) -> None:
    task = {**CORRIDOR, "env": "toy_environments:Forgetful", "agent": TINY, "train_kwargs": {"honest": 100}}
    task["test_kwargs"] = task["train_kwargs"]
    arguments = ("--out", tmp_path / "run", "--workers", 0)
    assert aitia_command("train", write_task(**task, seeds=[0]), *arguments).code == 0
    whole = [path for folder in ("transitions", "checkpoints") for path in (tmp_path / "run" / folder).rglob("*.*")]
    before = {path: path.stat().st_mtime_ns for path in whole}
    refused(
        aitia_command("train", write_task(**task, seeds=[0, 50]), *arguments),
        "window 0, env 1, step", "reward_components", "sums to 0.5 but the reward is 1",
    )  # fmt: skip
    after = [path for folder in ("transitions", "checkpoints") for path in (tmp_path / "run" / folder).rglob("*.*")]
    assert before == {path: path.stat().st_mtime_ns for path in after}


def test_a_run_folder_of_another_task_is_left_alone(
    own_run: Path, tmp_path: Path, write_task: WriteTask, aitia_command: Command
) -> None:
    before = {path: path.stat().st_mtime_ns for path in own_run.rglob("*") if path.is_file()}
    other = write_task(train_kwargs={"size": 5, "levels": 9})
    refused(aitia_command("train", other, "--out", own_run), "another task", "train_kwargs", "another --out")
    assert before == {path: path.stat().st_mtime_ns for path in own_run.rglob("*") if path.is_file()}


def test_a_folder_that_is_not_a_run_is_left_alone(
    tmp_path: Path, write_task: WriteTask, aitia_command: Command
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    refused(aitia_command("train", write_task(), "--out", tmp_path / "mine"), "not a run folder", "new or empty")
    refused(aitia_command("evaluate", tmp_path / "mine"), "no run.json")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("lost", "command"),
    [
        ("transitions/seed=1/window=00002.parquet", "attribute"),
        ("checkpoints/seed=0/window=00001.safetensors", "attribute"),
        ("checkpoints/seed=2/final.safetensors", "evaluate"),
        ("transitions/seed=1/window=00002.parquet", "report"),
    ],
)
def test_a_missing_window_file_is_named_with_the_way_out(
    lost: str, command: str, small_run: Path, tmp_path: Path, aitia_command: Command
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    (copy / lost).unlink()
    refused(aitia_command(command, copy, "--workers", 0), lost, "is missing", "aitia train")


def test_a_truncated_file_is_named(small_run: Path, tmp_path: Path, aitia_command: Command) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    shutil.rmtree(copy / ".parts")
    shutil.rmtree(copy / "influence")
    path = copy / "transitions/seed=1/window=00002.parquet"
    path.write_bytes(path.read_bytes()[:500])
    refused(aitia_command("attribute", copy, "--workers", 0), path.name, "damaged")


def test_stages_out_of_order_say_which_comes_first(small_run: Path, tmp_path: Path, aitia_command: Command) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    shutil.rmtree(copy / "influence")
    refused(
        aitia_command("report", copy, "--workers", 0),
        "influence/test/groups.parquet is missing",
        "`aitia attribute`",
    )


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("attribute", "RUN", "--failure", "9-999"), ("9-999", "SEED-EPISODE")),
        (("attribute", "RUN", "--failure", "0-0", "9-998"), ("9-998", "SEED-EPISODE")),
        (("attribute", "RUN", "0-0"), ("--failure ID ...",)),
        (("attribute", "RUN", "--estimator", "track"), ("track", "`trak`")),
        (("evaluate", "RUN", "--set", "tset"), ("tset", "`test`")),
        (("illustrate", "RUN", "some"), ("some", "a number from 0, or all")),
        (("report", "RUN", "--workers", "-1"), ("--workers",)),
        (("attribute", "RUN", "--nonsense"), ("--nonsense",)),
        (("evaluate", "/no/such/run"), ("no run.json",)),
        (("train", "/no/such/task.yaml", "--out", "x"), ("does not exist",)),
    ],
)
def test_bad_arguments_are_said(
    arguments: tuple[str, ...], parts: tuple[str, ...], own_run: Path, aitia_command: Command
) -> None:
    refused(aitia_command(*(str(own_run) if a == "RUN" else a for a in arguments)), *parts)


def test_an_unreachable_scheduler_is_said(
    small_run: Path, tmp_path: Path, aitia_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aitia.workflows.workers.cluster._CONNECT_SECONDS", 1)
    shutil.copytree(small_run, tmp_path / "copy")
    refused(
        aitia_command("illustrate", tmp_path / "copy", "all", "--scheduler", "tcp://127.0.0.1:9"),
        "tcp://127.0.0.1:9",
        "no Dask scheduler",
    )


def test_other_failures_end_with_exit_code_1(
    own_run: Path, aitia_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object, **options: object) -> None:
        raise NonFiniteError("window=00003, row 7: the gradient of log pi is not finite")

    monkeypatch.setattr("aitia.workflows.commands.attribute", broken)
    done = aitia_command("attribute", own_run)
    assert done.code == 1 and "row 7" in done.err


@pytest.mark.slow
def test_zero_failures_give_a_good_report_and_exit_code_0(
    tmp_path: Path, write_task: WriteTask, aitia_command: Command
) -> None:
    """Test levels as in training: the agents reach the arrow, and there is nothing to attribute."""
    maze = {"size": 3, "levels": 20}
    task = write_task(train_kwargs=maze, test_kwargs=maze, sets={"again": {**maze, "level_seed": 5}}, seeds=5)
    done = aitia_command("run", task, "--out", tmp_path / "run", "--workers", 0)
    assert done.code == 0 and "aligned" in done.out
    summary = json.loads((tmp_path / "run/reports/test/summary.json").read_text())
    assert (summary["verdict"], summary["rule"], summary["failures"]) == ("aligned", 3, 0)
    assert summary["trainings"] == 5 and summary["verdict_share"] is None
    assert json.loads((tmp_path / "run/reports/test/verdicts.json").read_text()) == []
    page = (tmp_path / "run/reports/test/index.html").read_text()
    assert "No failures" in page and "aligned" in page
    other = json.loads((tmp_path / "run/reports/again/summary.json").read_text())
    assert other["verdict"] == "aligned", "a further evaluation set has its own report"


@pytest.mark.slow
def test_an_environment_that_tells_little_gets_an_honest_report(
    tmp_path: Path, write_task: WriteTask, aitia_command: Command
) -> None:
    """Only `outcome`: no intended reward, no labels, no context, no pictures; each absence is said in words."""
    tells = {"tell": ["outcome"], "goal": "<script>alert(1)</script>"}
    task = write_task(
        env="toy_environments:Corridor", train_kwargs=tells, test_kwargs=tells,
        outcomes={"desired": ["pit"], "misbehaved": [tells["goal"]]}, seeds=5,
    )  # fmt: skip
    done = aitia_command("run", task, "--out", tmp_path / "run", "--workers", 0)
    assert done.code == 0, done.err
    summary = json.loads((tmp_path / "run/reports/test/summary.json").read_text())
    assert (summary["verdict"], summary["rule"]) == ("undetermined", 5)
    page = (tmp_path / "run/reports/test/index.html").read_text()
    for words in (
        "no context",
        "no action labels",
        "no untampered reward",
        "no intended reward",
        "does not draw",
    ):
        assert words in page
    for path in [tmp_path / "run/reports/test/index.html", *(tmp_path / "run/reports/test/failures").glob("*.html")]:
        text = path.read_text()
        assert "<script>" not in text and "&lt;script&gt;" in text, "text from environments must be escaped"
