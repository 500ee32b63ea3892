"""Stage attribute: failures to the rewards of every window of every seed, merged into tables; only new failures."""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from ...attribution.effects.window import EFFECTS, NULL_DRAWS, TOP_K, Leaders, attribute_window, keep_top
from ...attribution.estimators.base import Estimator
from ...attribution.estimators.registry import AUTO, find_estimator
from ...attribution.estimators.window import read_window
from ...attribution.gradients.kernel import DEFAULT_LAMBDA, DOUBLE_ROWS, LAMBDAS
from ...attribution.targets.steps import TargetSteps, make_targets
from ...datasets.errors import InputError, nearest
from ...datasets.files.remote import exist, remove_folder, stamp
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
from ...datasets.outcomes import failure_ids
from ...datasets.rewards import intended_known, reward_summary, reward_sums_path
from ...datasets.schema import (
    GROUP_EFFECTS,
    GROUP_NAMES,
    NULL_EFFECTS,
    TOP_TRANSITIONS,
    UNIT_EFFECTS,
    WINDOW_EFFECTS,
    current_top_transitions,
    metadata_of,
)
from ...datasets.words import counted
from ...training.agents.spec import load_policy
from ...training.retraining.replay import Replay, ReplayedWindow
from ..runs.changes import attribution_key
from ..runs.groups import clusters_path, ensure_groups, load_grouping
from ..runs.recorded import estimator_of
from ..runs.run import Run
from ..runs.task import Task
from ..workers.pool import Workers

DEFAULT_ESTIMATOR = AUTO
_MOST_SUMS = 20_000_000
_HELD_TOPS = 8  # times k top transitions a failure are held before the smaller ones are dropped; kept are up to 2 k
_EFFECT_COLUMNS = ("failure", "group", "seed", "lambda", "effect", "estimator")  # all that orders and clusters need
_TABLES = ("groups", "transitions", "windows", "null", "units")
log = logging.getLogger("aitia")


@dataclass(frozen=True)
class WindowPiece:
    """The attribution of some failures of an evaluation set to one window."""

    root: Path
    task: Task
    set_name: str
    failures: tuple[str, ...]
    estimator: str
    seed: int
    window: int
    call: str  # one that computes: tops of its windows may be compared with each other
    key: str  # see `attribution_key`

    @cached_property
    def folder(self) -> Path:
        """Folder of the finished pieces of one call: they fit only the same failures, target and seeds."""
        call = digest([self.failures, self.estimator, self.key])[:16]
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


def attribute_stage(run: Run, set_name: str, failures: Sequence[str], estimator: str, workers: Workers) -> None:
    """Attribute failures that are not yet, or no more, up to date to every window of every seed; merge the pieces.

    Args:
        run: an evaluated run.
        set_name: the evaluation set.
        failures: ids; empty: all failures of the set.
        estimator: name of an estimator, or `auto`.
        workers: where the pieces run.

    Raises:
        InputError: an unknown failure or estimator, or a missing window.
    """
    if estimator == AUTO:
        estimator, reason = estimator_of(run.task)
        log.info("attribute %s: %s, because %s", run.task.name, estimator, reason)
    find_estimator(estimator)
    run.require_trained()
    known = failures_of(run, set_name)
    there, named = frozenset(known), frozenset(failures)
    for name in failures:
        if name not in there:
            raise InputError(
                f"--failure {name} was given; {run.folder.root} has {counted(len(known), 'failure')} in set "
                f"`{set_name}` "
                f"(ids are SEED-EPISODE, such as {known[0] if known else '0-3'}).{nearest(name, known)}"
            )
    paths = [run.folder.influence_path(set_name, name) for name in _TABLES]
    key = run.manifest.attribution = attribution_key(run.task, run.manifest.task_folder)
    done = covered_by_all(paths, key, estimator)
    chosen = tuple(name for name in known if name not in (done or ()) and (name in named or not named))
    if done is not None and not chosen:
        return
    summaries = _summaries(run, workers)
    _require_few_groups(max(table.num_rows for table in summaries), len(chosen))
    call = uuid.uuid4().hex
    pieces = [
        WindowPiece(run.folder.root, run.task, set_name, chosen, estimator, seed, window, call, key)
        for seed in run.task.seeds
        for window in range(run.folder.window_count(seed))
    ]
    if chosen:
        files = exist([piece.sums_path for piece in pieces]), exist([piece.top_path for piece in pieces])
        waiting = [piece for piece, *whole in zip(pieces, *files, strict=True) if not all(whole)]
        name = f"attribute {run.task.name}"
        if find_estimator(estimator).needs_updates:
            by_seed = [[piece for piece in waiting if piece.seed == seed] for seed in run.task.seeds]
            workers.map(_attribute_replayed, [found for found in by_seed if found], name)
        else:
            workers.map(_attribute_window, waiting, name)
    _merge(run, known, pieces, summaries)
    remove_folder(pieces[0].folder)


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
    grouping, root = load_grouping(run.folder, run.task), run.folder.root
    paths = {seed: reward_sums_path(run.folder, seed, grouping.name) for seed in run.task.seeds}
    for path in [path for path in paths.values() if grouping.name == "transition" and path.exists()]:
        if metadata_of(read_table_schema(path)).get("group_names") != GROUP_NAMES:
            path.unlink()  # of 0.1, which named transitions otherwise
    open_seeds = [seed for seed, path in paths.items() if not path.exists()]
    workers.map(_summarise, [_SummaryPiece(root, run.task, seed) for seed in open_seeds], f"sum {run.task.name}")
    run.note_files([paths[seed] for seed in open_seeds])
    found = [reward_summary(run.folder, seed, grouping) for seed in run.task.seeds]
    if grouping.name == "transition":  # every state would be a group of its own
        found = [table.filter(pc.field("wrong_transitions") > 0) for table in found]
    return found


