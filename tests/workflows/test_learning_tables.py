"""What an evaluation and a bank keep for the pages: rewards and probabilities of steps, outcomes over training."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from aitia.datasets.arrays import decode_actions
from aitia.datasets.files.store import RunFolder, read_table
from aitia.datasets.plays import joined
from aitia.datasets.schema import metadata_of, seed_and_episode
from aitia.workflows import commands
from aitia.workflows.stages.reporting.failures import failing_steps

pytestmark = pytest.mark.slow


def test_steps_hold_every_reward_and_the_probability_of_every_action(small_run: Path) -> None:
    steps = pq.read_table(small_run / "evaluations/test/steps.parquet")
    said = np.array(steps["probabilities"].to_pylist())
    np.testing.assert_allclose(said.sum(axis=1), 1.0, atol=1e-6)
    taken = np.take_along_axis(said, decode_actions(steps)[:, None], axis=1)[:, 0]
    np.testing.assert_allclose(np.log(taken), steps["log_prob"].to_numpy(), atol=1e-6)
    sums = steps.group_by(["seed", "episode"]).aggregate([("reward", "sum")]).to_pylist()
    episodes = pq.read_table(small_run / "evaluations/test/episodes.parquet")
    first = episodes.filter((pc.field("part") == "test") & (pc.field("repeat") == 0)).to_pylist()
    paid = {(row["seed"], row["episode"]): row["reward"] for row in first}
    assert {(row["seed"], row["episode"]): row["reward_sum"] for row in sums} == pytest.approx(paid)


def test_the_steps_of_a_failure_are_its_own_in_their_order(small_run: Path) -> None:
    ids = [path.stem for path in (small_run / "reports/test/failures").glob("*.html")]
    steps = read_table(RunFolder(small_run).evaluation_path("test", "steps"))
    for name, table in failing_steps(steps, ids).items():
        seed, episode = seed_and_episode(name)
        assert set(table["seed"].to_pylist()) == {seed} and set(table["episode"].to_pylist()) == {episode}
        assert table["t"].to_pylist() == list(range(table.num_rows)) and "actions" in metadata_of(table.schema)


def test_the_bank_keeps_how_training_episodes_ended_and_the_index_page_shows_it(small_run: Path) -> None:
    found = pq.read_table(small_run / "bank/test/learning.parquet")
    masks = pq.read_table(small_run / "bank/test/masks.parquet").to_pylist()
    assert set(found["member"].to_pylist()) == {row["member"] for row in masks if row["order"] != "none"}
    assert set(found["outcome"].to_pylist()) <= {"arrow", "corner", "timeout"}
    rows = (small_run / "reports/test/assets/learning.csv").read_text()
    assert "all rewards corrected" in rows and "rewards as paid" in rows
    assert 'id="learning"' in (small_run / "reports/test/index.html").read_text()


def test_commands_on_the_pages_name_the_run_and_its_task_file(small_run: Path) -> None:
    found = re.search(r'class="command".*?>(.*?)</pre>', (small_run / "reports/test/index.html").read_text(), re.S)
    assert found is not None
    task = small_run.parent / "task.yaml"
    assert found[1].startswith(f"aitia train {task} --edits {small_run}/reports/test/edits.yaml --out {small_run}-")


def without(path: Path, *columns: str) -> None:
    table = pq.read_table(path)
    pq.write_table(table.drop_columns([name for name in columns if name in table.column_names]), path)


def test_a_run_of_an_earlier_version_is_reported_and_grows(
    small_run: Path, tmp_path: Path, write_task: Callable[..., Path]
) -> None:
    """Steps without rewards and probabilities, a bank without outcomes over training, nothing kept of the record."""
    run = tmp_path / "run"
    shutil.copytree(small_run, run)
    for path in (*run.glob("evaluations/*/steps.parquet"), *run.glob(".parts/evaluations/*/*.steps.parquet")):
        without(path, "reward", "probabilities")
    (run / "bank/test/learning.parquet").unlink()
    shutil.rmtree(run / ".parts/learning")
    summary = commands.report(run)
    assert summary["verdict"] == "outer" and summary["learning"]
    page = (run / "reports/test/index.html").read_text()
    assert "an earlier version trained them" in page
    failure = next((run / "reports/test/failures").glob("*.html")).read_text()
    assert "Rewards and probabilities were not kept" in failure
    task = write_task(evaluation={"episodes": 14, "repeats": 4})
    commands.train(task, run, workers=0)
    commands.evaluate(run, workers=0)
    steps = pq.read_table(run / "evaluations/test/steps.parquet").to_pylist()
    assert all((row["reward"] is None) == (row["episode"] < 12) for row in steps)


def test_tables_of_two_versions_are_joined_with_what_one_lacks_null() -> None:
    old, new = pa.table({"a": [1]}).replace_schema_metadata({"k": "old"}), pa.table({"a": [2], "b": [3.0]})
    found = joined([old, new])
    assert found.to_pylist() == [{"a": 1, "b": None}, {"a": 2, "b": 3.0}]
    assert metadata_of(found.schema) == {"k": "old"}
