"""Run folders and task files that somebody sent: small on the disk, huge when read. Each is refused in one line, with
exit code 2, within a minute of a processor and with little more memory than an ordinary call takes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from bombs import GIB, PARQUET, aliases, decimal_bomb, failing_plays, limited, sent_run, task_text
from command_line import Finished
from fresh import Ended
from safetensors.torch import save_file

from aitia.datasets.errors import RunFolderError
from aitia.workflows.stages.reporting.failures import failing_steps

pytestmark = pytest.mark.slow
LOG_LINE = re.compile(r"\d\d:\d\d:\d\d (attribute small-outer: trak, |check .*: reading the task )")
PEAK = 1.5 * GIB  # an ordinary call of the command line takes 0.5


def refused(ended: Ended, *parts: str) -> None:
    lines = [line for line in ended.told.strip().splitlines() if not LOG_LINE.match(line)]
    assert ended.code == 2, ended.told[-2000:]
    assert len(lines) == 1, lines[:5]
    assert all(part in lines[0] for part in parts), lines[0]
    assert len(lines[0]) < 2_000
    assert ended.peak < PEAK, f"{ended.peak / GIB:.1f} GiB"


@pytest.mark.parametrize("name", PARQUET)
def test_a_parquet_file_of_a_few_kilobytes_cannot_fill_the_memory(name: str, tmp_path: Path) -> None:
    run, other = sent_run(tmp_path / "sent"), sent_run(tmp_path / "other")
    table = run / "evaluations/test/episodes.parquet"
    PARQUET[name](table)
    assert table.stat().st_size < 40_000
    ended = limited("compare", run, other, "--out", tmp_path / "out")
    refused(ended, "episodes.parquet takes 13", "at most 4 GiB", "AITIA_READ_GIB")


def with_evaluation(run: Path, **changes: int) -> Path:
    values = json.loads((run / "run.json").read_text(encoding="utf-8"))
    values["task"]["evaluation"] |= changes
    (run / "run.json").write_text(json.dumps(values), encoding="utf-8")
    return run


def test_decimals_are_counted_as_wide_as_they_are_in_memory(tmp_path: Path) -> None:
    run, other = (with_evaluation(sent_run(tmp_path / name), episodes=1_000_000, repeats=1) for name in ("a", "b"))
    decimal_bomb(run / "evaluations/test/episodes.parquet")
    refused(
        limited("compare", run, other, "--out", tmp_path / "out"), "episodes.parquet takes 4.7 GiB", "at most 4 GiB"
    )


@pytest.mark.parametrize(
    ("evaluation", "parts"),
    [
        ({}, ("has 900,000 plays of one agent, expected at most 96 by `evaluation`",)),
        ({"episodes": 1_000_000, "repeats": 1}, ("row by row, takes ", "at most 0.5 GiB", "AITIA_READ_GIB")),
    ],
    ids=["more than the task has", "as many as the task says"],
)
def test_rows_that_become_python_values_have_a_bound(
    evaluation: dict[str, int], parts: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AITIA_READ_GIB", "0.5")  # the table itself takes less
    runs = [with_evaluation(sent_run(tmp_path / name), **evaluation) for name in ("sent", "other")]
    for run in runs:
        failing_plays(run / "evaluations/test/episodes.parquet", 900_000)
    refused(limited("compare", *runs, "--out", tmp_path / "out"), "episodes.parquet", *parts)


def test_a_play_is_there_once(tmp_path: Path, aitia_command: Callable[..., Finished]) -> None:
    """Plays are paired: a thousand of the same in two runs would be a million pairs."""
    runs = [sent_run(tmp_path / name) for name in ("sent", "other")]
    for run in runs:
        path = run / "evaluations/test/episodes.parquet"
        failing_plays(path, 2)
        table = pq.read_table(path)
        pq.write_table(pa.concat_tables([table, table]), path)
    done = aitia_command("compare", *runs, "--out", tmp_path / "out")
    assert done.code == 2 and "has a play twice" in done.err


@pytest.mark.parametrize("steps", [100_000, 100_001])
def test_a_failing_episode_has_no_more_steps_than_one_that_is_played(steps: int) -> None:
    same = pa.repeat(pa.scalar(0, pa.int32()), steps)
    table = pa.table({"seed": same, "episode": same, "t": pa.array(range(steps), pa.int32())})
    if steps == 100_000:
        assert failing_steps(table, ["0-0"])["0-0"].num_rows == steps
    else:
        with pytest.raises(RunFolderError, match="has 100,001 steps, expected at most 100,000"):
            failing_steps(table, ["0-0"])


def test_a_training_cannot_claim_millions_of_windows(tmp_path: Path) -> None:
    run = sent_run(tmp_path / "run")
    save_file({"w": torch.zeros(1)}, run / "checkpoints/seed=0/final.safetensors", {"windows": "5000000"})
    refused(limited("attribute", run, "--workers", 0, "--trust"), "windows are '5000000'", "up to 1,000,000")


def test_windows_that_are_not_there_are_found_missing_without_a_list_of_all(tmp_path: Path) -> None:
    run = sent_run(tmp_path / "run")
    save_file({"w": torch.zeros(1)}, run / "checkpoints/seed=0/final.safetensors", {"windows": "999999"})
    refused(limited("attribute", run, "--workers", 0, "--trust"), "window=00000.parquet is missing")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        (task_text(seeds=30_000_000), ("seeds", "at most 10,000")),
        (task_text(aliases()), ("is not YAML", "aliases stand for more than 4 MiB")),
        (task_text("a: &a [*a]\n"), ("is not YAML", "nested more than 100 levels")),
        (task_text(f"a: {'[' * 5000}{']' * 5000}\n"), ("is not YAML", "nested more than 100 levels")),
        (task_text(f"a: [{'a, ' * 300_000}a]\n"), ("is not YAML", "more than 100,000 values")),
        (task_text(f"a: {'a' * 5_000_000}\n"), ("is not YAML", "more than 4 MiB")),
    ],
    ids=["seeds", "aliases", "cycle", "deep", "values", "bytes"],
)
def test_a_task_file_cannot_fill_the_memory(text: str, parts: tuple[str, ...], tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text(text, encoding="utf-8")
    refused(limited("train", task, "--out", tmp_path / "run", "--workers", 0), "task.yaml", *parts)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[" * 200_000 + "]" * 200_000, "nested more than 100 levels"),
        ("[" + "[]," * 5_000_000 + "[]]", "the most that are read are 5,000,000"),
        ("[" + " " * 20 * 2**20 + "]", "more than 16 MiB"),
    ],
    ids=["deep", "values", "bytes"],
)
def test_a_run_json_cannot_fill_the_memory(text: str, parts: str, tmp_path: Path) -> None:
    run, other = sent_run(tmp_path / "run"), sent_run(tmp_path / "other")
    (run / "run.json").write_text(text, encoding="utf-8")
    refused(limited("compare", run, other, "--out", tmp_path / "out"), "run.json cannot be read", parts)


def with_task(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda values: {"task": {**values["task"], **changes}}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda _: {"seeds": "abc"}, "seeds: Input should be a valid array"),
        (lambda _: {"seeds": [0.5]}, "seeds.0: Input should be a valid integer"),
        (lambda _: {"task": []}, "task: Input should be an object"),
        (lambda _: {"versions": [1, 2]}, "versions: Input should be an object"),
        (lambda _: {"task_folder": {"a": 1}}, "task_folder: Input should be a valid string"),
        (lambda _: {"seconds": {"train": "long"}}, "seconds.train: Input should be a valid number"),
        (lambda _: {"seconds": {"train": float("nan")}}, "NaN, which is not JSON"),
        (lambda _: {"own_key": 1}, "own_key: Unexpected keyword argument"),
        (lambda _: {str(n): 1 for n in range(1_000)}, "and 990 more"),
        (with_task(seeds=30_000_000), "at most 10,000"),
        (with_task(evaluation={"episodes": 10**9}), "evaluation.episodes"),
        (with_task(evaluation={"episodes": 10**6, "repeats": 10**4}), "10,000,000 plays an agent"),
        (with_task(agent={"n_envs": 10**9}), "agent.n_envs"),
        (with_task(agent={"total_timesteps": 10**18}), "agent.total_timesteps"),
        (with_task(agent={"hyperparameters": {"n_steps": 10**12}}), "windows of 16,000,000,000,000 transitions"),
        (with_task(agent={"total_timesteps": 10**10, "hyperparameters": {"n_steps": 1}}), "1,000,000 windows"),
        (with_task(seeds=[2**40]), "seeds from 0 to"),
        (with_task(verify={"points": 10**9}), "verify.points"),
        (with_task(name="n" * 5_000), "name"),
        (with_task(sets={"s" * 300: {}}), "expected letters"),
    ],
)
def test_run_json_is_validated_like_a_task(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    part: str,
    tmp_path: Path,
    aitia_command: Callable[..., Finished],
) -> None:
    run = sent_run(tmp_path / "run")
    values = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps({**values, **change(values)}), encoding="utf-8")
    done = aitia_command("compare", run, sent_run(tmp_path / "other"), "--out", tmp_path / "out")
    assert done.code == 2 and len(done.err) < 8_000
    assert len(done.err.strip().splitlines()) == 1
    assert part in done.err, done.err
