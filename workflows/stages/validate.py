"""Stage validate: do predictions foretell retraining? Random correction sets, trained again and replayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from ...datasets.rewards import wrong_groups
from ...datasets.schema import Order
from ...datasets.words import counted
from ...reports.measures.validation import replay_gap, validation_scores
from ...reports.statistics import mean_interval
from ...training.agents.play import evaluate_policy
from ...training.agents.spec import load_policy
from ...training.retraining.replay import replay
from ..runs.evaluated_set import load_targets
from ..runs.groups import load_grouping
from ..runs.recorded import estimator_of
from ..runs.run import Run
from ..workers.pool import Workers
from .members import Mask, MemberPiece, train_agents

DEFAULT_MASKS = 12
LEAST_MASKS = 4
Estimand = Literal["interactive", "replay"]
_MASK_SEED = 0


@dataclass(frozen=True)
class MeasuredPiece(MemberPiece):
    """One agent of a random correction set, trained again or replayed, and what the failures' targets are under it.

    With an empty set it is the recorded agent, which its replay equals.
    """

    estimand: Estimand
    failures: tuple[str, ...]

    @property
    def path(self) -> Path:
        """The finished piece: targets of all failures, and numbers of episodes played by kind of outcome."""
        key = digest([self.task.group_by, self.task.target, sorted(self.mask.groups), self.failures])[:16]
        folder = RunFolder(self.root).parts_folder("validation", self.set_name)
        return folder / f"{self.estimand}-{key}-seed={self.seed}.safetensors"

    @property
    def trained_again(self) -> bool:
        """Whether it is an agent of the kind that the counterfactual bank keeps."""
        return self.estimand == "interactive" and bool(self.mask.groups)


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
    failures = tuple(run[set_name].failure_ids)
    wrong = sorted(wrong_groups(list(run.rewards.values())))
    if masks < LEAST_MASKS:
        raise InputError(f"--masks {masks} was given, expected at least {LEAST_MASKS}: a correlation needs them")
    if not failures or len(wrong) < 2:
        raise InputError(
            f"{folder.root} has {counted(len(failures), 'failure')} in set `{set_name}` and "
            f"{counted(len(wrong), 'group')} with wrong "
            "rewards: expected failures and at least 2 such groups, or there is nothing to validate"
        )
    sums = read_table(folder.influence_path(set_name, "groups"))
    effects = _effects(run, sums, failures)
    chosen = random_sets(wrong, masks)
    pieces = [
        MeasuredPiece(folder.root, task, set_name, Mask(Order.RANDOM, groups), seed, estimand, failures)
        for estimand in get_args(Estimand)
        for groups in ((), *chosen)
        for seed in task.paired_seeds
    ]
    there = exist([piece.path for piece in pieces])
    waiting = [piece for piece, done in zip(pieces, there, strict=True) if not done]
    train_agents([piece for piece in waiting if piece.trained_again], workers, f"validate {task.name}")
    workers.map(_measure, waiting, f"validate {task.name}, targets")
    results = [read_tensors(piece.path) for piece in pieces]
    shape = (len(get_args(Estimand)), 1 + masks, len(task.paired_seeds), len(failures))
    values = np.stack([result["values"].numpy() for result in results]).reshape(shape)
    changes = (values[:, 1:] - values[:, :1]).swapaxes(1, 2)  # [estimand, S, M, F], against the seed's recorded agent
    corrects = np.array([np.isin(wrong, groups) for groups in chosen], dtype=np.float64)
    predicted = {name: _of_groups(table, wrong, failures) for name, table in effects.items()}
    scores = {
        "set": set_name, "failures": len(failures), "wrong_groups": len(wrong), "masks": masks,
        "sizes": [len(groups) for groups in chosen], "seeds": task.paired_seeds, "estimator": estimator_of(task).name,
        **{
            estimand: validation_scores(mine, corrects, predicted)
            for estimand, mine in zip(get_args(Estimand), changes, strict=True)
        },
        "replay_gap": replay_gap(*changes), "causes": _causes(run, sums, effects, wrong),
    }  # fmt: skip
    path = folder.validation_path(set_name)
    write_table(path.with_name("members.parquet"), pa.Table.from_pylist(list(map(_row, pieces, results))))
    write_json(path, scores)
    return scores


def random_sets(wrong: Sequence[str], masks: int) -> list[tuple[str, ...]]:
    """Return random correction sets of wrong groups that differ in size, from few to nearly all, and in members."""
    generator = np.random.default_rng(_MASK_SEED)
    sizes = np.clip(np.round(len(wrong) * np.linspace(0.1, 0.9, masks)), 1, len(wrong) - 1).astype(int)
    return [tuple(sorted(generator.choice(wrong, size, replace=False).tolist())) for size in sizes]


def _effects(run: Run, sums: pa.Table, failures: Sequence[str]) -> dict[str, EffectTable]:
    """Return the effects by estimator, of all that attributed every failure; the task's own one, first, is required."""
    effects = {}
    for name in pc.unique(sums["estimator"]).to_pylist():
        table = effect_table(sums.filter(pc.field("estimator") == name))
        if set(failures) <= set(table.failures):
            effects[name] = table
    own = estimator_of(run.task).name
    if own not in effects:
        raise InputError(f"some failures were not attributed; run `aitia attribute {run.folder.root}` first")
    return {own: effects.pop(own), **effects}


