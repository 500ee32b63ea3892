"""Stage attribute: failures to the rewards of every window of every seed, merged into tables; only new failures."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch

from ...attribution.actors.adapt import as_actor, on_device
from ...attribution.effects.merge import WindowSums, group_table, null_table, sum_windows, unit_table, window_table
from ...attribution.effects.top import TOP_K, Leaders, keep_top
from ...attribution.effects.window import EFFECTS, attribute_window
from ...attribution.estimators.base import Estimator
from ...attribution.estimators.registry import AUTO, estimators, find_estimator
from ...attribution.estimators.window import read_window
from ...attribution.gradients.kernel import DEFAULT_LAMBDA, DOUBLE_ROWS, LAMBDAS
from ...attribution.targets.steps import Targets
from ...datasets.errors import InputError
from ...datasets.files.remote import exist, remove_folder
from ...datasets.files.store import (
    RunFolder,
    read_table,
    read_table_schema,
    read_tensor_metadata,
    read_tensors,
    write_table,
    write_tensors,
)
from ...datasets.groups import Grouping
from ...datasets.influence import Addition, covered_by_all
from ...datasets.manifest import digest
from ...datasets.rewards import intended_known, reward_summary, reward_sums_path
from ...datasets.schema import (
    GROUP_NAMES,
    TOP_TRANSITIONS,
    current_top_transitions,
    metadata_of,
)
from ...datasets.words import counted
from ...training.agents.spec import load_policy
from ...training.retraining.replay import Replay, ReplayedWindow
from ..runs.changes import attribution_key
from ..runs.evaluated_set import INFLUENCE_TABLES, load_targets
from ..runs.groups import ensure_groups, load_grouping
from ..runs.recorded import estimator_of
from ..runs.run import Run
from ..runs.task import Task
from ..workers.pool import Workers

DEFAULT_ESTIMATOR = AUTO
_MOST_SUMS = 20_000_000
_HELD_TOPS = 8  # times k top transitions a failure are held before the smaller ones are dropped; kept are up to 2 k
log = logging.getLogger("aitia")


@dataclass(frozen=True)
class WindowPiece:
    """The attribution of some failures of an evaluation set to one window."""

    root: Path
    task: Task
    set_name: str
    failures: tuple[str, ...]
    estimator: Estimator
    seed: int
    window: int
    call: str  # one that computes: tops of its windows may be compared with each other
    key: str  # see `attribution_key`

    @cached_property
    def folder(self) -> Path:
        """Folder of the finished pieces of one call: they fit only the same failures, target and seeds."""
        call = digest([self.failures, self.estimator.label, self.key])[:16]
        return RunFolder(self.root).parts_folder("influence", self.set_name, call)

    @property
    def sums_path(self) -> Path:
        """Group sums."""
        return self.folder / f"seed={self.seed}" / f"window={self.window:05d}.safetensors"

    @property
    def top_path(self) -> Path:
        """Top transitions."""
        return self.sums_path.with_suffix(".parquet")

    @property
    def finished(self) -> bool:
        """Whether both of its files are there."""
        return self.sums_path.exists() and self.top_path.exists()


def attribute_stage(
    run: Run, set_name: str, failures: Sequence[str], estimator: str | Estimator, workers: Workers
) -> None:
    """Attribute failures that are not yet, or no more, up to date to every window of every seed; merge the pieces.

    Args:
        run: an evaluated run.
        set_name: the evaluation set.
        failures: ids; empty: all failures of the set.
        estimator: an estimator, the name of one, or `auto`.
        workers: where the pieces run.

    Raises:
        InputError: an unknown failure or estimator, another damping than that of the tables, or a missing window.
    """
    if estimator == AUTO:
        estimator, reason = estimator_of(run.task)
        log.info("attribute %s: %s, because %s", run.task.name, estimator, reason)
    chosen_estimator = find_estimator(estimator)
    _require_default_damping(chosen_estimator)
    _require_recordable(chosen_estimator)
    run.require_trained()
    evaluated = run[set_name]
    known, named = evaluated.failure_ids, frozenset(failures)
    evaluated.require_failures(failures)
    paths = [run.folder.influence_path(set_name, name) for name in INFLUENCE_TABLES]
    key = run.manifest.attribution = attribution_key(run.task, run.manifest.task_folder)
    done = covered_by_all(paths, key, chosen_estimator.label)
    chosen = tuple(name for name in known if name not in (done or ()) and (name in named or not named))
    if done is not None and not chosen:
        return
    summaries = _summaries(run, workers)
    _require_few_groups(max(table.num_rows for table in summaries), len(chosen))
    call = uuid.uuid4().hex
    pieces = [
        WindowPiece(run.folder.root, run.task, set_name, chosen, chosen_estimator, seed, window, call, key)
        for seed in run.task.seeds
        for window in range(run.folder.window_count(seed))
    ]
    if chosen:
        files = exist([piece.sums_path for piece in pieces]), exist([piece.top_path for piece in pieces])
        waiting = [piece for piece, *whole in zip(pieces, *files, strict=True) if not all(whole)]
        name = f"attribute {run.task.name}"
        if chosen_estimator.needs_updates:
            by_seed = [[piece for piece in waiting if piece.seed == seed] for seed in run.task.seeds]
            workers.map(_attribute_replayed, [mine for mine in by_seed if mine], name)
        else:
            workers.map(_attribute_window, waiting, name)
    _merge(run, known, pieces, summaries)
    remove_folder(pieces[0].folder)


def _require_default_damping(estimator: Estimator) -> None:
    """Check that an estimator's damping is the one that the tables are made for.

    Raises:
        InputError: it is not.
    """
    if estimator.damping != DEFAULT_LAMBDA:
        raise InputError(
            f"{estimator.label} was given; the tables of a run hold the dampings {', '.join(map(str, LAMBDAS))}, and "
            f"verdicts rest on {DEFAULT_LAMBDA}: expected damping={DEFAULT_LAMBDA}. Influence at another one: "
            "aitia.attribution.influence"
        )


def _require_recordable(estimator: Estimator) -> None:
    """Check that the label of an estimator, by which tables call its rows, says all that they depend on.

    Raises:
        InputError: another class has its name, or it has parameters that are no fields.
    """
    kind, registered = type(estimator), estimators().get(estimator.name)
    if registered is not None and type(registered) is not kind:
        raise InputError(
            f"an estimator {kind.__qualname__} was given with the name `{estimator.name}`, which is that of "
            f"{type(registered).__qualname__}, whose rows it would replace: give it a name of its own"
        )
    if not is_dataclass(estimator) and getattr(estimator, "__dict__", None):
        raise InputError(
            f"an estimator {kind.__qualname__} was given with the parameters {', '.join(vars(estimator))}, which are "
            "no fields of a dataclass, so tables could not name them: make it a frozen dataclass, such as Trak"
        )


@dataclass(frozen=True)
class _SummaryPiece:
    """The sums of what one seed's training paid."""

    root: Path
    task: Task
    seed: int


