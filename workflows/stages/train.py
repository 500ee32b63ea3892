"""Stages train and evaluate: one piece an agent, each written whole and never done again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
from stable_baselines3.common.policies import ActorCriticPolicy

from ...datasets.errors import RunFolderError
from ...datasets.files.lock import is_held
from ...datasets.files.remote import remove_folder
from ...datasets.files.store import (
    RunFolder,
    read_table,
    read_table_schema,
    read_tensor_metadata,
    read_tensors,
    write_table,
)
from ...datasets.learning import keep_training_outcomes, learning_path
from ...datasets.plays import episode_count, episodes_at, joined, with_earlier
from ...datasets.rewards import reward_summary, reward_sums_path
from ...datasets.schema import RANDOM_POLICY_SEED, metadata_of, with_metadata
from ...datasets.words import counted
from ...training.agents.outcome_names import FirstWindow, SeenOutcomes
from ...training.agents.play import EvaluationSpec, evaluate_policy, play_references
from ...training.agents.spec import load_policy
from ...training.edits.file import ALL
from ...training.environments.spec import EnvSpec
from ...training.recording.writer import recording_lock, under_way
from ...training.retraining.live import train_recorded
from ..runs.groups import ensure_groups, load_grouping
from ..runs.outcomes import warn_of_outcomes
from ..runs.run import Run
from ..runs.task import Task
from ..workers.pool import Workers
from .check import before_training

log = logging.getLogger("aitia")
_OF_SEEDS = ("reward_sums", "learning", "evaluations", "plays")  # folders of finished pieces that are one seed's


@dataclass(frozen=True)
class SeedPiece:
    """One training, or the plays of one agent, of a run."""

    root: Path
    task: Task
    seed: int
    set_name: str = ""
    outcomes: SeenOutcomes | None = None  # before training


def train_stage(run: Run, workers: Workers) -> None:
    """Train and record every seed that is not whole yet."""
    open_seeds = [seed for seed in run.task.seeds if run.folder.missing_files(seed)]
    outcomes = before_training(run.task, workers) if open_seeds else None
    _remove_interrupted(run.folder, open_seeds)
    forget(run, open_seeds)
    pieces = [SeedPiece(run.folder.root, run.task, seed, outcomes=outcomes) for seed in open_seeds]
    workers.map(_train_seed, pieces, f"train {run.task.name}")
    ensure_groups(run.folder, run.task)
    for seed in open_seeds:  # workers wrote these
        run.note_files([reward_sums_path(run.folder, seed, run.task.group_by), learning_path(run.folder, seed)])
    if pieces and (words := edits_in_words(run, partial(_reward_summary, run))) is not None:
        log.info("train %s: %s", run.task.name, words)


def _reward_summary(run: Run, seed: int) -> pa.Table:
    return reward_summary(run.folder, seed, run.grouping)


def edits_in_words(run: Run, rewards: Callable[[int], pa.Table]) -> str | None:
    """Say what corrected rewards a run was trained with, and how much they changed; None: rewards as paid.

    Args:
        run: a trained run.
        rewards: takes a seed, returns what its training paid each group.
    """
    folder, task = run.folder, run.task
    if task.edits is None:
        return None
    changed = [int(read_tensor_metadata(folder.final_path(seed))["corrected"]) for seed in task.seeds]
    words = (
        f"These agents were trained with corrected rewards: paid {task.edits.in_words()}. That changed the reward of "
        f"{min(changed)} to {counted(max(changed), 'transition')} of a training."
    )
    if task.edits.groups != ALL and task.edits.grouping == task.group_by:
        met = {group for seed in task.seeds for group in rewards(seed)["group"].to_pylist()}
        never = [group for group in task.edits.groups if group not in met]
        words += f" Training never met {', '.join(never)}: check the names." if never else ""
    return words


def _remove_interrupted(folder: RunFolder, seeds: Sequence[int]) -> None:
    """Remove what interrupted trainings left; scripts that still record are left alone.

    Raises:
        RunFolderError: one records a seed that is to be trained.
    """
    for left in under_way(folder):
        seed, lock = int(left.name.removeprefix("seed=").partition("-")[0]), recording_lock(left)
        if not is_held(lock):
            remove_folder(left)
            for file in (lock, lock.with_name(f"{lock.name}.json")):
                file.unlink(missing_ok=True)
        elif seed in seeds:
            raise RunFolderError(
                f"a script is recording seed {seed} into {folder.root}: training it here would remove one of the two. "
                "Wait until it has finished (it is then taken over), or end it"
            )


def forget(run: Run, seeds: Sequence[int]) -> None:
    """Remove what was derived from earlier trainings of seeds that are trained (again).

    Of a seed that was never trained that is what all seeds share: influence. Of one that was, also its plays and sums.
    Where the next training may be another one (accepted changes of code, an environment that does not repeat itself),
    also what names its groups or rests on its rewards: state clusters, the bank with its agents, validations.
    """
    folder = run.folder
    again = [seed for seed in seeds if _was_trained(folder, seed)]
    for seed in again:
        for kind in _OF_SEEDS:
            for part in folder.parts_folder(kind).glob(f"*/seed={seed}.*"):
                part.unlink()
    if seeds:
        for merged in folder.root.glob("evaluations/*/episodes.parquet"):
            merged.unlink()
        for derived in (folder.root / "influence", folder.parts_folder("influence")):
            remove_folder(derived)
    if again:
        remove_folder(folder.root / "frames")
    if again and not run.manifest.same_again:
        log.warning("seeds %s are trained again with other code: the bank and its agents are made anew, too", again)
        parts = [folder.parts_folder(name) for name in ("bank", "policies", "validation")]
        named = [folder.root / name for name in ("groups", "bank", "validation")]
        for derived in (*parts, *named, folder.parts_folder("reward_sums", "cluster")):
            remove_folder(derived)
    run.forget_missing_files()


def _was_trained(folder: RunFolder, seed: int) -> bool:
    """Return whether there is anything of an earlier training of a seed."""
    kept = [*folder.checkpoints_folder(seed).glob("*"), *folder.transitions_folder(seed).glob("*")]
    parts = (folder.parts_folder(kind).glob(f"*/seed={seed}.*") for kind in _OF_SEEDS)
    return bool(kept) or any(True for found in parts for _ in found)


def _train_seed(piece: SeedPiece) -> None:
    folder = RunFolder(piece.root)
    if folder.missing_files(piece.seed):  # none: a worker that was lost when it had finished
        task, seen = piece.task, piece.outcomes
        watch = None if seen is None else FirstWindow(task.outcomes, seen.seen, seen.listed)
        train_recorded(task.agent, task.training_env, piece.seed, folder, task.training_edit, watch)
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
    for seed in run.task.seeds:  # workers wrote these, perhaps of a call that ended before it noted them
        run.note_new([reward_sums_path(run.folder, seed, run.task.group_by), learning_path(run.folder, seed)])
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
    warn_of_outcomes(run, set_name)


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


def training_plays(
    path: Path, policy: ActorCriticPolicy | None, env: EnvSpec, spec: EvaluationSpec, seed: int, masked: bool = False
) -> pa.Table:
    """Return an agent's plays of training episodes: the same for all evaluation sets, so they are kept at `path`.

    Args:
        path: where they are kept; what is not there is played.
        policy, env, spec, seed, masked: see `evaluate_policy`.
    """
    first = episodes_at(path)
    if first < spec.episodes:
        later, _ = evaluate_policy(policy, env, spec, seed, "train", masked, first)
        write_table(path, with_earlier(path, later, first))
    return read_table(path)
