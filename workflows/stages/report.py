"""Stage report: verdict of the set, an entry and a page for every failure, from what earlier stages left."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ...attribution.effects.order import EffectTable, effect_table
from ...attribution.targets.steps import target_kinds
from ...datasets.bank import Bank, read_bank
from ...datasets.errors import InputError
from ...datasets.files.checksums import Checked, check
from ...datasets.files.rebuilt import foreign, rebuilt
from ...datasets.files.remote import as_path, asking, is_inside, relative_link, remote
from ...datasets.files.store import RunFolder, read_table, write_json, write_table
from ...datasets.files.typed import Part, read_model
from ...datasets.frames import FrameIndex
from ...datasets.learning import bank_outcomes, learning_path, training_outcomes
from ...datasets.manifest import installed_versions
from ...datasets.outcomes import failure_ids
from ...datasets.rewards import intended_known, reward_sums_path
from ...datasets.schema import RANDOM_POLICY_SEED, Order
from ...reports.measures.learning import find_learning
from ...reports.measures.preference import find_preference
from ...reports.measures.timeline import Timeline
from ...reports.pages.advice import Costs, explain
from ...reports.pages.corrections import write_corrections
from ...reports.pages.findings import (
    SetFindings,
    deciding,
    entries_table,
    failure_entry,
    group_means,
    own_rates,
    summarise,
)
from ...reports.pages.place import Place
from ...reports.pages.write import (
    ClusterContext,
    FailureView,
    PageContext,
    write_cluster_page,
    write_failure_page,
    write_index_page,
)
from ...reports.statistics import percent
from ..runs.adopt import recording_notes
from ..runs.changes import code_in_words
from ..runs.clusters import find_clusters, whole_set
from ..runs.plays import read_plays, read_references
from ..runs.recorded import NOT_RECORDED, EnvironmentRecord, environment_record, recorded_estimator, recorded_rewards
from ..runs.run import NOT_REPEATABLE, Run
from ..runs.task import Task
from .attribute import attributed_tables, window_effects
from .cluster_report import ClusterReport, SetTables, report_cluster
from .episodes import failing_steps, table_of
from .shown import Drawn, ShownRewards, shown_rewards
from .train import edits_in_words

log = logging.getLogger("aitia")
_SHOWN_GROUPS = 20
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
        return _report(run, set_name, final, fresh)


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


def _report(run: Run, set_name: str, final: Path, out: Path) -> dict[str, Any]:
    began = datetime.now(UTC)
    run.require_trained()
    folder, task = run.folder, run.task
    episodes = read_plays(folder, task, set_name)
    rewards = recorded_rewards(folder, task)
    bank = read_bank(folder, set_name, task.seeds, task.evaluation.most_plays)
    trainings = {seed: training_outcomes(folder, seed) for seed in task.seeds}
    windows = {seed: folder.window_count(seed) for seed in task.seeds}
    names = failure_ids(task.outcomes.failures(episodes))
    estimator, reason = recorded_estimator(folder, run.manifest, set_name)
    attributed = attributed_tables(run, set_name, names, estimator)
    tables = SetTables(
        task, set_name, episodes, read_references(folder, set_name), rewards, bank,
        attributed["groups"],
        read_table(folder.influence_path(set_name, "null")).filter(pc.field("estimator") == estimator),
        Timeline(window_effects(folder, set_name, estimator)), estimator, _noise_ceiling(folder, set_name),
        find_learning(trainings, bank, bank_outcomes(folder, set_name), task.outcomes, windows), _costs(run, bank),
    )  # fmt: skip
    whole = report_cluster(tables, whole_set(names))
    split = [] if whole.findings.decision.of_set else find_clusters(task, attributed["groups"], names)
    found = [report_cluster(tables, cluster) for cluster in split] if len(split) > 1 else [whole][: len(names)]
    clusters = {number: report.context(tables.timeline) for number, report in enumerate(found)}
    cluster_of = {name: number for number, report in enumerate(found) for name in report.cluster.failures}
    frames, record = folder.frames_folder(set_name), environment_record(run.manifest, set_name)
    drawn = Drawn(frames, FrameIndex.read(frames), out / "assets" / "frames", record)
    failures = _failure_tables(folder, tables, attributed["transitions"])
    entries = [_entry(failures, name, cluster_of[name], found[cluster_of[name]].findings) for name in names]
    views = {name: _failure_view(failures, name, drawn) for name in names}
    changed = _changed(run, set_name, drawn)
    page = _page_context(run, set_name, whole, clusters, tables, reason, changed, final)
    for entry in entries:
        write_failure_page(out, page, entry, views[entry["failure"]])
    thumbnails = {name: view.pictures[0].asset for name, view in views.items() if view.pictures}
    seconds = {**run.manifest.seconds, "report": round((datetime.now(UTC) - began).total_seconds(), 2)}
    findings = {number: report.findings for number, report in enumerate(found)}
    preference = None
    if whole.findings.evidence.largest_error is None:
        preference = find_preference(trainings, episodes, task.outcomes)
    summary = summarise(
        whole.findings, findings, whole.predictions, entries, _trainings(task, bank), seconds, tables.learning,
        preference,
    )  # fmt: skip
    summary["changed_by_hand"] = changed.changed
    write_json(out / "verdicts.json", entries)
    write_table(out / "verdicts.parquet", entries_table(entries))
    for report in [whole, *(report for report in found if report is not whole)]:
        part = {} if report.cluster.selection is None else {"cluster": str(report.cluster.number)}
        source = {"task": task.name, "set": set_name, **part}
        write_corrections(
            out / report.edits_file, report.correction, report.findings, source, task.group_by, task.edits
        )
    for number, report in enumerate(found):
        mine = [entry for entry in entries if entry["cluster"] == number]
        write_cluster_page(out, page, clusters[number], mine, report.view(page.unit))
    decided_by = deciding(whole.findings, findings, summary["verdict"])
    told_by = next((report for report in found if report.findings is decided_by), whole)
    write_index_page(
        out, page, summary, entries, thumbnails, explain(told_by.findings, told_by.around, summary["verdict"]),
        tables.learning, preference,
    )  # fmt: skip
    write_json(out / "summary.json", summary)
    return summary


def _changed(run: Run, set_name: str, drawn: Drawn) -> Checked:
    """Compare the tables that a report rests on with their checksums."""
    folder, task = run.folder, run.task
    paths = [folder.evaluation_path(set_name, name) for name in ("episodes", "steps", "references")]
    paths += [folder.influence_path(set_name, name) for name in ("groups", "transitions", "windows", "null")]
    paths += [folder.bank_path(set_name, name) for name in ("masks", "outcomes", "learning")]
    paths += [folder.validation_path(set_name), folder.frames_folder(set_name) / "index.json"]
    paths += [reward_sums_path(folder, seed, task.group_by) for seed in task.seeds]
    paths += [learning_path(folder, seed) for seed in task.seeds]
    found = check(folder, run.manifest.checksums, paths)
    changed = [*found.changed, *(f"frames/{set_name}/{name}" for name in drawn.damaged)]
    if changed:
        log.warning("report %s: changed by hand: %s", task.name, ", ".join(changed))
    return Checked(changed, found.unrecorded)


def _page_context(
    run: Run,
    set_name: str,
    whole: ClusterReport,
    clusters: Mapping[int, ClusterContext],
    tables: SetTables,
    reason: str,
    checked: Checked,
    final: Path,
) -> PageContext:
    provenance = {
        **installed_versions(),
        "git_sha": run.manifest.git_sha or "unknown",
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    rewards = tables.rewards
    projected = [f"Influence is TRAK's random projection: {reason}."] if tables.estimator != "trak" else []
    recorded = recording_notes(run.folder, run.task.seeds)
    told = [
        *projected, *recorded, *_told(environment_record(run.manifest, set_name), list(rewards.values())),
        *_undeclared(run.task, tables.episodes), *_unchecked(checked), *code_in_words(run.manifest),
    ]  # fmt: skip
    return PageContext(
        run.task.resolved(), set_name, _unit(run.task), whole.findings, clusters, told, provenance,
        edits_in_words(run, rewards.__getitem__), None if whole.correction is None else whole.edits_file,
        relative_link(run.folder.root, final),
        checked.changed, place_of(run, set_name, final),
    )  # fmt: skip


def place_of(run: Run, set_name: str, reports: Path) -> Place:
    """Return where a run, its task file and its pages are, for commands that can be pasted."""
    manifest, folder = run.manifest, run.folder
    known = manifest.task_folder is not None and manifest.task_file is not None
    task = str(Path(manifest.task_folder or "") / (manifest.task_file or "")) if known else None
    return Place(str(folder.root), str(reports), set_name, task)


def _unchecked(checked: Checked) -> list[str]:
    """Say which tables could not be compared with a checksum."""
    if not checked.unrecorded:
        return []
    return [f"Checksums of these tables were {NOT_RECORDED}: {', '.join(checked.unrecorded)}."]


def _told(record: EnvironmentRecord | None, rewards: Sequence[pa.Table]) -> list[str]:
    """Say in words what the environment does not tell, and what follows."""
    follows = {
        "context": f"The environment tells no context{_as_one_group(rewards)}.",
        "action_labels": "The environment tells no action labels: targets are the log-odds of the actions taken.",
        "untampered_reward": "The environment tells no untampered reward: tampering could not be checked.",
    }
    told = [] if record is None else [text for key, text in follows.items() if key not in record.keys]
    if not intended_known(list(rewards)):
        told.append("The environment tells no intended reward: no reward could be called wrong or corrected.")
    if record is None:
        told.append(f"What else the environment tells, and whether it repeats itself, was {NOT_RECORDED}.")
        return told
    if not record.repeats:
        told.append(NOT_REPEATABLE)
    if record.draws is None:
        told.append("The environment does not draw itself (rgb_array or ansi): there are no pictures.")
    return told


def _undeclared(task: Task, episodes: pa.Table) -> list[str]:
    """Say which outcomes the task does not declare, and which declared ones never happened."""
    test = episodes.filter((pc.field("part") == "test") & (pc.field("seed") != RANDOM_POLICY_SEED))
    counts = Counter(test["outcome"].to_pylist())
    declared = [*task.outcomes.desired, *task.outcomes.misbehaved]
    shares = [f"{name} ({percent(n / test.num_rows)} of plays)" for name, n in counts.items() if name not in declared]
    never = [name for name in declared if name not in set(episodes["outcome"].to_pylist())]
    told = []
    if shares:
        told.append(f"Outcomes that the task does not declare count as incompetent: {', '.join(sorted(shares))}.")
    if never:
        told.append(
            f"Declared, but no play ended so, not even a random policy's: {', '.join(never)}. Check the spelling."
        )
        log.warning("report %s: no play ended as %s; check `outcomes` in the task", task.name, ", ".join(never))
    return told


def _as_one_group(rewards: Sequence[pa.Table]) -> str:
    """Say what follows from a missing context where it does: other groupings make several groups without one."""
    groups = {group for table in rewards for group in table["group"].to_pylist()}
    return ": all transitions form one group" if len(groups) == 1 else ""


def _unit(task: Task) -> str:
    """Return what the groups are called."""
    return f"groups ({_PLURAL[task.group_by]})"


def _trainings(task: Task, bank: Bank | None) -> int:
    """Return the number of agents trained: the ensemble and the bank's members beside it."""
    members = bank.masks.filter(pc.field("order") != Order.NONE).num_rows if bank is not None else 0
    return len(task.seeds) + members


