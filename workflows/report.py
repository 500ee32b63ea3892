"""Stage report: verdict of the set, an entry and a page for every failure, pictures for some; on Dask."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..attribution.order import EffectTable, effect_table
from ..attribution.targets import TargetSteps
from ..datasets.errors import InputError
from ..datasets.learning import bank_outcomes, training_outcomes
from ..datasets.manifest import installed_versions
from ..datasets.outcomes import failure_ids
from ..datasets.rewards import intended_known, reward_summary
from ..datasets.schema import RANDOM_POLICY_SEED
from ..datasets.store import RunFolder, read_json, read_table, write_json, write_table
from ..reports.advice import Costs, explain
from ..reports.corrections import write_corrections
from ..reports.evidence import Bank
from ..reports.findings import (
    deciding,
    entries_table,
    failure_entry,
    group_means,
    own_rates,
    summarise,
)
from ..reports.learning import find_learning
from ..reports.pages import (
    ClusterContext,
    EpisodeView,
    FailureView,
    FrameView,
    PageContext,
    RewardView,
    write_cluster_page,
    write_failure_page,
    write_index_page,
)
from ..reports.place import Place
from ..reports.preference import find_preference
from ..reports.statistics import percent
from ..reports.timeline import Timeline
from ..training.environments import EnvProfile, EnvSpec, describe, probe
from .adopt import recording_notes
from .attribute import attributed_tables, estimator_of, load_targets, window_effects
from .bank import read_bank
from .cluster_report import ClusterReport, SetTables, report_cluster
from .clusters import find_clusters, whole_set
from .episodes import failing_steps, table_of
from .groups import load_grouping
from .pictures import NO_PICTURES, Pictures, episode_frames, episode_rows, moment_of, shown_rewards, training_pictures
from .runs import NOT_REPEATABLE, Run
from .task import Task
from .train import edits_in_words
from .workers import Workers

log = logging.getLogger("aitia")
DEFAULT_ILLUSTRATED = 20
_SHOWN_GROUPS = 20
_PLURAL = {
    "context": "contexts",
    "component": "reward components",
    "cluster": "state clusters",
    "transition": "states and actions",
}
_CHUNK = 32


@dataclass(frozen=True)
class PagePiece:
    """Entries and pages of some failures (with the number of their cluster), pictures of the illustrated ones;
    `written` is when the stage began."""

    root: Path
    task: Task
    page: PageContext
    failures: Mapping[str, int]
    pictures: Mapping[str, Pictures]
    written: str


class PageResult(NamedTuple):
    """What a page piece returns: entries of `verdicts.json`, and the thumbnail of illustrated failures."""

    entries: list[dict[str, Any]]
    thumbnails: dict[str, str]


def report_stage(run: Run, set_name: str, illustrate: int | Literal["all"], workers: Workers) -> dict[str, Any]:
    """Write verdicts, summary and pages of an evaluation set; return the summary.

    Raises:
        InputError: an earlier stage is missing, or `illustrate` is not a count.
    """
    if illustrate != "all" and illustrate < 0:
        raise InputError(f"--illustrate {illustrate} was given, expected a number from 0, or all")
    began = datetime.now(UTC)
    run.require_trained()
    folder, task = run.folder, run.task
    task.evaluation_env(set_name)
    episodes = read_table(folder.evaluation_path(set_name, "episodes"))
    grouping = load_grouping(folder, task)
    rewards = {seed: reward_summary(folder, seed, grouping) for seed in task.seeds}
    bank = read_bank(folder, set_name, task.seeds)
    trainings = {seed: training_outcomes(folder, seed) for seed in task.seeds}
    names = failure_ids(task.outcomes.failures(episodes))
    attributed = attributed_tables(folder, task, set_name, names)
    estimator = estimator_of(task).name
    tables = SetTables(
        task, set_name, episodes, read_table(folder.evaluation_path(set_name, "references")), rewards, bank,
        attributed["groups"],
        read_table(folder.influence_path(set_name, "null")).filter(pc.field("estimator") == estimator),
        Timeline(window_effects(folder, task, set_name)), estimator, _noise_ceiling(folder, set_name),
        find_learning(trainings, bank, bank_outcomes(folder, set_name), task.outcomes), _costs(run, bank),
    )  # fmt: skip
    whole = report_cluster(tables, whole_set(names))
    split = [] if whole.findings.decision.of_set else find_clusters(task, attributed["groups"], names)
    found = [report_cluster(tables, cluster) for cluster in split] if len(split) > 1 else [whole][: len(names)]
    clusters = {number: report.context(tables.timeline) for number, report in enumerate(found)}
    cluster_of = {name: number for number, report in enumerate(found) for name in report.cluster.failures}
    page = _page_context(run, set_name, whole, clusters, list(rewards.values()), episodes)
    out = folder.reports_folder(set_name)
    chosen = _spread(names, len(names) if illustrate == "all" else illustrate)
    pictures = training_pictures(run, set_name, chosen, attributed["transitions"], workers)
    chunks = [tuple(names[i : i + _CHUNK]) for i in range(0, len(names), _CHUNK)]
    pieces = [
        PagePiece(
            folder.root, task, page, {name: cluster_of[name] for name in chunk},
            {name: pictures[name] for name in chunk if name in pictures}, began.isoformat(),
        )
        for chunk in chunks
    ]  # fmt: skip
    results = workers.map(_write_pages, pieces, f"report {task.name}")
    entries = [entry for result in results for entry in result.entries]
    thumbnails = {name: asset for result in results for name, asset in result.thumbnails.items()}
    seconds = {**run.manifest.seconds, "report": round((datetime.now(UTC) - began).total_seconds(), 2)}
    findings = {number: report.findings for number, report in enumerate(found)}
    preference = None
    if whole.findings.evidence.largest_error is None:
        preference = find_preference(trainings, episodes, task.outcomes)
    summary = summarise(
        whole.findings, findings, whole.predictions, entries, _trainings(task, bank), seconds, tables.learning,
        preference,
    )  # fmt: skip
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
    _remove_old(out, names, clusters)
    write_json(out / "summary.json", summary)
    return summary


def _page_context(
    run: Run,
    set_name: str,
    whole: ClusterReport,
    clusters: Mapping[int, ClusterContext],
    rewards: Sequence[pa.Table],
    episodes: pa.Table,
) -> PageContext:
    provenance = {
        **installed_versions(),
        "git_sha": run.manifest.git_sha or "unknown",
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    chosen = estimator_of(run.task)
    projected = [f"Influence is TRAK's random projection: {chosen.reason}."] if chosen.name != "trak" else []
    profile = probe(run.task.evaluation_env(set_name), run.task.agent.masked)
    recorded = recording_notes(run.folder, run.task.seeds)
    told = [*projected, *recorded, *_told(profile, rewards), *_undeclared(run.task, episodes)]
    return PageContext(
        run.task.resolved(), set_name, _unit(run.task), whole.findings, clusters, told, provenance, edits_in_words(run),
        None if whole.correction is None else whole.edits_file, place_of(run, set_name),
    )  # fmt: skip


def place_of(run: Run, set_name: str) -> Place:
    """Return where a run, its task file and its pages are, for commands that can be pasted."""
    manifest, folder = run.manifest, run.folder
    known = manifest.task_folder is not None and manifest.task_file is not None
    task = str(Path(manifest.task_folder or "") / (manifest.task_file or "")) if known else None
    return Place(str(folder.root), str(folder.reports_folder(set_name)), set_name, task)


def _told(profile: EnvProfile, rewards: Sequence[pa.Table]) -> list[str]:
    """Say in words what the environment does not tell, and what follows."""
    follows = {
        "context": "The environment tells no context: all transitions form one group.",
        "action_labels": "The environment tells no action labels: targets are the log-odds of the actions taken.",
        "untampered_reward": "The environment tells no untampered reward: tampering could not be checked.",
    }
    told = [text for key, text in follows.items() if key not in profile.keys]
    if not intended_known(list(rewards)):
        told.append("The environment tells no intended reward: no reward could be called wrong or corrected.")
    if not profile.repeats:
        told.append(NOT_REPEATABLE)
    if not profile.renders:
        told.append("The environment does not draw itself (rgb_array): there are no pictures.")
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


def _unit(task: Task) -> str:
    """Return what the groups are called."""
    return f"groups ({_PLURAL[task.group_by]})"


def _remove_old(out: Path, failures: Sequence[str], clusters: Mapping[int, ClusterContext]) -> None:
    """Remove pages and corrections of an earlier report that this one does not have."""
    kept = {"edits.yaml", *(f"failures/{name}.html" for name in failures)}
    kept |= {name for cluster in clusters.values() for name in (cluster.page, cluster.edits) if name is not None}
    for pattern in ("failures/*.html", "clusters/*.html", "edits*.yaml"):
        for old in out.glob(pattern):
            if old.relative_to(out).as_posix() not in kept:
                old.unlink()


def _trainings(task: Task, bank: Bank | None) -> int:
    """Return the number of agents trained: the ensemble and the bank's members beside it."""
    members = bank.masks.filter(pc.field("order") != "none").num_rows if bank is not None else 0
    return len(task.seeds) + members