def failures_of(run: Run, set_name: str) -> list[str]:
    """Return the ids of the failures of an evaluated set."""
    run.task.evaluation_env(set_name)
    return failure_ids(run.task.outcomes.failures(read_table(run.folder.evaluation_path(set_name, "episodes"))))


def load_targets(folder: RunFolder, task: Task, set_name: str, failures: Sequence[str]) -> TargetSteps:
    """Collect the targets of failures from the tables of a run, in the order of the episodes table."""
    episodes = task.outcomes.failures(read_table(folder.evaluation_path(set_name, "episodes")))
    steps = read_table(folder.evaluation_path(set_name, "steps"))
    wanted = frozenset(failures)
    keep = pa.array([name in wanted for name in failure_ids(episodes)], pa.bool_())
    return make_targets(steps, episodes.filter(keep), task.target)


def attributed_tables(run: Run, set_name: str, failures: Sequence[str], estimator: str) -> dict[str, pa.Table]:
    """Return the influence tables of an estimator: `groups` (at the default damping) and `transitions`.

    Raises:
        InputError: some of the failures were not attributed, or another target, other seeds or another grouping were.
    """
    folder = run.folder
    own = pc.field("estimator") == estimator
    sums = read_table(folder.influence_path(set_name, "groups"), _EFFECT_COLUMNS)
    tables = {
        "groups": sums.filter(own & (pc.field("lambda") == DEFAULT_LAMBDA)),
        "transitions": current_top_transitions(read_table(folder.influence_path(set_name, "transitions"))).filter(own),
    }
    known = _failures_in(*tables.values())
    missing = [name for name in failures if name not in known]
    if missing:
        raise InputError(
            f"{len(missing)} of {counted(len(failures), 'failure')} were not attributed (the first is "
            f"{missing[0]}); run "
            f"`aitia attribute {folder.root} --set {set_name}` first"
        )
    paths = [path for name in _TABLES if (path := folder.influence_path(set_name, name)).exists()]
    key = run.manifest.attribution
    done = covered_by_all(paths, key, estimator) if key is not None else frozenset(failures)
    if done is None or not done.issuperset(failures):
        raise InputError(
            f"the influence tables of set `{set_name}` are out of date: they were made with another target, other "
            "seeds, another group_by or another version of aitia than the task of the run has now, or not all of them "
            f"were finished. Run `aitia attribute {folder.root} --set {set_name}` again"
        )
    return tables


def window_effects(folder: RunFolder, set_name: str, estimator: str) -> pa.Table:
    """Return the effects of windows, of one estimator; no rows where an earlier version attributed."""
    path = folder.influence_path(set_name, "windows")
    if not path.exists():
        return WINDOW_EFFECTS.empty_table()
    return read_table(path).filter(pc.field("estimator") == estimator)


def _failures_in(*tables: pa.Table) -> set[str]:
    """Return the failures that have rows: group sums, or, where no group is wrong, top transitions."""
    return {name for table in tables for name in pc.unique(table["failure"].cast(pa.string())).to_pylist()}


@lru_cache(maxsize=1)
def _cached_targets(root: Path, task_json: str, set_name: str, failures: tuple[str, ...], changed: str) -> TargetSteps:
    """Return the targets that all windows of a call share; read once a process, again if the steps change."""
    return load_targets(RunFolder(root), Task.model_validate_json(task_json), set_name, failures)


@lru_cache(maxsize=1)
def _grouping_of(root: Path, task_json: str, changed: str) -> Grouping:
    """Return the grouping of a run; read once a process, again if its state clusters change."""
    return load_grouping(RunFolder(root), Task.model_validate_json(task_json))


