"""Stages train, evaluate and attribute: pieces of work on Dask, each written whole and never done again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..attribution.targets import TargetSteps, make_targets
from ..attribution.trak import LAMBDAS
from ..attribution.window import ESTIMATORS, TOP_K, attribute_window, keep_top, read_window
from ..datasets.errors import InputError, nearest
from ..datasets.manifest import digest
from ..datasets.rewards import reward_summary
from ..datasets.schema import GROUP_EFFECTS, RANDOM_POLICY_SEED, TOP_TRANSITIONS, failure_id
from ..datasets.store import (
    RunFolder,
    read_table,
    read_tensor_metadata,
    read_tensors,
    write_table,
    write_tensors,
    write_text,
)
from ..training.agents import load_policy
from ..training.ensemble import train_recorded
from ..training.environments import describe
from ..training.evaluation import evaluate_policy
from .runs import Run
from .task import Task
from .workers import Workers


@dataclass(frozen=True)
class SeedPiece:
    """One training, or the plays of one agent, of a run."""

    root: Path
    task: Task
    seed: int
    set_name: str = ""


def train_stage(run: Run, workers: Workers) -> None:
    """Train and record every seed that is not whole yet."""
    open_seeds = [seed for seed in run.task.seeds if run.folder.missing_files(seed)]
    for seed in open_seeds:
        (run.folder.parts_folder("rewards") / f"seed={seed}.parquet").unlink(missing_ok=True)
    pieces = [SeedPiece(run.folder.root, run.task, seed) for seed in open_seeds]
    workers.map(_train_seed, pieces, f"train {run.task.name}")


def _train_seed(piece: SeedPiece) -> None:
    folder = RunFolder(piece.root)
    train_recorded(piece.task.agent, piece.task.training_env, piece.seed, folder)
    reward_summary(folder, piece.seed)


def evaluate_stage(run: Run, set_name: str, workers: Workers) -> None:
    """Play test and training episodes with every agent and once with a random policy."""
    run.require_trained()
    run.task.evaluation_env(set_name)
    seeds = [*run.task.seeds, RANDOM_POLICY_SEED]
    pieces = [
        SeedPiece(run.folder.root, run.task, seed, set_name)
        for seed in seeds
        if not _evaluation_part(run.folder, set_name, seed, "episodes").exists()
    ]
    workers.map(_evaluate_seed, pieces, f"evaluate {run.task.name}")
    for table in ("steps", "episodes"):
        parts = [read_table(_evaluation_part(run.folder, set_name, seed, table)) for seed in seeds]
        write_table(run.folder.evaluation_path(set_name, table), pa.concat_tables(parts))


def _evaluation_part(folder: RunFolder, set_name: str, seed: int, table: str) -> Path:
    return folder.parts_folder("evaluations", set_name) / f"seed={seed}.{table}.parquet"


def _evaluate_seed(piece: SeedPiece) -> None:
    task, folder = piece.task, RunFolder(piece.root)
    policy = None
    if piece.seed != RANDOM_POLICY_SEED:
        policy = load_policy(task.agent, task.training_env, read_tensors(folder.final_path(piece.seed)))
    test, steps = evaluate_policy(policy, task.evaluation_env(piece.set_name), task.evaluation, piece.seed, "test")
    train, _ = evaluate_policy(policy, task.training_env, task.evaluation, piece.seed, "train")
    write_table(_evaluation_part(folder, piece.set_name, piece.seed, "steps"), steps)
    episodes = pa.concat_tables([test, train])
    write_table(_evaluation_part(folder, piece.set_name, piece.seed, "episodes"), episodes)


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

    @property
    def folder(self) -> Path:
        """Folder of the finished pieces of one call: they fit only the same failures, target and seeds."""
        call = [self.failures, self.task.target, self.estimator, self.task.seeds, LAMBDAS, TOP_K]
        return RunFolder(self.root).parts_folder("influence", self.set_name, digest(call)[:16])

    @property
    def part(self) -> Path:
        """Path of the finished piece, without its ending."""
        return self.folder / f"seed={self.seed}" / f"window={self.window:05d}"

    @property
    def sums_path(self) -> Path:
        """Group sums; written last, so it marks the piece as finished."""
        return self.part.with_suffix(".safetensors")

    @property
    def top_path(self) -> Path:
        """Top transitions."""
        return self.part.with_suffix(".parquet")


def attribute_stage(run: Run, set_name: str, failures: Sequence[str], estimator: str, workers: Workers) -> None:
    """Attribute failures to every window of every seed and merge the pieces.

    Args:
        run: an evaluated run.
        set_name: the evaluation set.
        failures: ids; empty: all failures of the set.
        estimator: a name of `ESTIMATORS`.
        workers: where the pieces run.

    Raises:
        InputError: an unknown failure or estimator, or a missing window.
    """
    if estimator not in ESTIMATORS:
        raise InputError(
            f"--estimator {estimator} was given, expected one of {', '.join(ESTIMATORS)}."
            f"{nearest(estimator, ESTIMATORS)}"
        )
    run.require_trained()
    known = failures_of(run, set_name)
    for name in failures:
        if name not in known:
            raise InputError(
                f"--failure {name} was given; {run.folder.root} has {len(known)} failures in set `{set_name}` "
                f"(ids are SEED-EPISODE, such as {known[0] if known else '0-3'}).{nearest(name, known)}"
            )
    chosen = tuple(failures) or tuple(known)
    pieces = [
        WindowPiece(run.folder.root, run.task, set_name, chosen, estimator, seed, window)
        for seed in run.task.seeds
        for window in range(run.folder.window_count(seed))
    ]
    done = pieces[0].folder.with_suffix(".done")
    if done.exists() and run.folder.influence_path(set_name, "groups").exists():
        return
    if chosen:
        waiting = [piece for piece in pieces if not piece.sums_path.exists()]
        workers.map(_attribute_window, waiting, f"attribute {run.task.name}")
    _merge(run, set_name, chosen, estimator, pieces)
    shutil.rmtree(pieces[0].folder, ignore_errors=True)
    write_text(done, "")


def failures_of(run: Run, set_name: str) -> list[str]:
    """Return the ids of the failures of an evaluated set."""
    episodes = run.task.outcomes.failures(read_table(run.folder.evaluation_path(set_name, "episodes")))
    pairs = zip(episodes["seed"].to_pylist(), episodes["episode"].to_pylist(), strict=True)
    return [failure_id(seed, episode) for seed, episode in pairs]


def load_targets(folder: RunFolder, task: Task, set_name: str, failures: Sequence[str]) -> TargetSteps:
    """Collect the targets of failures from the tables of a run."""
    episodes = task.outcomes.failures(read_table(folder.evaluation_path(set_name, "episodes")))
    steps = read_table(folder.evaluation_path(set_name, "steps"))
    names = [failure_id(row["seed"], row["episode"]) for row in episodes.select(["seed", "episode"]).to_pylist()]
    keep = pa.array([name in set(failures) for name in names], pa.bool_())
    return make_targets(steps, episodes.filter(keep), task.target, describe(task.training_env).first_action)


@lru_cache(maxsize=1)
def _cached_targets(root: Path, task_json: str, set_name: str, failures: tuple[str, ...], stamp: int) -> TargetSteps:
    """Return the targets that all windows of a call share; read once a process, again if the steps change."""
    return load_targets(RunFolder(root), Task.model_validate_json(task_json), set_name, failures)


def _attribute_window(piece: WindowPiece) -> None:
    folder, task = RunFolder(piece.root), piece.task
    path = folder.transitions_path(piece.seed, piece.window)
    window = read_window(path, describe(task.training_env).first_action)
    parameters = read_tensors(folder.checkpoint_path(piece.seed, piece.window))
    policy = load_policy(task.agent, task.training_env, parameters)
    stamp = folder.evaluation_path(piece.set_name, "steps").stat().st_mtime_ns
    targets = _cached_targets(piece.root, task.model_dump_json(), piece.set_name, piece.failures, stamp)
    influence = attribute_window(window, policy, targets, piece.estimator)
    write_table(piece.top_path, influence.top)
    sums = {
        "effect": torch.from_numpy(influence.sums.effect),
        "effect_raw": torch.from_numpy(influence.sums.effect_raw),
    }
    write_tensors(piece.sums_path, sums, {"groups": json.dumps(influence.sums.groups)})


def _merge(run: Run, set_name: str, failures: tuple[str, ...], estimator: str, pieces: Sequence[WindowPiece]) -> None:
    """Sum the pieces over windows, keep the top transitions, and replace these failures' earlier rows."""
    top = TOP_TRANSITIONS.empty_table()
    tables = []
    summaries = {seed: reward_summary(run.folder, seed) for seed in run.task.seeds}
    for seed in run.task.seeds:
        mine = [piece for piece in pieces if piece.seed == seed] if failures else []
        tables.append(_merge_sums(mine, summaries[seed], seed, failures, estimator))
        for piece in mine:
            top = pa.concat_tables([top, read_table(piece.top_path).cast(TOP_TRANSITIONS)])
        top = keep_top(top, TOP_K)
    merged = {"groups": pa.concat_tables(tables), "transitions": top}
    for name, table in merged.items():
        path = run.folder.influence_path(set_name, name)
        write_table(path, pa.concat_tables([*_earlier(path, failures, estimator), table]).unify_dictionaries())


