"""Two runs beside each other, before and after a fix: paired plays, paired rates, what differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...datasets.bank import ensemble_rates
from ...datasets.files.remote import exist, relative_link
from ...datasets.files.store import write_json, write_table
from ...datasets.outcomes import Outcomes, PlayCounts, SeedRates
from ...datasets.schema import RANDOM_POLICY_SEED, failure_id
from ...datasets.words import counted
from ...training.edits.file import Edits
from ..statistics import Interval, mean_interval, rate_interval
from .write import write_page

Change = Literal["no_longer", "new", "still", "neither"]
KEYS = ("seed", "episode", "repeat")
RATES = {
    "misbehaviour_rate": ("misbehaviour", "Misbehaviour, of competent plays,"),
    "competence": ("competent", "Competence, of all plays,"),
    "desired_rate": ("desired", "Desired behaviour, of all plays,"),
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
        given = self.task.get("edits")
        return None if given is None else str(Edits.model_validate(given))


def pair_plays(before: pa.Table, after: pa.Table, declared: Outcomes) -> pa.Table:
    """Pair the agents' test plays of two episodes tables by seed, episode and repeat.

    Returns:
        One row a pair, sorted: `seed, episode, repeat, context_a, context_b, outcome_a, outcome_b, change`. `change`:
        misbehaved in A only (no_longer), in B only (new), in both (still), in neither. Plays without a partner are
        left out.
    """
    sides = []
    for table, side in ((before, "a"), (after, "b")):
        plays = table.filter((pc.field("part") == "test") & (pc.field("seed") != RANDOM_POLICY_SEED))
        told = {f"{name}_{side}": plays[name] for name in ("context", "outcome")}
        sides.append(pa.table({**{key: plays[key] for key in KEYS}, **told}))
    pairs = sides[0].join(sides[1], list(KEYS), join_type="inner").sort_by([(key, "ascending") for key in KEYS])
    pairs = pairs.select([*KEYS, "context_a", "context_b", "outcome_a", "outcome_b"])
    failed = [np.isin(pairs[name].to_numpy(), declared.misbehaved) for name in ("outcome_a", "outcome_b")]
    kinds: dict[tuple[bool, bool], Change] = {
        (True, False): "no_longer", (False, True): "new", (True, True): "still", (False, False): "neither",
    }  # fmt: skip
    change = [kinds[a, b] for a, b in zip(*(column.tolist() for column in failed), strict=True)]
    return pairs.append_column("change", pa.array(change, pa.string()))


def paired_rates(before: Sequence[SeedRates], after: Sequence[SeedRates]) -> dict[str, dict[str, Any]]:
    """Return each rate in both runs and their difference, B minus A, with 95% t-intervals over paired seeds.

    `change`: fell or rose, where the interval of the difference is clear of zero; else None.

    Args:
        before, after: rates of the same seeds in the same order. A seed without a competent play has no misbehaviour
            rate and leaves that difference.
    """
    found = {}
    for name, (field, _) in RATES.items():
        pairs = [(getattr(a, field), getattr(b, field)) for a, b in zip(before, after, strict=True)]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        change = mean_interval([b - a for a, b in both])
        found[name] = {
            "a": rate_interval([a for a, _ in pairs if a is not None]).as_dict(),
            "b": rate_interval([b for _, b in pairs if b is not None]).as_dict(),
            "difference": change.as_dict(),
            "seeds": len(both),
            "change": _way(change),
        }
    return found


def _way(change: Interval) -> str | None:
    """Return whether a rate `fell` or `rose`; None where the interval holds zero or is unbounded."""
    if change.low is None or change.high is None:
        return None
    return "fell" if change.high < 0 else "rose" if change.low > 0 else None


def compared_failures(pairs: pa.Table, declared: Outcomes) -> list[dict[str, Any]]:
    """Return what became of each failure of either run: first plays that misbehaved in A, in B, or in both.

    `rate_a, rate_b`: misbehaviour among the competent repeats of that agent and episode; None without any.
    """
    repeats: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in pairs.to_pylist():
        repeats.setdefault((row["seed"], row["episode"]), []).append(row)
    return [
        {
            "failure": failure_id(seed, episode),
            "seed": seed,
            "episode": episode,
            "context": rows[0]["context_a"],
            "change": rows[0]["change"],
            "outcome_a": rows[0]["outcome_a"],
            "outcome_b": rows[0]["outcome_b"],
            **{
                f"rate_{side}": PlayCounts.of([r[f"outcome_{side}"] for r in rows], declared).misbehaviour
                for side in "ab"
            },
        }
        for (seed, episode), rows in repeats.items()
        if rows[0]["repeat"] == 0 and rows[0]["change"] != "neither"
    ]


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
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        elif value != {}:
            found[f"{prefix}{key}"] = value
    return found


def compare_runs(before: ComparedRun, after: ComparedRun, set_name: str) -> tuple[dict[str, Any], pa.Table]:
    """Return the contents of `compare.json`, and the paired plays.

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
    found: dict[str, Any] = {
        "set": set_name,
        "a": _identity(before),
        "b": _identity(after),
        "seeds": {
            "paired": shared,
            "only_a": sorted(before.seeds - after.seeds),
            "only_b": sorted(after.seeds - before.seeds),
        },
        "rates": rates,
        "failures": {"counts": _counts(entries, declared), "entries": entries},
        "plays": {"pairs": pairs.num_rows, **_tally(pairs["change"].to_pylist())},
        "other_contexts": _other_contexts(pairs),
        "task_differences": task_differences(before, after),
        "version_differences": differences(before.versions, after.versions),
    }
    return {**found, "words": _in_words(found)}, pairs


