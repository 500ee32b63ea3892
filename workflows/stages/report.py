"""Stage report: verdict of the set, an entry and a page for every failure, from what earlier stages left."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from ...datasets.errors import InputError
from ...datasets.files.checksums import Checked, check
from ...datasets.files.rebuilt import foreign, rebuilt
from ...datasets.files.remote import as_path, asking, is_inside, relative_link, remote
from ...datasets.files.store import RunFolder, write_json, write_table
from ...datasets.frames import FrameIndex
from ...datasets.learning import learning_path
from ...datasets.manifest import installed_versions
from ...datasets.rewards import reward_sums_path
from ...datasets.schema import Order
from ...reports.measures.preference import Preference, find_preference
from ...reports.pages.advice import explain
from ...reports.pages.corrections import write_corrections
from ...reports.pages.findings import deciding, entries_table, summarise
from ...reports.pages.place import Place
from ...reports.pages.views import PageContext
from ...reports.pages.write import write_cluster_page, write_failure_page, write_index_page
from ..runs.evaluated_set import EvaluatedSet
from ..runs.recorded import environment_record
from ..runs.run import Run
from .reporting.cluster_report import ClusterReport, report_cluster
from .reporting.failures import ReportedFailure, report_failures
from .reporting.notes import page_notes
from .reporting.shown import Drawn
from .train import edits_in_words

log = logging.getLogger("aitia")
_PLURAL = {
    "context": "contexts",
    "component": "reward components",
    "cluster": "state clusters",
    "transition": "states and actions",
}
_KEPT = ("compare",)  # of an earlier report: comparisons that `aitia compare` wrote
_OWN = (
    "index.html", "summary.json", "verdicts.json", "verdicts.parquet", "edits*.yaml", "assets", "failures", "clusters",
)  # fmt: skip


def report_folder(run: RunFolder, set_name: str, out: str | Path | None) -> Path:
    """Return where a report is written: `out`, or the run's own reports folder of the set."""
    return run.reports_folder(set_name) if out is None else as_path(out).resolve()


def report_stage(run: Run, set_name: str, out: str | Path | None = None) -> dict[str, Any]:
    """Write verdicts, summary and pages of an evaluation set; return the summary.

    Nothing of the run is changed but its reports: they are written in an empty folder, which then takes their place.

    Args:
        run: an attributed run.
        set_name: the evaluation set.
        out: folder of the pages; None: the run's own.

    Raises:
        InputError: an earlier stage is missing, or `out` holds something else.
    """
    run.task.evaluation_env(set_name)
    final = report_folder(run.folder, set_name, out)
    _require_free(run.folder, final, own=out is None)
    with rebuilt(final, _OWN, _KEPT, last=("index.html", "summary.json")) as fresh:
        return _report(run[set_name], final, fresh)


def _require_free(run: RunFolder, out: Path, own: bool) -> None:
    """Check that a report may replace what is in a folder.

    Raises:
        InputError: it may not.
    """
    if own:
        if remote(out) is None and out.resolve() != out:
            raise InputError(
                f"{out} is a link, or lies behind one, to {out.resolve()}: expected the run's own folder. Remove it"
            )
        return
    if is_inside(run.root, out) or (is_inside(out, run.root) and out.parent != run.root / "reports"):
        raise InputError(f"--out {out} was given, expected a folder outside the run {run.root}")
    with asking(out):
        if not out.exists():
            return
        other = foreign(out, (*_OWN, *_KEPT)) if out.is_dir() else out.name
    if other is not None:
        raise InputError(
            f"--out {out} was given, which has `{other}` and is no report: expected a new or empty folder, or one that "
            "`aitia report` has written (it is replaced)"
        )


def _report(evaluated: EvaluatedSet, final: Path, out: Path) -> dict[str, Any]:
    """Write a report into `out`, an empty folder that is to be `final`; return the summary."""
    began, run = datetime.now(UTC), evaluated.run
    run.require_trained()
    whole = report_cluster(evaluated, evaluated.whole)
    clusters = [whole if c is evaluated.whole else report_cluster(evaluated, c) for c in evaluated.clusters]
    drawn = _drawn(evaluated, out)
    failures = report_failures(evaluated, drawn)
    entries, checked = [failure.entry for failure in failures], _checked(evaluated, drawn)
    preference = _preference(evaluated)
    seconds = {**run.manifest.seconds, "report": round((datetime.now(UTC) - began).total_seconds(), 2)}
    summary = summarise(
        evaluated.findings, evaluated.cluster_findings, whole.predictions, entries, _trainings(evaluated), seconds,
        evaluated.learning, preference,
    )  # fmt: skip
    summary["changed_by_hand"] = checked.changed
    write_json(out / "verdicts.json", entries)
    write_table(out / "verdicts.parquet", entries_table(entries))
    for report in {id(report): report for report in (whole, *clusters)}.values():
        _write_corrections(evaluated, report, out)
    page = _page_context(evaluated, whole, clusters, checked, final)
    _write_pages(evaluated, page, whole, clusters, failures, summary, preference, out)
    write_json(out / "summary.json", summary)
    return summary


