"""Two finished runs next to each other, before and after a fix."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...datasets.errors import InputError, RunFolderError
from ...datasets.files.checksums import check
from ...datasets.files.rebuilt import foreign, rebuilt
from ...datasets.files.remote import as_path, is_inside
from ...datasets.files.store import RunFolder, require_rows
from ...datasets.files.typed import Part, read_model
from ...datasets.manifest import installed_versions, source_git_sha
from ...datasets.words import counted
from ...reports.measures.paired import KEYS
from ...reports.pages.compare import ComparedRun, compare_runs, write_comparison
from ...training.agents.play import EvaluationSpec
from ..runs.run import Run, open_run

_OWN = ("index.html", "compare.json", "pairs.parquet", "assets")


def comparison_folder(run_a: str | Path, run_b: str | Path, set_name: str, out: str | Path | None) -> Path:
    """Return where a comparison is written: `out`, or inside run B's reports under the name of run A."""
    if out is not None:
        return as_path(out)
    return RunFolder(as_path(run_b)).reports_folder(set_name) / "compare" / as_path(run_a).resolve().name


def compare_stage(run_a: str | Path, run_b: str | Path, set_name: str, out: str | Path | None) -> dict[str, Any]:
    """Compare two runs on an evaluation set; return the contents of `compare.json`.

    Raises:
        InputError: they cannot be compared (says what differs), or the folder holds something else.
        RunFolderError: one of them is no run, or was not evaluated.
    """
    opened = open_run(run_a), open_run(run_b)
    _require_same_question(*opened, set_name)
    runs = [_compared(run, set_name) for run in opened]
    if not runs[0].seeds & runs[1].seeds:
        raise InputError(
            f"the runs have no evaluated seed in common (A: {sorted(runs[0].seeds)}, B: {sorted(runs[1].seeds)}); "
            "plays are paired by seed: expected at least one, better five"
        )
    folder = _free_folder(opened[1], comparison_folder(opened[0].folder.root, opened[1].folder.root, set_name, out))
    found, pairs = compare_runs(runs[0], runs[1], set_name)
    _require_all_pairs(opened[0].task.evaluation, len(found["seeds"]["paired"]), pairs)
    provenance = {
        **installed_versions(),
        "git_sha": source_git_sha() or "unknown",
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    with rebuilt(folder, _OWN, last=("compare.json", "index.html")) as fresh:
        write_comparison(fresh, runs, found, pairs, provenance, shown_in=folder)
    return found


def _free_folder(after: Run, folder: Path) -> Path:
    """Return a folder where a comparison may be written.

    Raises:
        InputError: it holds something else, or is inside run B only by a link.
    """
    place = folder.resolve()
    if place != folder.absolute() and is_inside(folder, after.folder.root):
        raise InputError(f"{folder} is a link, or lies behind one, to {place}; expected the run's own: remove it")
    if place.exists() and not _is_free(place):
        raise InputError(
            f"--out {place} was given, which exists and is no comparison: expected a new or empty folder, or one that "
            "`aitia compare` has written"
        )
    return place


def _is_free(folder: Path) -> bool:
    """Return whether a folder is empty, or a comparison and nothing else."""
    if not folder.is_dir() or foreign(folder, _OWN) is not None:
        return False
    return not any(folder.iterdir()) or (folder / "compare.json").exists()


def _require_same_question(before: Run, after: Run, set_name: str) -> None:
    """Check that both runs were asked the same: environment, outcomes, and the episodes of the evaluation set."""

    def asked(run: Run) -> dict[str, Any]:
        outcomes = {kind: sorted(names) for kind, names in run.task.outcomes.model_dump().items()}
        return {
            "env": run.task.env,
            f"arguments of the set `{set_name}`": dict(run.task.evaluation_env(set_name).kwargs),
            "outcomes": outcomes,
            "evaluation": run.task.evaluation.model_dump(),
        }

    first, second = asked(before), asked(after)
    differing = [f"{key}: {first[key]} in A, {second[key]} in B" for key in first if first[key] != second[key]]
    if differing:
        raise InputError(
            f"{before.folder.root} (A) and {after.folder.root} (B) cannot be compared: {'; '.join(differing)}. "
            "Expected the same environment, outcomes and evaluation episodes; what training does may differ"
        )


class _Interval(Part):
    value: float | None
    low: float | None
    high: float | None


class _Rates(Part):
    uncorrected: _Interval
    all_corrected: _Interval


class _Summary(Part):
    """What a comparison reads of `summary.json`."""

    verdict: str
    rule: int
    basis: str | None
    failures: int
    misbehaviour_rate: _Rates
    outer_share: _Interval
    ease: dict[str, str | int | float | None] | None
    reasons: list[str]


def _compared(run: Run, set_name: str) -> ComparedRun:
    reports = run.folder.reports_folder(set_name)
    path = reports / "summary.json"
    summary = read_model(path, _Summary, f"aitia report {run.folder.root}").model_dump() if path.exists() else None
    tables, episodes = [run.folder.evaluation_path(set_name, "episodes")], run[set_name].episodes
    paired = episodes.filter(pc.field("part") == "test").select([*KEYS, "context", "outcome"])
    require_rows(tables[0], paired)
    return ComparedRun(
        name=run.folder.root.name,
        task=run.manifest.task,
        versions={**run.manifest.versions, "git_sha": run.manifest.git_sha},
        episodes=episodes,
        summary=summary,
        reports=reports,
        changed=check(run.folder, run.manifest.checksums, tables).changed,
    )


def _require_all_pairs(spec: EvaluationSpec, seeds: int, pairs: pa.Table) -> None:
    """Check that both runs played all episodes of the paired seeds."""
    expected = seeds * spec.episodes * spec.repeats
    if pairs.num_rows != expected:
        raise RunFolderError(
            f"{counted(pairs.num_rows, 'play')} could be paired, expected {expected} ({counted(seeds, 'seed')}, "
            f"{counted(spec.episodes, 'episode')}, {counted(spec.repeats, 'repeat')}): an evaluation is not of "
            "its run's task. Run `aitia evaluate` for both again"
        )