def _summarise(piece: _SummaryPiece) -> None:
    reward_summary(RunFolder(piece.root), piece.seed, load_grouping(RunFolder(piece.root), piece.task))


def _summaries(run: Run, workers: Workers) -> list[pa.Table]:
    """Return the rows of each seed's reward summary that are summed over windows: groups that can have an effect."""
    ensure_groups(run.folder, run.task)
    grouping, root = run.grouping, run.folder.root
    paths = {seed: reward_sums_path(run.folder, seed, grouping.name) for seed in run.task.seeds}
    for path in [path for path in paths.values() if grouping.name == "transition" and path.exists()]:
        if metadata_of(read_table_schema(path)).get("group_names") != GROUP_NAMES:
            path.unlink()  # of 0.1, which named transitions otherwise
    open_seeds = [seed for seed, path in paths.items() if not path.exists()]
    workers.map(_summarise, [_SummaryPiece(root, run.task, seed) for seed in open_seeds], f"sum {run.task.name}")
    run.note_files([paths[seed] for seed in open_seeds])
    summaries = [reward_summary(run.folder, seed, grouping) for seed in run.task.seeds]
    if grouping.name == "transition":  # every state would be a group of its own
        summaries = [table.filter(pc.field("wrong_transitions") > 0) for table in summaries]
    return summaries


class _OfCall(NamedTuple):
    """What the windows of one call share: read with the first window that a process attributes."""

    call: str
    targets: Targets
    grouping: Grouping
    leaders: Leaders  # of the windows that this process has finished


class _Process:
    """What a worker process keeps from one window to the next: nothing but that of the latest call."""

    def __init__(self) -> None:
        self._latest: _OfCall | None = None

    def of_call(self, piece: WindowPiece) -> _OfCall:
        """Return what the windows of the piece's call share."""
        if self._latest is None or self._latest.call != piece.call:
            folder = RunFolder(piece.root)
            self._latest = _OfCall(
                piece.call, load_targets(folder, piece.task, piece.set_name, piece.failures),
                load_grouping(folder, piece.task), Leaders.none(piece.failures),
            )  # fmt: skip
        return self._latest

    def finish(self, piece: WindowPiece, top: pa.Table) -> None:
        """Take the top transitions of a finished window into account."""
        shared = self.of_call(piece)
        self._latest = shared._replace(leaders=shared.leaders.add((piece.seed, piece.window), top))


_process = _Process()


def _attribute_replayed(pieces: Sequence[WindowPiece]) -> None:
    """Attribute windows of one seed while its training is replayed: an estimator needs the real updates."""
    task, waiting = pieces[0].task, {piece.window: piece for piece in pieces}
    replayed = Replay(task.agent, task.training_env, pieces[0].seed, RunFolder(pieces[0].root))
    for window in replayed.windows(keep_updates=True):
        if window.number in waiting:
            _attribute_window(waiting[window.number], window)


