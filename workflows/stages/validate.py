"""Stage validate: do predictions foretell retraining? Random correction sets, trained again and replayed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy

from ...attribution.actors.adapt import as_actor
from ...attribution.effects.order import EffectTable, area_under_curve, attribution_order, effect_table
from ...datasets.errors import InputError
from ...datasets.files.remote import exist
from ...datasets.files.store import RunFolder, read_table, read_tensors, write_json, write_table, write_tensors
from ...datasets.manifest import digest
from ...datasets.outcomes import PlayCounts
from ...datasets.rewards import reward_summary, wrong_groups
from ...datasets.words import counted
from ...reports.measures.validation import linear_datamodeling_score, noise_ceiling, rank_correlations
from ...reports.statistics import Interval, mean_interval
from ...training.agents.play import evaluate_policy
from ...training.agents.spec import load_policy
from ...training.edits.edit import RewardEdit
from ...training.retraining.arrays import Member
from ...training.retraining.replay import replay
from ...training.retraining.stack import members_at_once, train_members
from ..runs.groups import load_grouping
from ..runs.recorded import estimator_of
from ..runs.run import Run
from ..runs.task import Task
from ..workers.pool import Workers
from .attribute import failures_of, load_targets

DEFAULT_MASKS = 12
LEAST_MASKS = 4
SHUFFLED = "shuffled"
_SHUFFLES = 100
Estimand = Literal["interactive", "replay"]
_MASK_SEED = 0


@dataclass(frozen=True)
class ValidationPiece:
    """One agent with a random set of groups corrected: trained again, or replayed."""

    root: Path
    task: Task
    set_name: str
    failures: tuple[str, ...]
    estimand: Estimand
    groups: tuple[str, ...]
    seed: int

    @property
    def path(self) -> Path:
        """The finished piece: targets of all failures, and counts of plays."""
        key = digest([self.task.group_by, self.task.target, sorted(self.groups), self.failures])[:16]
        folder = RunFolder(self.root).parts_folder("validation", self.set_name)
        return folder / f"{self.estimand}-{key}-seed={self.seed}.safetensors"


def validate_stage(run: Run, set_name: str, masks: int, workers: Workers) -> dict[str, Any]:
    """Validate the predictions of an evaluation set and write `validation/SET`.

    Args:
        run: an attributed run.
        set_name: the evaluation set.
        masks: random correction sets.
        workers: where the trainings run.

    Returns:
        The contents of `validation.json`.

    Raises:
        InputError: too few masks or wrong groups, or failures that were not attributed.
    """
    run.require_trained()
    task, folder = run.task, run.folder
    failures = tuple(failures_of(run, set_name))
    grouping = load_grouping(folder, task)
    wrong = sorted(wrong_groups([reward_summary(folder, seed, grouping) for seed in task.seeds]))
    if masks < LEAST_MASKS:
        raise InputError(f"--masks {masks} was given, expected at least {LEAST_MASKS}: a correlation needs them")
    if not failures or len(wrong) < 2:
        raise InputError(
            f"{folder.root} has {counted(len(failures), 'failure')} in set `{set_name}` and "
            f"{counted(len(wrong), 'group')} with wrong "
            "rewards: expected failures and at least 2 such groups, or there is nothing to validate"
        )
    effects = _effects(run, set_name, failures)
    chosen = random_sets(wrong, masks)
    pieces = [
        ValidationPiece(folder.root, task, set_name, failures, estimand, groups, seed)
        for estimand in get_args(Estimand)
        for groups in ((), *chosen)
        for seed in task.paired_seeds
    ]
    there = exist([piece.path for piece in pieces])
    waiting = [piece for piece, done in zip(pieces, there, strict=True) if not done]
    again = [piece for piece in waiting if piece.estimand == "interactive" and piece.groups]
    single = [[piece] for piece in waiting if piece not in again]
    at_once, _ = members_at_once(task.agent, task.training_env)
    together = [again[i : i + at_once] for i in range(0, len(again), at_once)]
    workers.map(_measure, [*together, *single], f"validate {task.name}")
    found: dict[str, Any] = {
        "set": set_name, "failures": len(failures), "wrong_groups": len(wrong), "masks": masks,
        "sizes": [len(groups) for groups in chosen], "seeds": task.paired_seeds, "estimator": estimator_of(task).name,
    }  # fmt: skip
    values = {}
    by_estimator = {name: _of_wrong(table, failures, wrong, chosen) for name, table in effects.items()}
    for estimand in get_args(Estimand):
        mine = [piece for piece in pieces if piece.estimand == estimand]
        values[estimand] = _changes(mine, len(task.paired_seeds))
        found[estimand] = _scores(values[estimand], by_estimator)
    found["replay_gap"] = _gap(values["interactive"], values["replay"])
    found["causes"] = _causes(run, set_name, effects, wrong)
    path = folder.validation_path(set_name)
    write_table(path.with_name("members.parquet"), _members(pieces))
    write_json(path, found)
    return found


def random_sets(wrong: Sequence[str], masks: int) -> list[tuple[str, ...]]:
    """Return random correction sets of wrong groups that differ in size, from few to nearly all, and in members."""
    generator = np.random.default_rng(_MASK_SEED)
    sizes = np.clip(np.round(len(wrong) * np.linspace(0.1, 0.9, masks)), 1, len(wrong) - 1).astype(int)
    return [tuple(sorted(generator.choice(wrong, size, replace=False).tolist())) for size in sizes]


def _effects(run: Run, set_name: str, failures: Sequence[str]) -> dict[str, EffectTable]:
    """Return the effects by estimator, of all that attributed every failure; the task's own one is required."""
    sums = read_table(run.folder.influence_path(set_name, "groups"))
    found = {}
    for name in pc.unique(sums["estimator"]).to_pylist():
        table = effect_table(sums.filter(pc.field("estimator") == name))
        if set(failures) <= set(table.failures):
            found[name] = table
    own = estimator_of(run.task).name
    if own not in found:
        raise InputError(f"some failures were not attributed; run `aitia attribute {run.folder.root}` first")
    return {own: found.pop(own), **found}