def _costs(run: Run, bank: Bank | None) -> Costs:
    """Return what the trainings of a run cost so far."""
    retrained = [] if bank is None else bank.masks.filter(pc.field("order") != Order.NONE)["seed"].to_pylist()
    seconds = run.manifest.seconds
    return Costs(
        len(run.task.seeds), len(retrained), len(set(retrained)), seconds.get("train", 0.0), seconds.get("verify", 0.0)
    )


class _Ceiling(Part):
    value: float | None


class _Interactive(Part):
    noise_ceiling: _Ceiling


class _Validation(Part):
    """What a report reads of `validation.json`."""

    interactive: _Interactive


def _noise_ceiling(folder: RunFolder, set_name: str) -> float | None:
    """Return the noise ceiling that a validation measured; None before one."""
    path = folder.validation_path(set_name)
    if not path.exists():
        return None
    return read_model(path, _Validation, "aitia validate").interactive.noise_ceiling.value


@dataclass(frozen=True)
class _FailureTables:
    """Tables that all failures of a set share.

    Attributes:
        episodes: by failure, its row.
        rates: by episode, rates over all agents and repeats.
        effects, counts: of the groups.
        top: by failure, its most influential transitions.
        kinds: by failure, what the attribution's target was.
        timeline: influence over training time.
        steps: by failure, the steps of its episode.
    """

    episodes: dict[str, dict[str, Any]]
    rates: dict[int, dict[str, float | None]]
    effects: EffectTable
    counts: dict[str, tuple[float, ...]]
    top: dict[str, pa.Table]
    kinds: dict[str, str]
    timeline: Timeline
    steps: dict[str, pa.Table]