def _earlier(path: Path, failures: tuple[str, ...], estimator: str) -> list[pa.Table]:
    """Return the rows of other failures and other estimators that are already there."""
    if not path.exists() or not failures:
        return []
    table = read_table(path)
    same = pc.field("failure").cast(pa.string()).isin(list(failures)) & (pc.field("estimator") == estimator)
    return [table.filter(~same)]


def _merge_sums(
    pieces: Sequence[WindowPiece], summary: pa.Table, seed: int, failures: tuple[str, ...], estimator: str
) -> pa.Table:
    """Return the group sums of one seed, every group of its training, zero where nothing is to correct."""
    groups = summary["group"].to_pylist()
    position = {name: i for i, name in enumerate(groups)}
    shape = (len(LAMBDAS), len(failures), len(groups))
    totals = {"effect": np.zeros(shape), "effect_raw": np.zeros(shape)}
    for piece in pieces:
        names = json.loads(read_tensor_metadata(piece.sums_path)["groups"])
        tensors = read_tensors(piece.sums_path)
        where = [position[name] for name in names]
        for name, total in totals.items():
            total[:, :, where] += tensors[name].numpy()
    rows = int(np.prod(shape))
    failure = np.broadcast_to(np.arange(len(failures), dtype=np.int32)[None, :, None], shape).reshape(-1)
    group = np.broadcast_to(np.arange(len(groups), dtype=np.int32)[None, None, :], shape).reshape(-1)
    known = (summary.schema.metadata or {}).get(b"intended_known") == b"true"
    no_effect = None if known else np.ones(rows, dtype=bool)

    def counts(name: str) -> pa.Array:
        return pa.array(summary[name].to_numpy()[group])

    return pa.table(
        {
            "failure": pa.DictionaryArray.from_arrays(pa.array(failure), pa.array(failures, pa.string())),
            "group": pa.DictionaryArray.from_arrays(pa.array(group), pa.array(groups, pa.string())),
            "seed": pa.array(np.full(rows, seed, np.int32)),
            "lambda": pa.array(np.repeat(np.array(LAMBDAS), len(failures) * len(groups))),
            "effect": pa.array(totals["effect"].reshape(-1), mask=no_effect),
            "effect_raw": pa.array(totals["effect_raw"].reshape(-1), mask=no_effect),
            "transitions": counts("transitions"),
            "reward_events": counts("reward_events"),
            "estimator": pa.array([estimator] * rows),
        },
        schema=GROUP_EFFECTS,
    )