def _measure(pieces: Sequence[ValidationPiece]) -> None:
    """Train, replay or read agents, and write what the failures' targets are under each, and how it plays."""
    pieces = [piece for piece in pieces if not piece.path.exists()]  # a worker that was lost had finished some
    if not pieces:
        return
    folder, task = RunFolder(pieces[0].root), pieces[0].task
    targets = load_targets(folder, task, pieces[0].set_name, pieces[0].failures)
    env = task.evaluation_env(pieces[0].set_name)
    for piece, policy in zip(pieces, _agents(pieces, folder), strict=True):
        with torch.no_grad():
            values = targets.values(as_actor(policy).outputs(targets.observations, targets.inputs))
        episodes, _ = evaluate_policy(policy, env, task.evaluation, piece.seed, "test")
        plays = PlayCounts.of(episodes["outcome"].to_pylist(), task.outcomes)
        counts = torch.tensor([plays.misbehaved, plays.desired, plays.total])
        write_tensors(piece.path, {"values": values.double(), "plays": counts}, {})


def _agents(pieces: Sequence[ValidationPiece], folder: RunFolder) -> list[ActorCriticPolicy]:
    """Return the agents of pieces: several interactive ones with corrections, or a single one of another kind."""
    task, first = pieces[0].task, pieces[0]
    if not first.groups:  # uncorrected: the recorded agent, which its replay equals
        return [load_policy(task.agent, task.training_env, read_tensors(folder.final_path(first.seed)))]
    grouping = load_grouping(folder, task)
    edits = [RewardEdit(frozenset(piece.groups), grouping, first=task.training_edit) for piece in pieces]
    if first.estimand == "replay":
        return [replay(task.agent, task.training_env, first.seed, folder, edits[0])]
    members = [Member(piece.seed, edit) for piece, edit in zip(pieces, edits, strict=True)]
    return [trained.policy for trained in train_members(task.agent, task.training_env, members)]