def _measure(piece: MeasuredPiece) -> None:
    """Write what the failures' targets are under the agent of a piece, and how it plays the evaluation set."""
    if piece.path.exists():
        return  # by a worker that was lost when it had finished
    task, policy = piece.task, _agent(piece)
    targets = load_targets(RunFolder(piece.root), task, piece.set_name, piece.failures)
    with torch.no_grad():
        values = targets.values(as_actor(policy).outputs(targets.observations, targets.inputs))
    episodes, _ = evaluate_policy(policy, task.evaluation_env(piece.set_name), task.evaluation, piece.seed, "test")
    plays = torch.tensor(PlayCounts.of(episodes["outcome"].to_pylist(), task.outcomes))
    write_tensors(piece.path, {"values": values.double(), "plays": plays}, {})


def _agent(piece: MeasuredPiece) -> ActorCriticPolicy:
    """Return the agent of a piece: replayed, as it was trained again, or as it was recorded."""
    folder, task = RunFolder(piece.root), piece.task
    if piece.estimand == "replay" and piece.mask.groups:
        edit = piece.mask.edit(load_grouping(folder, task), task.training_edit)
        return replay(task.agent, task.training_env, piece.seed, folder, edit)
    path = piece.policy_path if piece.trained_again else folder.final_path(piece.seed)
    return load_policy(task.agent, task.training_env, read_tensors(path))


def _of_groups(table: EffectTable, groups: Sequence[str], failures: Sequence[str]) -> NDArray[np.float64]:
    """Return the effects of correcting groups on failures, [G, F], in their orders; 0 of a group without any."""
    rows = [table.failures.index(name) for name in failures]
    column = {group: index for index, group in enumerate(table.groups)}
    return np.stack([table.effect[rows, column[g]] if g in column else np.zeros(len(rows)) for g in groups])


def _causes(run: Run, sums: pa.Table, effects: dict[str, EffectTable], wrong: Sequence[str]) -> dict[str, Any] | None:
    """Return the AUC of ranking declared causes before the other wrong groups; None where none are declared."""
    causal = run.task.causal_groups()
    if causal is None:
        return None
    inside = set(wrong) & causal
    if not inside or inside == set(wrong):
        return None
    aucs = {}
    for name, table in effects.items():
        mine = sums.filter(pc.field("estimator") == name)
        single = [
            area_under_curve(attribution_order(effect_table(mine.filter(pc.field("seed") == seed)), wrong), causal)
            for seed in run.task.seeds
        ]
        auc = area_under_curve(attribution_order(table, wrong), causal)
        aucs[name] = {"auc": auc, "single_seeds": mean_interval(single).as_dict()}
    return {"causal": len(inside), "wrong": len(wrong), "auc": aucs}


def _row(piece: MeasuredPiece, result: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return the row of a finished piece in `members.parquet`."""
    misbehaved, desired, total = result["plays"].tolist()
    return {
        "estimand": piece.estimand, "seed": piece.seed, "size": piece.mask.size, "groups": list(piece.mask.groups),
        "target": float(result["values"].mean()), "misbehaved": misbehaved, "desired": desired, "plays": total,
    }  # fmt: skip