def _identity(run: ComparedRun) -> dict[str, Any]:
    verdict = None if run.summary is None else {key: run.summary[key] for key in _OF_VERDICT}
    return {"run": run.name, "task": run.task["name"], "edits": run.edits, "verdict": verdict}


def _tally(changes: Sequence[str]) -> dict[str, int]:
    return {name: changes.count(name) for name in get_args(Change)}


def _counts(entries: Sequence[Mapping[str, Any]], declared: Outcomes) -> dict[str, int]:
    """Return how many failures each run has, and what became of them."""
    counts = _tally([entry["change"] for entry in entries])
    gone = [entry["outcome_b"] for entry in entries if entry["change"] == "no_longer"]
    return {
        "a": counts["no_longer"] + counts["still"],
        "b": counts["new"] + counts["still"],
        "no_longer": counts["no_longer"],
        "no_longer_desired": sum(outcome in declared.desired for outcome in gone),
        "still": counts["still"],
        "new": counts["new"],
    }


def _other_contexts(pairs: pa.Table) -> int:
    """Return how many pairs of plays tell different contexts: they were not the same episode."""
    first, second = (pairs[name].to_pylist() for name in ("context_a", "context_b"))
    return sum(a != b for a, b in zip(first, second, strict=True))


def _in_words(found: Mapping[str, Any]) -> list[str]:
    """Say what changed, the misbehaviour first."""
    told = []
    for name, (_, text) in RATES.items():
        rate = found["rates"][name]
        told.append(f"{text} {_moved(rate)}.")
    counts = found["failures"]["counts"]
    told.append(
        f"Of {counted(counts['a'], 'failure')} of A, {counts['no_longer']} are none in B "
        f"({counts['no_longer_desired']} of them "
        f"end as desired) and {counts['still']} still are; {counts['new']} are new in B."
    )
    return told


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
    folder: Path, runs: Sequence[ComparedRun], found: Mapping[str, Any], pairs: pa.Table,
    provenance: Mapping[str, str], shown_in: Path | None = None,
) -> None:  # fmt: skip
    """Write `compare.json`, `pairs.parquet` and `index.html`.

    Args:
        folder: where to.
        runs: A and B.
        found, pairs: of `compare_runs`.
        provenance: versions, git SHA and time of the comparison.
        shown_in: where the folder is going to be, from which links lead to the reports of both runs; None: it stays.
    """
    write_json(folder / "compare.json", found)
    write_table(folder / "pairs.parquet", pairs)
    entries = found["failures"]["entries"]
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
        found=found, entries=entries, links=links, env=runs[0].task["env"],
        points=lambda change: in_points(Interval(**change)),
    )  # fmt: skip