def _costs(run: Run, bank: Bank | None) -> Costs:
    """Return what the trainings of a run cost so far."""
    retrained = [] if bank is None else bank.masks.filter(pc.field("order") != "none")["seed"].to_pylist()
    seconds = run.manifest.seconds
    return Costs(
        len(run.task.seeds), len(retrained), len(set(retrained)), seconds.get("train", 0.0), seconds.get("verify", 0.0)
    )


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Return `count` failures spread evenly over all, so that every seed has some."""
    if count >= len(names):
        return list(names)
    return [names[i] for i in np.linspace(0, len(names) - 1, count).astype(int)] if count else []


def _noise_ceiling(folder: RunFolder, set_name: str) -> float | None:
    """Return the noise ceiling that a validation measured; None before one."""
    path = folder.validation_path(set_name)
    return read_json(path)["interactive"]["noise_ceiling"]["value"] if path.exists() else None


@dataclass(frozen=True)
class _FailureTables:
    """Tables that all failures of a set share, read once a process."""

    episodes: dict[str, dict[str, Any]]
    rates: dict[int, dict[str, float | None]]
    effects: EffectTable
    counts: dict[str, tuple[float, ...]]
    top: pa.Table
    targets: TargetSteps
    timeline: Timeline
    steps: dict[str, pa.Table]


@lru_cache(maxsize=1)
def _set_tables(root: Path, task_json: str, set_name: str, written: str) -> _FailureTables:
    """Read the tables of a set; `written` names the call, so that a later one reads them again."""
    task, folder = Task.model_validate_json(task_json), RunFolder(root)
    episodes = read_table(folder.evaluation_path(set_name, "episodes"))
    failed = task.outcomes.failures(episodes)
    failures = dict(zip(failure_ids(failed), failed.to_pylist(), strict=True))
    attributed = attributed_tables(folder, task, set_name, list(failures))
    grouping = load_grouping(folder, task)
    return _FailureTables(
        failures,
        own_rates(
            episodes.filter(pc.field("seed") != RANDOM_POLICY_SEED),
            read_bank(folder, set_name, task.seeds),
            task.outcomes,
        ),
        effect_table(attributed["groups"]),
        group_means([reward_summary(folder, seed, grouping) for seed in task.seeds], ("transitions", "reward_events")),
        attributed["transitions"],
        load_targets(folder, task, set_name, list(failures)),
        Timeline(window_effects(folder, task, set_name)),
        failing_steps(read_table(folder.evaluation_path(set_name, "steps")), list(failures)),
    )


def _write_pages(piece: PagePiece) -> PageResult:
    """Label failures and write their pages."""
    folder, task, page = RunFolder(piece.root), piece.task, piece.page
    tables = _set_tables(piece.root, task.model_dump_json(), page.set_name, piece.written)
    tables = replace(tables, top=tables.top.filter(pc.field("failure").isin(list(piece.failures))).combine_chunks())
    out = folder.reports_folder(page.set_name)
    entries, thumbnails = [], {}
    for name, cluster in piece.failures.items():
        episode, findings = tables.episodes[name], page.clusters[cluster].findings
        rates = tables.rates[episode["episode"]]
        entry = failure_entry(episode, cluster, findings, rates, tables.effects, tables.counts)
        view = _failure_view(piece, name, episode, tables, out)
        if view.pictures:
            thumbnails[name] = view.pictures[0].asset
        write_failure_page(out, page, entry, view)
        entries.append(entry)
    return PageResult(entries, thumbnails)


def _failure_view(
    piece: PagePiece, name: str, episode: Mapping[str, Any], tables: _FailureTables, out: Path
) -> FailureView:
    spec = piece.task.evaluation_env(piece.page.set_name)
    index = tables.targets.ids.index(name)
    frames: list[FrameView] = []
    draw = "aitia report RUN --illustrate all"
    if piece.page.place is not None:
        draw = piece.page.place.command("report", "--illustrate", "all")
    reason = f"This failure was not chosen for pictures; {draw} draws every one."
    pictures = piece.pictures.get(name, NO_PICTURES)
    if name in piece.pictures:
        frames = episode_frames(spec, episode, tables.targets, index, out / "assets" / "frames")
        reason = "The environment does not draw itself, or did not repeat itself when played again: no pictures."
    shown = shown_rewards(tables.top, name)
    kind = tables.targets.kinds[index]
    target = {
        "labels": "log-odds of misbehaving against desired actions at the decisive steps",
        "log-odds": "log-odds of the actions taken",
        "episode": "log-likelihood of the whole failing episode",
        "value": "value of the state in which the episode began",
    }.get(kind, kind)
    corrections, influential = ([_reward_view(row, spec, pictures) for row in rows] for rows in shown)
    episodes = [
        EpisodeView(_reward_view(row, spec, pictures), *pictures.episodes[moment_of(row)])
        for row in episode_rows(shown)
        if moment_of(row) in pictures.episodes
    ]
    texts = [frame.text for frame in frames]
    steps = table_of(tables.steps, name, action_names(piece.task, piece.page.set_name), texts)
    timeline = tables.timeline.of([name])
    return FailureView(frames, reason, target, corrections, influential, episodes, timeline, steps)


def action_names(task: Task, set_name: str) -> Callable[[str], str]:
    """Return what gives an action, as text, its name."""
    return describe(task.evaluation_env(set_name)).action_name


def _reward_view(row: Mapping[str, Any], spec: EnvSpec, pictures: Pictures) -> RewardView:
    return RewardView(
        row["context"], describe(spec).action_name(row["action"]), row["seed"], row["window"], row["env"], row["step"],
        row["reward"], row["intended_reward"], row["tau"], row["effect"], pictures.states.get(moment_of(row)),
    )  # fmt: skip