def _failure_tables(folder: RunFolder, tables: SetTables, top: pa.Table) -> _FailureTables:
    task = tables.task
    failed = task.outcomes.failures(tables.episodes)
    plays = tables.episodes.filter(pc.field("seed") != RANDOM_POLICY_SEED)
    steps = read_table(folder.evaluation_path(tables.set_name, "steps"))
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(top["failure"].to_pylist()):
        rows.setdefault(name, []).append(row)
    return _FailureTables(
        dict(zip(failure_ids(failed), failed.to_pylist(), strict=True)),
        own_rates(plays, tables.bank, task.outcomes),
        effect_table(tables.sums),
        group_means(list(tables.rewards.values()), ("transitions", "reward_events")),
        {name: top.take(pa.array(mine)) for name, mine in rows.items()},
        target_kinds(steps, failed, task.target),
        tables.timeline,
        failing_steps(steps, failure_ids(failed)),
    )


def _entry(tables: _FailureTables, name: str, cluster: int, findings: SetFindings) -> dict[str, Any]:
    """Return the entry of a failure in `verdicts.json`."""
    episode = tables.episodes[name]
    return failure_entry(episode, cluster, findings, tables.rates[episode["episode"]], tables.effects, tables.counts)


def _failure_view(tables: _FailureTables, name: str, drawn: Drawn) -> FailureView:
    """Return what a failure's page shows."""
    frames, reason = drawn.episode(name)
    kind = tables.kinds[name]
    target = {
        "labels": "log-odds of misbehaving against desired actions at the decisive steps",
        "log-odds": "log-odds of the actions taken",
        "episode": "log-likelihood of the whole failing episode",
        "value": "value of the state in which the episode began",
    }.get(kind, kind)
    shown = shown_rewards(tables.top[name]) if name in tables.top else ShownRewards([], [])
    corrections, influential, episodes = drawn.training(name, shown)
    steps = table_of(tables.steps, name, drawn.action_name, frames)
    return FailureView(frames, reason, target, corrections, influential, episodes, tables.timeline.of([name]), steps)
