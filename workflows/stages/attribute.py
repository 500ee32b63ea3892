"""Stage attribute: failures to the rewards of every window of every seed, merged into tables; only new failures."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from ...attribution.actors.adapt import as_actor, on_device
from ...attribution.effects.merge import (
    direction_table,
    group_table,
    mass_table,
    null_table,
    score_table,
    unit_table,
    window_table,
)
from ...attribution.effects.sums import Sums, add
from ...attribution.effects.top import TOP_K, Leaders, keep_top
from ...attribution.effects.window import FURTHER, Asked, WindowInfluence, attribute_window
from ...attribution.estimators.base import Estimator
from ...attribution.estimators.registry import AUTO, estimators, find_estimator
from ...attribution.estimators.window import read_window
from ...attribution.targets.steps import Targets
from ...datasets.errors import InputError, nearest
from ...datasets.files.remote import exist, remove_folder
from ...datasets.files.store import (
    RunFolder,
    read_json,
    read_table,
    read_table_schema,
    read_tensor_metadata,
    read_tensors,
    write_json,
    write_table,
    write_tensors,
)
from ...datasets.groups import Grouping
from ...datasets.influence import Addition, covered_by_all, further_of
from ...datasets.manifest import digest
from ...datasets.rewards import reward_summary, reward_sums_path
from ...datasets.schema import GROUP_NAMES, TOP_TRANSITIONS, current_top_transitions, metadata_of
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
_MOST_BLOCKS = 256  # of windows in a run
_ADDED_AT_ONCE, _MERGED_AT_ONCE = 16, 64  # blocks by a worker, and by the command
_FAILURES = "failures.json"
log = logging.getLogger("aitia")


@dataclass(frozen=True)
class BlockPiece:
    """The attribution of some failures of an evaluation set to a block of windows of one training.

    What all pieces of a call share, such as the failures, lies in their folder.

    Attributes:
        folder: of the finished pieces of one call: they fit only the same failures, target, seeds and effects.
        call: one that computes: tops of its windows may be compared with each other.
        masses_known: whether earlier failures decided what the windows' effects are divided by, at some damping.
    """

    root: Path
    task: Task
    set_name: str
    estimator: Estimator
    asked: Asked
    seed: int
    windows: range
    folder: Path
    call: str
    masses_known: bool

    @property
    def sums_path(self) -> Path:
        """Group sums."""
        return self.folder / f"seed={self.seed}" / f"window={self.windows[0]:05d}.safetensors"

    @property
    def top_path(self) -> Path:
        """Top transitions."""
        return self.sums_path.with_suffix(".parquet")

    @property
    def finished(self) -> bool:
        """Whether both of its files are there."""
        return self.sums_path.exists() and self.top_path.exists()

    def read(self) -> Sums:
        """Return its group sums."""
        arrays = {name: values.numpy() for name, values in read_tensors(self.sums_path).items()}
        return Sums.of(arrays, read_tensor_metadata(self.sums_path))

    def write(self, influence: WindowInfluence) -> None:
        """Keep what the attribution of its windows left."""
        write_table(self.top_path, influence.top)
        arrays = influence.sums.arrays()
        tensors = {name: torch.from_numpy(np.require(values, requirements="W")) for name, values in arrays.items()}
        write_tensors(self.sums_path, tensors, influence.sums.names())


def attribute_stage(
    run: Run,
    set_name: str,
    failures: Sequence[str],
    estimator: str | Estimator,
    workers: Workers,
    effects: Sequence[str] = (),
) -> None:
    """Attribute failures that are not yet, or no more, up to date to every window of every seed; merge the pieces.

    Args:
        run: an evaluated run.
        set_name: the evaluation set.
        failures: ids; empty: all failures of the set.
        estimator: an estimator, the name of one, or `auto`.
        workers: where the pieces run.
        effects: of `FURTHER`, computed in addition; what the tables have already of the estimator is computed too.

    Raises:
        InputError: an unknown failure, estimator or effect, or a missing window.
    """
    if estimator == AUTO:
        estimator, reason = estimator_of(run.task)
        log.info("attribute %s: %s, because %s", run.task.name, estimator, reason)
    chosen_estimator = find_estimator(estimator)
    _require_recordable(chosen_estimator)
    _require_effects(effects)
    run.require_trained()
    evaluated, label = run[set_name], chosen_estimator.label
    known, named = evaluated.failure_ids, frozenset(failures)
    evaluated.require_failures(failures)
    paths = {name: run.folder.influence_path(set_name, name) for name in INFLUENCE_TABLES}
    key = run.manifest.attribution = attribution_key(run.task, run.manifest.task_folder)
    masses = run.folder.influence_path(set_name, "masses")
    done = covered_by_all(list(paths.values()), key, label)
    if done and not masses.exists():  # of what is there nobody knows the unit
        named, done = frozenset(), None
    there = further_of([*paths.values(), masses], key, label) if done else frozenset[str]()
    asked = Asked(there | frozenset(effects))
    if done and asked.further > there:
        named, done = named | done if named else named, frozenset()
    chosen = tuple(name for name in known if name not in (done or ()) and (name in named or not named))
    if done is not None and not chosen:
        return
    summaries = _summaries(run, workers)
    dampings = asked.dampings(chosen_estimator)
    _require_few_groups(max(table.num_rows for table in summaries), len(chosen), len(dampings))
    added = Addition(key, label, chosen, known, tuple(sorted(asked.further)))
    known_masses = added.known_values(masses, "lambda")  # of these dampings they were formed, and stay
    folder = run.folder.parts_folder(
        "influence", set_name, digest([chosen, label, added.further, known_masses, key])[:16]
    )
    size = block_size(sum(run.folder.window_count(seed) for seed in run.task.seeds))
    shared = (folder, uuid.uuid4().hex, bool(known_masses))
    pieces = [
        BlockPiece(run.folder.root, run.task, set_name, chosen_estimator, asked, seed, windows, *shared)
        for seed in run.task.seeds
        for windows in _blocks(run.folder.window_count(seed), size)
    ]
    write_json(folder / _FAILURES, list(chosen))
    files = exist([piece.sums_path for piece in pieces]), exist([piece.top_path for piece in pieces])
    waiting = [piece for piece, *whole in zip(pieces, *files, strict=True) if not all(whole)]
    name = f"attribute {run.task.name}"
    if not chosen:
        merged = dict.fromkeys(run.task.seeds, WindowInfluence(Sums.none(len(dampings)), TOP_TRANSITIONS.empty_table()))
        _write_tables(run, pieces[0], added, merged, summaries)
        remove_folder(folder)
        return
    if chosen_estimator.needs_updates:
        by_seed = [[piece for piece in waiting if piece.seed == seed] for seed in run.task.seeds]
        workers.map(_attribute_replayed, [mine for mine in by_seed if mine], name)
    else:
        workers.map(_attribute_block, waiting, name)
    merged = _merge_blocks(pieces, workers, f"merge {run.task.name}")
    _write_tables(run, pieces[0], added, merged, summaries)
    remove_folder(folder)


def block_size(windows: int) -> int:
    """Return how many windows make a block: a function of the run alone, so that sums are the same bits anywhere."""
    return -(-windows // _MOST_BLOCKS)


def _blocks(windows: int, size: int) -> list[range]:
    return [range(start, min(start + size, windows)) for start in range(0, windows, size)]


def _require_effects(effects: Sequence[str]) -> None:
    """Check that effects can be asked for.

    Raises:
        InputError: one cannot.
    """
    for name in effects:
        if name not in FURTHER:
            raise InputError(f"--effects {name} was given, expected {', '.join(FURTHER)}.{nearest(name, FURTHER)}")


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
    """What the windows of one call share: read with the first block that a process attributes."""

    call: str
    targets: Targets
    grouping: Grouping
    masses: dict[tuple[int, int], NDArray[np.float64]]
    leaders: Leaders  # of the windows that this process has finished


class _Process:
    """What a worker process keeps from one block to the next: nothing but that of the latest call."""

    def __init__(self) -> None:
        self._latest: _OfCall | None = None

    def of_call(self, piece: BlockPiece) -> _OfCall:
        """Return what the blocks of the piece's call share."""
        if self._latest is None or self._latest.call != piece.call:
            folder, failures = RunFolder(piece.root), read_json(piece.folder / _FAILURES)
            self._latest = _OfCall(
                piece.call, load_targets(folder, piece.task, piece.set_name, failures),
                load_grouping(folder, piece.task), _masses(folder, piece), Leaders.none(failures),
            )  # fmt: skip
        return self._latest

    def finish(self, piece: BlockPiece, window: int, top: pa.Table) -> None:
        """Take the top transitions of a finished window into account."""
        shared = self.of_call(piece)
        self._latest = shared._replace(leaders=shared.leaders.add((piece.seed, window), top))