def _clusters_stamp(folder: RunFolder) -> str:
    path = clusters_path(folder)
    return stamp(path) if path.exists() else ""


@lru_cache
def _estimator_of(name: str) -> Estimator:
    """Return the estimator of a name; entry points are searched once a process."""
    return find_estimator(name)


@lru_cache(maxsize=1)
def _leaders_of(call: str, failures: tuple[str, ...]) -> Leaders:
    """Return the top of the windows that this process has finished in one call."""
    return Leaders(failures)


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
    window = read_window(
        folder.transitions_path(piece.seed, piece.window),
        _grouping_of(piece.root, task.model_dump_json(), _clusters_stamp(folder)),
    )
    window = replace(window, updates=updates)
    parameters = read_tensors(folder.checkpoint_path(piece.seed, piece.window))
    policy = load_policy(task.agent, task.training_env, parameters)
    changed = stamp(folder.evaluation_path(piece.set_name, "steps"))
    targets = _cached_targets(piece.root, task.model_dump_json(), piece.set_name, piece.failures, changed)
    leaders = _leaders_of(piece.call, piece.failures)
    influence = attribute_window(window, policy, targets, _estimator_of(piece.estimator), leaders=leaders)
    write_table(piece.top_path, influence.top)
    precision = torch.float64 if len(window.rows.counts) <= DOUBLE_ROWS else torch.float32  # that of the scores
    sums = {
        name: torch.from_numpy(values).to(precision) for name, values in influence.sums.effects.items() if values.any()
    }
    sums |= {"null": torch.from_numpy(influence.sums.null), "units": torch.from_numpy(influence.units.sums)}
    unknown = [name for name in EFFECTS if name not in influence.sums.effects]  # of a tensor that is not there: zero
    names = {"groups": influence.sums.groups, "units": influence.units.groups, "unknown": unknown}
    write_tensors(piece.sums_path, sums, {key: json.dumps(groups) for key, groups in names.items()})
    leaders.add((piece.seed, piece.window), influence.top)


def _merge(run: Run, known: Sequence[str], pieces: Sequence[WindowPiece], summaries: Sequence[pa.Table]) -> None:
    """Sum the pieces of a call over windows, keep the top transitions, and add what is still up to date."""
    set_name, failures, estimator = pieces[0].set_name, pieces[0].failures, pieces[0].estimator
    top = TOP_TRANSITIONS.empty_table()
    tables, windows, null, units = [], [], [], []
    for seed, summary in zip(run.task.seeds, summaries, strict=True):
        mine = [piece for piece in pieces if piece.seed == seed] if failures else []
        sums = _sum_windows(mine, summary["group"].to_pylist(), len(failures))
        tables.append(_merge_sums(sums, summary, seed, failures, estimator))
        windows.append(_merge_windows(sums if intended_known([summary]) else None, seed, failures, estimator))
        null.append(_merge_null(sums, summary, seed, estimator))
        units.append(_merge_units(sums, seed, estimator))
        top = keep_top(pa.concat_tables([top, *_top_of_windows(mine)]), TOP_K)
    merged = {"transitions": top, "groups": pa.concat_tables(tables), "windows": pa.concat_tables(windows)}
    new = Addition(pieces[0].key, estimator, failures, known)
    for name, found in merged.items():
        new.write_rows(run.folder.influence_path(set_name, name), found)
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


class _SeedSums(NamedTuple):
    """Sums over the windows of one seed's training.

    Attributes:
        effects: by name (`EFFECTS`), [L, F, G]; without those that the estimator does not compute.
        windows: sum over all groups of each window at the default damping, [W, F].
        null: of permuted influence, [D, G].
        units: by group, [4].
    """

    effects: dict[str, NDArray[np.float64]]
    windows: NDArray[np.float64]
    null: NDArray[np.float64]
    units: dict[str, NDArray[np.float64]]


def _sum_windows(pieces: Sequence[WindowPiece], groups: Sequence[str], failures: int) -> _SeedSums:
    """Sum the pieces of one seed; each file is read once, and one window's sums are held at a time."""
    position, plane = {name: i for i, name in enumerate(groups)}, LAMBDAS.index(DEFAULT_LAMBDA)
    effects = {name: np.zeros((len(LAMBDAS), failures, len(groups))) for name in EFFECTS}
    sums = _SeedSums(effects, np.zeros((len(pieces), failures)), np.zeros((NULL_DRAWS, len(groups))), {})
    for index, piece in enumerate(pieces):
        names, tensors = read_tensor_metadata(piece.sums_path), read_tensors(piece.sums_path)
        where = [position[name] for name in json.loads(names["groups"])]
        for name in json.loads(names.get("unknown", "[]")):
            effects.pop(name, None)
        for name, total in effects.items():
            if name in tensors:
                total[:, :, where] += tensors[name].numpy()
        if "effect" in tensors:
            sums.windows[index] = tensors["effect"][plane].double().sum(dim=1).numpy()
        sums.null[:, where] += tensors["null"].numpy()
        for name, row in zip(json.loads(names["units"]), tensors["units"].numpy().T, strict=True):
            sums.units[name] = sums.units.get(name, 0.0) + row
    return sums


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


