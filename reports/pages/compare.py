"""The page of two runs next to each other, before and after a fix: paired episodes and rates, what else differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...datasets.bank import ensemble_rates
from ...datasets.files.remote import exist, relative_link
from ...datasets.files.store import write_json, write_table
from ...datasets.outcomes import Outcomes
from ...datasets.words import counted
from ...training.edits.file import Edits
from ..measures.paired import compared_failures, failure_counts, other_contexts, pair_plays, paired_rates, tally
from ..statistics import Interval
from .write import write_page

_RATES = {
    "misbehaviour_rate": "Misbehaviour, of competent plays,",
    "competence": "Competence, of all plays,",
    "desired_rate": "Desired behaviour, of all plays,",
}
_OF_VERDICT = ("verdict", "rule", "basis", "failures", "misbehaviour_rate", "outer_share", "ease", "reasons")


@dataclass(frozen=True)
class ComparedRun:
    """One of the two runs.

    Attributes:
        name: of its folder.
        task: as resolved.
        versions: of the packages it was made with, and `git_sha`.
        episodes: the episodes table of the evaluation set.
        summary: its `summary.json`; None before a report.
        reports: the folder of its report.
        changed: tables of it whose contents are not those that aitia wrote.
    """

    name: str
    task: Mapping[str, Any]
    versions: Mapping[str, Any]
    episodes: pa.Table
    summary: Mapping[str, Any] | None
    reports: Path
    changed: Sequence[str] = ()

    @property
    def seeds(self) -> set[int]:
        """Seeds of the task that were evaluated."""
        return set(self.episodes["seed"].to_pylist()) & set(self.task["seeds"])

    @property
    def edits(self) -> str | None:
        """In words, the corrected rewards that it was trained with; None: rewards as paid."""
        edits = self.task.get("edits")
        return None if edits is None else str(Edits.model_validate(edits))


def task_differences(before: ComparedRun, after: ComparedRun) -> list[dict[str, Any]]:
    """Return what differs between the tasks as `{key, a, b}`, nested keys joined by dots; edits in words."""
    return differences(*({**_flat({**run.task, "edits": None}), "edits": run.edits} for run in (before, after)))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the keys whose values differ, as `{key, a, b}`; a key that is absent is None."""
    keys = dict.fromkeys([*before, *after])
    return [
        {"key": key, "a": before.get(key), "b": after.get(key)} for key in keys if before.get(key) != after.get(key)
    ]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif value != {}:
            flat[f"{prefix}{key}"] = value
    return flat


def compare_runs(before: ComparedRun, after: ComparedRun, set_name: str) -> tuple[dict[str, Any], pa.Table]:
    """Return the contents of `compare.json`, and the paired episodes played.

    Args:
        before, after: runs A and B: the same outcomes and evaluation episodes, and at least one seed in common.
        set_name: the evaluation set.
    """
    declared = Outcomes.model_validate(before.task["outcomes"])
    shared = sorted(before.seeds & after.seeds)
    mine = [run.episodes.filter(pc.field("seed").isin(shared)) for run in (before, after)]
    pairs = pair_plays(mine[0], mine[1], declared)
    rates = paired_rates(*(ensemble_rates(table, declared) for table in mine))
    entries = compared_failures(pairs, declared)
    comparison: dict[str, Any] = {
        "set": set_name,
        "a": _identity(before),
        "b": _identity(after),
        "seeds": {
            "paired": shared,
            "only_a": sorted(before.seeds - after.seeds),
            "only_b": sorted(after.seeds - before.seeds),
        },
        "rates": rates,
        "failures": {"counts": failure_counts(entries, declared), "entries": entries},
        "plays": {"pairs": pairs.num_rows, **tally(pairs["change"].to_pylist())},
        "other_contexts": other_contexts(pairs),
        "task_differences": task_differences(before, after),
        "version_differences": differences(before.versions, after.versions),
    }
    return {**comparison, "words": _in_words(comparison)}, pairs


def _identity(run: ComparedRun) -> dict[str, Any]:
    verdict = None if run.summary is None else {key: run.summary[key] for key in _OF_VERDICT}
    return {"run": run.name, "task": run.task["name"], "edits": run.edits, "verdict": verdict}


def _in_words(comparison: Mapping[str, Any]) -> list[str]:
    """Say what changed, the misbehaviour first."""
    counts = comparison["failures"]["counts"]
    return [
        *(f"{text} {_moved(comparison['rates'][name])}." for name, text in _RATES.items()),
        f"Of {counted(counts['a'], 'failure')} of A, {counts['no_longer']} are none in B "
        f"({counts['no_longer_desired']} of them "
        f"end as desired) and {counts['still']} still are; {counts['new']} are new in B.",
    ]


def _moved(rate: Mapping[str, Any]) -> str:
    before, after, change = (Interval(**rate[name]) for name in ("a", "b", "difference"))
    ends = f"{before.as_percent()} in A, {after.as_percent()} in B"
    if change.value is None:
        return f"could not be compared: {ends}"
    if change.low is None or change.high is None:
        return f"was {ends}; one paired seed gives no interval of the difference"
    way = rate["change"] or ("did not change" if change.low == change.high == 0 else "did not clearly change")
    return f"{way}: {ends}, {in_points(change)} over {counted(rate['seeds'], 'paired seed')}"


def in_points(change: Interval) -> str:
    """Write a difference of rates in percentage points: `-85 points [-89, -81]`."""
    if change.value is None:
        return "not measured"
    value, low, high = (None if v is None else f"{round(100 * v):+d}".replace("+0", "0") for v in change)
    return f"{value} points " + ("(no interval)" if low is None else f"[{low}, {high}]")


def write_comparison(
    folder: Path, runs: Sequence[ComparedRun], comparison: Mapping[str, Any], pairs: pa.Table,
    provenance: Mapping[str, str], shown_in: Path | None = None,
) -> None:  # fmt: skip
    """Write `compare.json`, `pairs.parquet` and `index.html`.

    Args:
        folder: where to.
        runs: A and B.
        comparison, pairs: of `compare_runs`.
        provenance: versions, git SHA and time of the comparison.
        shown_in: where the folder is going to be, from which links lead to the reports of both runs; None: it stays.
    """
    write_json(folder / "compare.json", comparison)
    write_table(folder / "pairs.parquet", pairs)
    entries = comparison["failures"]["entries"]
    pages = [{None: run.reports / "index.html"} for run in runs]
    for mine, run in zip(pages, runs, strict=True):
        mine |= {entry["failure"]: run.reports / "failures" / f"{entry['failure']}.html" for entry in entries}
    links = [
        {
            name: relative_link(path, shown_in or folder)
            for (name, path), there in zip(mine.items(), exist(list(mine.values())), strict=True)
            if there
        }
        for mine in pages
    ]
    changed = [f"{run.name}/{name}" for run in runs for name in run.changed]
    write_page(
        folder, "index.html", "compare.html", page={"provenance": provenance, "changed": changed},
        found=comparison, entries=entries, links=links, env=runs[0].task["env"],
        points=lambda change: in_points(Interval(**change)),
    )  # fmt: skip