_process = _Process()


def _masses(folder: RunFolder, piece: BlockPiece) -> dict[tuple[int, int], NDArray[np.float64]]:
    """Return the masses [L] that earlier failures decided, by seed and window; NaN where these failures do."""
    if not piece.masses_known:
        return {}
    place = {lam: index for index, lam in enumerate(piece.asked.dampings(piece.estimator))}
    masses: dict[tuple[int, int], NDArray[np.float64]] = {}
    rows = read_table(folder.influence_path(piece.set_name, "masses"))
    for row in rows.filter(pc.field("estimator") == piece.estimator.label).to_pylist():
        if row["lambda"] in place:
            mine = masses.setdefault((row["seed"], row["window"]), np.full(len(place), np.nan))
            mine[place[row["lambda"]]] = row["mass"]
    return masses


def _attribute_replayed(pieces: Sequence[BlockPiece]) -> None:
    """Attribute blocks of one seed while its training is replayed: an estimator needs the real updates."""
    task, waiting = pieces[0].task, list(pieces)
    done: list[WindowInfluence] = []
    for replayed in Replay(task.agent, task.training_env, pieces[0].seed, RunFolder(pieces[0].root)).windows(
        keep_updates=True
    ):
        if waiting and replayed.number in waiting[0].windows:
            done.append(_attribute_window(waiting[0], replayed.number, replayed))
            if replayed.number == waiting[0].windows[-1]:
                waiting.pop(0).write(_added(done))
                done = []


