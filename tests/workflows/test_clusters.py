"""A set whose failures have two kinds of influence profile, from the tables to verdicts, orders, edits and pages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aitia.datasets.schema import metadata_of, with_metadata
from aitia.training.edits.file import read_edits
from aitia.workflows import commands

pytestmark = pytest.mark.slow


def split_by_episode(run: Path) -> None:
    """Give failures of even and odd episodes influence from different halves of the groups, in every seed."""
    path = run / "influence" / "test" / "groups.parquet"
    table = pq.read_table(path)
    failure, group = (table[name].cast(pa.string()).to_pylist() for name in ("failure", "group"))
    names = {name: index for index, name in enumerate(sorted(set(group)))}
    drives = [int(f.rpartition("-")[2]) % 2 == names[g] % 2 for f, g in zip(failure, group, strict=True)]
    effect = -np.where(drives, 1.0 + np.array([names[g] for g in group]) / len(names), 0.0)
    table = table.set_column(table.column_names.index("effect"), "effect", pa.array(effect))
    pq.write_table(with_metadata(table, metadata_of(table.schema)), path)


@pytest.fixture(scope="module")
def split_run(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("split") / "run"
    shutil.copytree(small_run, run)
    split_by_episode(run)
    commands.verify(run, workers=0)
    commands.report(run, workers=0)
    return run


def test_each_cluster_has_its_own_order_and_the_rest_is_shared(small_run: Path, split_run: Path) -> None:
    masks = pq.read_table(split_run / "bank" / "test" / "masks.parquet").to_pylist()
    orders = {
        cluster: {tuple(row["groups"]) for row in masks if row["order"] == "attribution" and row["cluster"] == cluster}
        for cluster in (0, 1)
    }
    assert all(orders.values()) and not orders[0] & orders[1], "they suspect different halves of the groups"
    assert {row["cluster"] for row in masks if row["order"] != "attribution"} == {None}
    assert any(row["order"] == "attribution" and row["cluster"] is None for row in masks), "the whole set's own"
    before = pq.read_table(small_run / "bank" / "test" / "masks.parquet").to_pylist()
    shared = [{row["member"] for row in rows if row["order"] != "attribution"} for rows in (before, masks)]
    assert shared[0] == shared[1]
    assert len({row["member"] for row in masks}) == len(masks)


def test_failures_inherit_the_verdict_of_their_own_cluster(split_run: Path) -> None:
    reports = split_run / "reports" / "test"
    entries, summary = (json.loads((reports / name).read_text()) for name in ("verdicts.json", "summary.json"))
    assert {(entry["cluster"], entry["episode"] % 2) for entry in entries} in ({(0, 0), (1, 1)}, {(0, 1), (1, 0)})
    assert [found["failures"] for found in summary["clusters"]] == [
        sum(entry["cluster"] == number for entry in entries) for number in (0, 1)
    ]
    for entry in entries:
        found = summary["clusters"][entry["cluster"]]
        assert (entry["verdict"], entry["rule"], entry["outer_share"]) == (
            found["verdict"], found["rule"], found["outer_share"],
        )  # fmt: skip
    assert summary["verdict"] == "outer", "both are: correcting everything removes both"
    for number in (0, 1):
        assert (reports / "clusters" / f"{number}.html").is_file()
        assert (read_edits(reports / f"edits-{number}.yaml").source or {})["cluster"] == str(number)
    assert "cluster" not in (read_edits(reports / "edits.yaml").source or {}), "of the whole set"


def test_rates_of_a_cluster_are_of_selected_episodes(split_run: Path) -> None:
    """Recount of one number: m0 of cluster 0, from the plays themselves."""
    reports = split_run / "reports" / "test"
    entries, summary = (json.loads((reports / name).read_text()) for name in ("verdicts.json", "summary.json"))
    plays = pq.read_table(split_run / "evaluations" / "test" / "episodes.parquet").to_pylist()
    rates = []
    for seed in range(5):
        chosen = {entry["episode"] for entry in entries if entry["cluster"] == 0 and entry["seed"] != seed}
        outcomes = [
            play["outcome"]
            for play in plays
            if play["seed"] == seed and play["part"] == "test" and play["repeat"] and play["episode"] in chosen
        ]
        corner, arrow = outcomes.count("corner"), outcomes.count("arrow")
        rates.append(corner / (corner + arrow))
    found = summary["clusters"][0]["misbehaviour_rate"]["uncorrected"]["value"]
    assert found == pytest.approx(float(np.mean(rates)))


def test_clusters_of_before_leave_nothing_behind(split_run: Path, small_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(split_run, run)
    shutil.copy(small_run / "influence" / "test" / "groups.parquet", run / "influence" / "test" / "groups.parquet")
    commands.verify(run, workers=0)
    commands.report(run, workers=0)
    both = [folder / "reports" / "test" for folder in (run, small_run)]
    for pattern in ("edits*.yaml", "clusters/*.html", "failures/*.html"):
        found = [sorted(str(path.relative_to(reports)) for path in reports.glob(pattern)) for reports in both]
        assert found[0] == found[1], pattern
    summaries = [json.loads((reports / "summary.json").read_text()) for reports in both]
    for summary in summaries:
        del summary["seconds"]
    assert summaries[0] == summaries[1]
