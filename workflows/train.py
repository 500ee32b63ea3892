"""Stages train and evaluate: one piece an agent, each written whole and never done again."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from ..datasets.learning import keep_training_outcomes
from ..datasets.remote import remove_folder
from ..datasets.rewards import reward_summary
from ..datasets.schema import RANDOM_POLICY_SEED, metadata_of, with_metadata
from ..datasets.store import (
    RunFolder,
    read_table,
    read_table_schema,
    read_tensor_metadata,
    read_tensors,
    write_table,
)
from ..training.agents import load_policy
from ..training.edits_file import ALL
from ..training.ensemble import train_recorded
from ..training.evaluation import evaluate_policy
from ..training.references import play_references
from .groups import load_grouping
from .plays import episode_count, episodes_at, joined, training_plays, with_earlier
from .runs import Run
from .task import Task
from .workers import Workers

log = logging.getLogger("aitia")


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
        _forget(run.folder, seed)
    remove_folder(run.folder.parts_folder("train"))  # what interrupted trainings left
    pieces = [SeedPiece(run.folder.root, run.task, seed) for seed in open_seeds]
    workers.map(_train_seed, pieces, f"train {run.task.name}")
    if pieces and (words := edits_in_words(run)) is not None:
        log.info("train %s: %s", run.task.name, words)


def edits_in_words(run: Run) -> str | None:
    """Say what corrected rewards a run was trained with, and how much they changed; None: rewards as paid."""
    folder, task = run.folder, run.task
    if task.edits is None:
        return None
    changed = [int(read_tensor_metadata(folder.final_path(seed))["corrected"]) for seed in task.seeds]
    words = (
        f"These agents were trained with corrected rewards: paid {task.edits.in_words()}. That changed the reward of "
        f"{min(changed)} to {max(changed)} transitions of a training."
    )
    if task.edits.groups != ALL and task.edits.grouping == task.group_by:
        grouping = load_grouping(folder, task)
        met = {group for seed in task.seeds for group in reward_summary(folder, seed, grouping)["group"].to_pylist()}
        never = [group for group in task.edits.groups if group not in met]
        words += f" Training never met {', '.join(never)}: check the names." if never else ""
    return words


def _forget(folder: RunFolder, seed: int) -> None:
    """Remove what was derived from an earlier training of a seed: it would not fit the next one."""
    for kind in ("rewards", "evaluations", "plays", "learning"):
        for part in folder.parts_folder(kind).glob(f"*/seed={seed}.*"):
            part.unlink()
    for merged in folder.root.glob("evaluations/*/episodes.parquet"):
        merged.unlink()
    remove_folder(folder.root / "influence")
    remove_folder(folder.parts_folder("influence"))


def _train_seed(piece: SeedPiece) -> None:
    folder = RunFolder(piece.root)
    if folder.missing_files(piece.seed):  # none: a worker that was lost when it had finished
        train_recorded(piece.task.agent, piece.task.training_env, piece.seed, folder, piece.task.training_edit)
    if piece.task.group_by != "cluster":  # clusters are found when all seeds are trained
        reward_summary(folder, piece.seed, load_grouping(folder, piece.task))


def evaluate_stage(run: Run, set_name: str, workers: Workers) -> None:
    """Play test and training episodes with every agent and a random policy, and so with reference solvers.

    Only episodes that were not played yet: a run may get more of them.
    """
    run.require_trained()
    run.task.evaluation_env(set_name)
    seeds, wanted = [*run.task.seeds, RANDOM_POLICY_SEED], run.task.evaluation.episodes
    pieces = [
        SeedPiece(run.folder.root, run.task, seed, set_name)
        for seed in seeds
        if not _is_evaluated(run.folder, set_name, seed, wanted)
    ]
    workers.map(_evaluate_seed, pieces, f"evaluate {run.task.name}")
    plays = f"{wanted} episodes of seeds {seeds}"
    merged = {table: run.folder.evaluation_path(set_name, table) for table in ("steps", "episodes")}
    if pieces or any(
        not path.exists() or metadata_of(read_table_schema(path)).get("plays") != plays for path in merged.values()
    ):
        for table, path in merged.items():
            parts = [read_table(_evaluation_part(run.folder, set_name, seed, table)) for seed in seeds]
            whole = with_metadata(joined(parts), {"plays": plays})
            write_table(path, whole)
    _play_references(run, set_name)


def _play_references(run: Run, set_name: str) -> None:
    path, wanted = run.folder.evaluation_path(set_name, "references"), run.task.evaluation.episodes
    earlier = [read_table(path)] if path.exists() else []
    first = sum(episode_count(table) for table in earlier)
    if first >= wanted:
        return
    envs = {"test": run.task.evaluation_env(set_name), "train": run.task.training_env}
    played = [play_references(env, wanted, part, first) for part, env in envs.items()]
    whole = pa.concat_tables([*earlier, *played])
    goals = list(dict.fromkeys(whole["goal"].to_pylist()))
    rows = sorted(whole.to_pylist(), key=lambda row: (row["part"], goals.index(row["goal"]), row["episode"]))
    if rows or not earlier:
        write_table(path, pa.Table.from_pylist(rows, schema=whole.schema))


def _evaluation_part(folder: RunFolder, set_name: str, seed: int, table: str) -> Path:
    return folder.parts_folder("evaluations", set_name) / f"seed={seed}.{table}.parquet"


def _is_evaluated(folder: RunFolder, set_name: str, seed: int, episodes: int) -> bool:
    return all(
        episodes_at(_evaluation_part(folder, set_name, seed, table)) >= episodes for table in ("steps", "episodes")
    )


def _evaluate_seed(piece: SeedPiece) -> None:
    task, folder = piece.task, RunFolder(piece.root)
    if _is_evaluated(folder, piece.set_name, piece.seed, task.evaluation.episodes):
        return  # by a worker that was lost when it had finished
    policy = None
    if piece.seed != RANDOM_POLICY_SEED:
        keep_training_outcomes(folder, piece.seed)
        policy = load_policy(task.agent, task.training_env, read_tensors(folder.final_path(piece.seed)))
    spec, masked = task.evaluation, task.agent.masked
    paths = {table: _evaluation_part(folder, piece.set_name, piece.seed, table) for table in ("steps", "episodes")}
    first = min(map(episodes_at, paths.values()))
    test, steps = evaluate_policy(policy, task.evaluation_env(piece.set_name), spec, piece.seed, "test", masked, first)
    kept = folder.parts_folder("plays", "training") / f"seed={piece.seed}.parquet"
    train = training_plays(kept, policy, task.training_env, spec, piece.seed, masked)
    write_table(paths["steps"], with_earlier(paths["steps"], steps, first))
    write_table(paths["episodes"], pa.concat_tables([with_earlier(paths["episodes"], test, first), train]))