def _drawn(evaluated: EvaluatedSet, out: Path) -> Drawn:
    """Return what was drawn of the set, to be copied into the report."""
    frames = evaluated.run.folder.frames_folder(evaluated.name)
    record = environment_record(evaluated.run.manifest, evaluated.name)
    return Drawn(frames, FrameIndex.read(frames), out / "assets" / "frames", record)


def _checked(evaluated: EvaluatedSet, drawn: Drawn) -> Checked:
    """Compare the tables that a report rests on with their checksums."""
    run, name = evaluated.run, evaluated.name
    folder, seeds = run.folder, run.task.seeds
    paths = [folder.evaluation_path(name, table) for table in ("episodes", "steps", "references")]
    influence = ("groups", "transitions", "windows", "null", "direction")
    paths += [folder.influence_path(name, table) for table in influence]
    paths += [folder.bank_path(name, table) for table in ("masks", "outcomes", "learning", "sets")]
    paths += [folder.validation_path(name), folder.frames_folder(name) / "index.json"]
    paths += [reward_sums_path(folder, seed, run.task.group_by) for seed in seeds]
    paths += [learning_path(folder, seed) for seed in seeds]
    compared = check(folder, run.manifest.checksums, paths)
    changed = [*compared.changed, *(f"frames/{name}/{file}" for file in drawn.damaged)]
    if changed:
        log.warning("report %s: changed by hand: %s", run.task.name, ", ".join(changed))
    return Checked(changed, compared.unrecorded)


def _preference(evaluated: EvaluatedSet) -> Preference | None:
    """Return what returns say of the rewards where no intended reward is reported; else None."""
    if evaluated.findings.evidence.largest_error is not None:
        return None
    return find_preference(evaluated.run.training_outcomes, evaluated.episodes, evaluated.run.task.outcomes)


def _trainings(evaluated: EvaluatedSet) -> int:
    """Return the number of agents trained: the ensemble and the bank's members in addition."""
    bank = evaluated.bank
    members = bank.masks.filter(pc.field("order") != Order.NONE).num_rows if bank is not None else 0
    return len(evaluated.run.task.seeds) + members


def _write_corrections(evaluated: EvaluatedSet, report: ClusterReport, out: Path) -> None:
    """Write the rewards to correct for a cluster of failures, or for the whole set, where there are any."""
    task = evaluated.run.task
    part = {} if report.cluster.selection is None else {"cluster": str(report.cluster.number)}
    source = {"task": task.name, "set": evaluated.name, **part}
    write_corrections(out / report.edits_file, report.correction, report.findings, source, task.group_by, task.edits)


def _write_pages(
    evaluated: EvaluatedSet, page: PageContext, whole: ClusterReport, clusters: Sequence[ClusterReport],
    failures: Sequence[ReportedFailure], summary: dict[str, Any], preference: Preference | None, out: Path,
) -> None:  # fmt: skip
    """Write a page for every failure, one for every cluster, and the first page."""
    for entry, view in failures:
        write_failure_page(out, page, entry, view)
    entries = [entry for entry, _ in failures]
    for report in clusters:
        number = report.cluster.number
        mine = [entry for entry in entries if entry["cluster"] == number]
        write_cluster_page(out, page, page.clusters[number], mine, report.view(page.unit))
    thumbnails = {entry["failure"]: view.pictures[0].asset for entry, view in failures if view.pictures}
    decisive = deciding(evaluated.findings, evaluated.cluster_findings, summary["verdict"])
    explained = next((report for report in clusters if report.findings is decisive), whole)
    explanation = explain(explained.findings, explained.around, summary["verdict"])
    write_index_page(out, page, summary, entries, thumbnails, explanation, evaluated.learning, preference)


def _page_context(
    evaluated: EvaluatedSet, whole: ClusterReport, clusters: Sequence[ClusterReport], checked: Checked, final: Path
) -> PageContext:
    run = evaluated.run
    provenance = {
        **installed_versions(),
        "git_sha": run.manifest.git_sha or "unknown",
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    return PageContext(
        run.task.resolved(), evaluated.name, f"groups ({_PLURAL[run.task.group_by]})", evaluated.findings,
        {report.cluster.number: report.context(evaluated.timeline) for report in clusters},
        page_notes(evaluated, checked), provenance, edits_in_words(run, run.rewards.__getitem__),
        None if whole.correction is None else whole.edits_file, relative_link(run.folder.root, final),
        checked.changed, _place(run, evaluated.name, final),
    )  # fmt: skip


def _place(run: Run, set_name: str, reports: Path) -> Place:
    """Return where a run, its task file and its pages are, for commands that can be pasted."""
    manifest, folder = run.manifest, run.folder
    known = manifest.task_folder is not None and manifest.task_file is not None
    task = str(Path(manifest.task_folder or "") / (manifest.task_file or "")) if known else None
    return Place(str(folder.root), str(reports), set_name, task)