def _attribute_block(piece: BlockPiece) -> None:
    if not piece.finished:  # else by a worker that was lost then
        piece.write(_added([_attribute_window(piece, number) for number in piece.windows]))


def _added(parts: Sequence[WindowInfluence]) -> WindowInfluence:
    """Return what several windows of one seed left together."""
    top = pa.concat_tables([part.top.cast(TOP_TRANSITIONS) for part in parts])
    return WindowInfluence(add([part.sums for part in parts]), keep_top(top, TOP_K) if len(parts) > 1 else top)


def _attribute_window(piece: BlockPiece, number: int, updates: ReplayedWindow | None = None) -> WindowInfluence:
    folder, task = RunFolder(piece.root), piece.task
    shared = _process.of_call(piece)
    window = read_window(folder.transitions_path(piece.seed, number), shared.grouping)
    window = replace(window, updates=updates)
    parameters = read_tensors(folder.checkpoint_path(piece.seed, number))
    actor = on_device(as_actor(load_policy(task.agent, task.training_env, parameters)), task.device)
    influence = attribute_window(
        window, actor, shared.targets, piece.estimator, leaders=shared.leaders, asked=piece.asked,
        mass=shared.masses.get((piece.seed, number)),
    )  # fmt: skip
    _process.finish(piece, number, influence.top)
    return influence