def _changes(pieces: Sequence[ValidationPiece], seeds: int) -> NDArray[np.float64]:
    """Return the measured change of each failure's target, [S, M, F], against the uncorrected agent of the seed."""
    values = np.stack([read_tensors(piece.path)["values"].numpy() for piece in pieces])
    by_seed = values.reshape(-1, seeds, values.shape[1]).swapaxes(0, 1)
    changes: NDArray[np.float64] = by_seed[:, 1:] - by_seed[:, :1]
    return changes


def _scores(
    changes: NDArray[np.float64], effects: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
) -> dict[str, Any]:
    """Return the LDS of every estimator and the noise ceiling.

    `shuffled`: effects permuted among the wrong groups; its interval is over permutations. It still knows how many
    groups a set corrects, and that alone can score high, so `lds_given_size` holds that number fixed.
    """
    measured = changes.mean(axis=0)
    scores, given_size = {}, {}
    for name, (chosen, effect) in effects.items():
        scores[name] = linear_datamodeling_score(chosen @ effect, measured).as_dict()
        given_size[name] = linear_datamodeling_score(chosen @ effect, measured, chosen.sum(axis=1)).as_dict()
    chosen, effect = next(iter(effects.values()))
    generator = np.random.default_rng(_MASK_SEED)
    drawn = [
        float(rank_correlations(chosen @ generator.permutation(effect), measured).mean()) for _ in range(_SHUFFLES)
    ]
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975]).tolist()
    scores[SHUFFLED] = Interval(middle, low, high).as_dict()
    return {"lds": scores, "lds_given_size": given_size, "noise_ceiling": noise_ceiling(changes).as_dict()}


def _of_wrong(
    table: EffectTable, failures: Sequence[str], wrong: Sequence[str], sets: Sequence[tuple[str, ...]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return which wrong groups each set corrects [M, G], and their effects [G, F] in the order of `failures`."""
    rows = [table.failures.index(name) for name in failures]
    column = {group: index for index, group in enumerate(table.groups)}
    effect = np.stack([table.effect[rows, column[g]] if g in column else np.zeros(len(rows)) for g in wrong])
    return np.array([np.isin(wrong, groups) for groups in sets], dtype=np.float64), effect


def _gap(interactive: NDArray[np.float64], replayed: NDArray[np.float64]) -> dict[str, Any]:
    """Return by how much replays differ from training again: mean change of the targets, over seeds."""

    def over_seeds(changes: NDArray[np.float64]) -> Interval:
        return mean_interval(changes.mean(axis=(1, 2)).tolist())

    return {
        "interactive": over_seeds(interactive).as_dict(), "replay": over_seeds(replayed).as_dict(),
        "difference": over_seeds(replayed - interactive).as_dict(),
    }  # fmt: skip


def _causes(run: Run, set_name: str, effects: dict[str, EffectTable], wrong: Sequence[str]) -> dict[str, Any] | None:
    """Return the AUC of ranking declared causes before the other wrong groups; None where none are declared."""
    causal = run.task.causal_groups()
    if causal is None:
        return None
    inside = set(wrong) & causal
    if not inside or inside == set(wrong):
        return None
    sums = read_table(run.folder.influence_path(set_name, "groups"))
    found = {}
    for name, table in effects.items():
        mine = sums.filter(pc.field("estimator") == name)
        single = [
            area_under_curve(attribution_order(effect_table(mine.filter(pc.field("seed") == seed)), wrong), causal)
            for seed in run.task.seeds
        ]
        auc = area_under_curve(attribution_order(table, wrong), causal)
        found[name] = {"auc": auc, "single_seeds": mean_interval(single).as_dict()}
    return {"causal": len(inside), "wrong": len(wrong), "auc": found}


def _members(pieces: Sequence[ValidationPiece]) -> pa.Table:
    rows = []
    for piece in pieces:
        tensors = read_tensors(piece.path)
        misbehaved, desired, total = tensors["plays"].tolist()
        rows.append(
            {
                "estimand": piece.estimand, "seed": piece.seed, "size": len(piece.groups), "groups": list(piece.groups),
                "target": float(tensors["values"].mean()), "misbehaved": misbehaved, "desired": desired, "plays": total,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows)