def _attribute_window(piece: WindowPiece, updates: ReplayedWindow | None = None) -> None:
    folder, task = RunFolder(piece.root), piece.task
    if piece.finished:
        return  # by a worker that was lost then
    shared = _process.of_call(piece)
    window = read_window(folder.transitions_path(piece.seed, piece.window), shared.grouping)
    window = replace(window, updates=updates)
    parameters = read_tensors(folder.checkpoint_path(piece.seed, piece.window))
    actor = on_device(as_actor(load_policy(task.agent, task.training_env, parameters)), task.device)
    influence = attribute_window(window, actor, shared.targets, piece.estimator, leaders=shared.leaders)
    write_table(piece.top_path, influence.top)
    precision = torch.float64 if len(window.rows.counts) <= DOUBLE_ROWS else torch.float32  # that of the scores
    sums = {
        name: torch.from_numpy(values).to(precision) for name, values in influence.sums.effects.items() if values.any()
    }
    sums |= {"null": torch.from_numpy(influence.sums.null), "units": torch.from_numpy(influence.units.sums)}
    unknown = [name for name in EFFECTS if name not in influence.sums.effects]  # of a tensor that is not there: zero
    names = {"groups": influence.sums.groups, "units": influence.units.groups, "unknown": unknown}
    write_tensors(piece.sums_path, sums, {key: json.dumps(groups) for key, groups in names.items()})
    _process.finish(piece, influence.top)


def _merge(run: Run, known: Sequence[str], pieces: Sequence[WindowPiece], summaries: Sequence[pa.Table]) -> None:
    """Sum the pieces of a call over windows, keep the top transitions, and add what is still up to date."""
    set_name, failures, estimator = pieces[0].set_name, pieces[0].failures, pieces[0].estimator.label
    top = TOP_TRANSITIONS.empty_table()
    tables, windows, null, units = [], [], [], []
    for seed, summary in zip(run.task.seeds, summaries, strict=True):
        mine = [piece for piece in pieces if piece.seed == seed] if failures else []
        sums = sum_windows(_window_sums(mine), len(mine), summary["group"].to_pylist(), len(failures))
        tables.append(group_table(sums, summary, seed, failures, estimator))
        windows.append(window_table(sums if intended_known([summary]) else None, seed, failures, estimator))
        null.append(null_table(sums, summary, seed, estimator))
        units.append(unit_table(sums, seed, estimator))
        top = keep_top(pa.concat_tables([top, *_top_of_windows(mine)]), TOP_K)
    merged = {"transitions": top, "groups": pa.concat_tables(tables), "windows": pa.concat_tables(windows)}
    new = Addition(pieces[0].key, estimator, failures, known)
    for name, rows in merged.items():
        new.write_rows(run.folder.influence_path(set_name, name), rows)
    for name, parts in (("null", null), ("units", units)):
        new.write_means(run.folder.influence_path(set_name, name), pa.concat_tables(parts))


def _require_few_groups(groups: int, failures: int) -> None:
    """Check that the sums fit: one row a failure, group and damping.

    Raises:
        InputError: they do not.
    """
    if groups * failures * len(LAMBDAS) > _MOST_SUMS:
        raise InputError(
            f"{counted(groups, 'group')} and {counted(failures, 'failure')} make "
            f"{groups * failures * len(LAMBDAS):,} sums a seed, expected "
            f"at most {_MOST_SUMS:,}: use group_by: cluster, or name fewer failures with --failure"
        )


def _window_sums(pieces: Sequence[WindowPiece]) -> Iterator[WindowSums]:
    """Yield the sums of finished windows; each file is read once."""
    for piece in pieces:
        metadata = read_tensor_metadata(piece.sums_path)
        groups, unit_groups, unknown = (json.loads(metadata.get(key, "[]")) for key in ("groups", "units", "unknown"))
        tensors = {name: values.numpy() for name, values in read_tensors(piece.sums_path).items()}
        null, units = tensors.pop("null"), tensors.pop("units")
        yield WindowSums(groups, tensors, unknown, null, unit_groups, units)


def _top_of_windows(pieces: Sequence[WindowPiece]) -> list[pa.Table]:
    """Return the top transitions of the windows of one seed, little more than what is kept in the end."""
    held: list[pa.Table] = []
    rows = 0
    for piece in pieces:
        held.append(current_top_transitions(read_table(piece.top_path)).cast(TOP_TRANSITIONS))
        rows += held[-1].num_rows
        if rows > _HELD_TOPS * TOP_K * len(piece.failures):
            held = [keep_top(pa.concat_tables(held), TOP_K)]
            rows = held[0].num_rows
    return held