class _Merge(NamedTuple):
    """Finished blocks of one seed, in order, and where their sum goes."""

    blocks: tuple[BlockPiece, ...]
    total: BlockPiece

    def run(self) -> None:
        """Add them up, unless that is done."""
        if not self.total.finished:
            self.total.write(_read_and_add(self.blocks))


def _merge(piece: _Merge) -> None:
    piece.run()


def _read_and_add(blocks: Sequence[BlockPiece]) -> WindowInfluence:
    tops = (current_top_transitions(read_table(piece.top_path)) for piece in blocks)
    return _added([WindowInfluence(piece.read(), top) for piece, top in zip(blocks, tops, strict=True)])


def _merge_blocks(pieces: Sequence[BlockPiece], workers: Workers, label: str) -> dict[int, WindowInfluence]:
    """Return what the windows of each seed left together; many blocks are added up by the workers first."""
    while len(pieces) > _MERGED_AT_ONCE:
        merges = []
        for seed in dict.fromkeys(piece.seed for piece in pieces):
            mine = [piece for piece in pieces if piece.seed == seed]
            for some in _blocks(len(mine), _ADDED_AT_ONCE):
                blocks = tuple(mine[some[0] : some[-1] + 1])
                windows = range(blocks[0].windows[0], blocks[-1].windows[-1] + 1)
                merges.append(_Merge(blocks, replace(blocks[0], windows=windows, folder=blocks[0].folder / "merged")))
        workers.map(_merge, merges, label)
        fewer = [merge.total for merge in merges]
        if len(fewer) == len(pieces):
            break
        pieces = fewer
    seeds = dict.fromkeys(piece.seed for piece in pieces)
    return {seed: _read_and_add([piece for piece in pieces if piece.seed == seed]) for seed in seeds}


def _write_tables(
    run: Run, piece: BlockPiece, added: Addition, merged: Mapping[int, WindowInfluence], summaries: Sequence[pa.Table]
) -> None:
    """Add what the windows of each seed left to the tables, which keep what is still up to date."""
    estimator, failures, dampings = added.estimator, added.failures, piece.asked.dampings(piece.estimator)
    tables: dict[str, list[pa.Table]] = {name: [] for name in (*INFLUENCE_TABLES, "masses")}
    for (seed, (sums, top)), summary in zip(merged.items(), summaries, strict=True):
        tables["transitions"] = [keep_top(pa.concat_tables([*tables["transitions"], top]), TOP_K)]
        tables["groups"].append(group_table(sums, summary, seed, failures, dampings, estimator))
        tables["windows"].append(window_table(sums, summary, seed, failures, estimator))
        tables["null"].append(null_table(sums, seed, estimator))
        tables["units"].append(unit_table(sums, seed, estimator))
        tables["direction"].append(direction_table(sums, seed, estimator))
        tables["scores"].append(score_table(sums, seed, estimator))
        tables["masses"].append(mass_table(sums, seed, dampings, estimator))
    for name, parts in tables.items():
        path = run.folder.influence_path(piece.set_name, name)
        if name in ("transitions", "groups", "windows"):
            added.write_rows(path, pa.concat_tables(parts))
        elif name != "masses":
            added.write_means(path, pa.concat_tables(parts))
        else:
            added.write_once(path, pa.concat_tables(parts), "lambda")


def _require_few_groups(groups: int, failures: int, dampings: int) -> None:
    """Check that the sums fit: one row a failure, group and damping.

    Raises:
        InputError: they do not.
    """
    if groups * failures * dampings > _MOST_SUMS:
        raise InputError(
            f"{counted(groups, 'group')} and {counted(failures, 'failure')} make "
            f"{groups * failures * dampings:,} sums a seed, expected "
            f"at most {_MOST_SUMS:,}: use group_by: cluster, or name fewer failures with --failure"
        )