def _merge_windows(sums: _SeedSums | None, seed: int, failures: Sequence[str], estimator: str) -> pa.Table:
    """Return the sum over all groups of each window of one seed's training: influence over training time."""
    effect = np.zeros((0, len(failures))) if sums is None else sums.windows
    rows, count = effect.size, len(failures)
    failure = np.tile(np.arange(count, dtype=np.int32), len(effect))
    return pa.table(
        {
            "failure": pa.DictionaryArray.from_arrays(pa.array(failure), pa.array(failures, pa.string())),
            "seed": pa.array(np.full(rows, seed, np.int32)),
            "window": pa.array(np.repeat(np.arange(len(effect), dtype=np.int32), count)),
            "effect": pa.array(effect.reshape(-1)),
            "estimator": pa.repeat(estimator, rows),
        },
        schema=WINDOW_EFFECTS,
    )


def _merge_null(sums: _SeedSums, summary: pa.Table, seed: int, estimator: str) -> pa.Table:
    """Return the sums of permuted influence of one seed, [D, G] as rows; none where nothing is to correct."""
    groups, total = summary["group"].to_pylist(), sums.null
    draw, group = np.nonzero(total)
    return pa.table(
        {
            "group": pa.DictionaryArray.from_arrays(pa.array(group.astype(np.int32)), pa.array(groups, pa.string())),
            "seed": pa.array(np.full(len(group), seed, np.int32)),
            "draw": pa.array(draw.astype(np.int32)),
            "effect": pa.array(total[draw, group]),
            "estimator": pa.array([estimator] * len(group), pa.string()),
        },
        schema=NULL_EFFECTS,
    )


def _merge_units(sums: _SeedSums, seed: int, estimator: str) -> pa.Table:
    """Return the sums over what arbitrary edits would change, of one seed's training, one row a group."""
    total = sums.units
    count, paid, tau, reward_tau = np.stack(list(total.values()), axis=1) if total else np.zeros((4, 0))
    return pa.table(
        {
            "group": pa.array(list(total), pa.string()).dictionary_encode(),
            "seed": pa.array(np.full(len(total), seed, np.int32)),
            "transitions": pa.array(count.astype(np.int64)),
            "paid": pa.array(paid),
            "tau": pa.array(tau),
            "reward_tau": pa.array(reward_tau),
            "estimator": pa.array([estimator] * len(total), pa.string()),
        },
        schema=UNIT_EFFECTS,
    )


def _merge_sums(sums: _SeedSums, summary: pa.Table, seed: int, failures: tuple[str, ...], estimator: str) -> pa.Table:
    """Return the group sums of one seed, every group of its training, zero where nothing is to correct."""
    groups = summary["group"].to_pylist()
    shape = (len(LAMBDAS), len(failures), len(groups))
    rows = int(np.prod(shape))
    failure = np.broadcast_to(np.arange(len(failures), dtype=np.int32)[None, :, None], shape).reshape(-1)
    group = np.broadcast_to(np.arange(len(groups), dtype=np.int32)[None, None, :], shape).reshape(-1)
    no_effect = None if intended_known([summary]) else np.ones(rows, dtype=bool)

    def counts(name: str) -> pa.Array:
        return pa.array(summary[name].to_numpy()[group])

    def effects(name: str) -> pa.Array:
        total = sums.effects.get(name)
        return pa.nulls(rows, pa.float64()) if total is None else pa.array(total.reshape(-1), mask=no_effect)

    return pa.table(
        {
            "failure": pa.DictionaryArray.from_arrays(pa.array(failure), pa.array(failures, pa.string())),
            "group": pa.DictionaryArray.from_arrays(pa.array(group), pa.array(groups, pa.string())),
            "seed": pa.array(np.full(rows, seed, np.int32)),
            "lambda": pa.array(np.repeat(np.array(LAMBDAS), len(failures) * len(groups))),
            **{name: effects(name) for name in EFFECTS},
            "transitions": counts("transitions"),
            "reward_events": counts("reward_events"),
            "estimator": pa.repeat(estimator, rows),
        },
        schema=GROUP_EFFECTS,
    )
