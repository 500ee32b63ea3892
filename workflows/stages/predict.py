"""What the bank's correction sets are predicted to do, each as the set it is; for calibration.

Normalisation makes effects of large corrections anything but additive, so a set is one more finite difference and not
the sum of its groups. Mean scores of the failures are kept by stage attribute; only where failures form several
clusters are they solved for again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...attribution.actors.adapt import as_actor, on_device
from ...attribution.estimators.base import Estimator, chunks
from ...attribution.estimators.registry import find_estimator
from ...attribution.estimators.window import Window, read_window
from ...attribution.targets.steps import Targets
from ...datasets.files.store import RunFolder, read_table, read_table_schema, read_tensors, write_table
from ...datasets.manifest import digest
from ...datasets.schema import SET_EFFECTS, Order, metadata_of, with_metadata
from ...training.agents.spec import load_policy
from ..runs.clusters import Cluster
from ..runs.evaluated_set import EvaluatedSet, load_targets
from ..runs.groups import load_grouping
from ..runs.run import Run
from ..runs.task import Task
from ..workers.pool import Workers

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class _SeedPiece:
    """The correction sets that were trained with one seed.

    Attributes:
        sets: groups of each of M members of the bank.
        clusters: failures of each of K clusters; empty: the whole set, whose mean scores are known.
    """

    root: Path
    task: Task
    set_name: str
    estimator: Estimator
    seed: int
    sets: tuple[tuple[str, ...], ...]
    clusters: tuple[tuple[str, ...], ...]


def predict_stage(run: Run, set_name: str, workers: Workers) -> None:
    """Write what each correction set of the bank was predicted to do (`SET_EFFECTS`), if the estimator has sets.

    Args:
        run: a verified run.
        set_name: the evaluation set.
        workers: where the pieces run, one a seed.
    """
    evaluated = EvaluatedSet(run, set_name)  # as the bank is now
    path, bank = run.folder.bank_path(set_name, "sets"), evaluated.bank
    estimator = find_estimator(evaluated.estimator.name)
    if bank is None or not estimator.finite_difference or not evaluated.scores_path.exists():
        return
    corrective = (pc.field("order") != Order.NONE) & pc.field("values").is_null() & (pc.field("variant") == "")
    masks = bank.masks.filter(corrective).select(["member", "seed", "groups"]).to_pylist()
    clusters = [cluster for cluster in evaluated.clusters if cluster.selection is not None]
    pieces: list[_SeedPiece] = []
    members: list[list[tuple[str, Cluster | None]]] = []
    for seed in run.task.seeds:
        mine = [mask for mask in masks if mask["seed"] == seed]
        sets = tuple(tuple(mask["groups"]) for mask in mine)
        for some in ([], clusters) if clusters else ([],):
            named = tuple(tuple(cluster.failures) for cluster in some)
            pieces.append(_SeedPiece(run.folder.root, run.task, set_name, estimator, seed, sets, named))
            of_set: list[Cluster | None] = [*some] or [None]
            members.append([(mask["member"], cluster) for cluster in of_set for mask in mine])
    about = {
        "of": evaluated.attribution_id,
        "sets": digest([(piece.seed, piece.sets, piece.clusters) for piece in pieces]),
    }
    if path.exists() and about.items() <= metadata_of(read_table_schema(path)).items():
        return
    effects = workers.map(_predict, pieces, f"predict {run.task.name}")
    rows = [
        {"member": member, "seed": piece.seed, "cluster": cluster and cluster.number, "effect": effect,
         "estimator": estimator.label}
        for piece, names, values in zip(pieces, members, effects, strict=True)
        for (member, cluster), effect in zip(names, values, strict=True)
    ]  # fmt: skip
    write_table(path, with_metadata(pa.Table.from_pylist(rows, schema=SET_EFFECTS), about))


def _predict(piece: _SeedPiece) -> list[float]:
    """Return the effect of each set, cluster after cluster; a set as a set, windows divided by their mass."""
    if not piece.sets:
        return []
    folder, seed = RunFolder(piece.root), pc.field("seed") == piece.seed
    own = seed & (pc.field("estimator") == piece.estimator.label)
    masses = read_table(folder.influence_path(piece.set_name, "masses")).filter(own)
    mass_of = dict(
        zip(masses["window"].to_pylist()[::-1], masses["mass"].to_pylist()[::-1], strict=True)
    )  # of several dampings the first, the estimator's own
    known = read_table(folder.influence_path(piece.set_name, "scores"), ["seed", "window", "row", "score", "estimator"])
    known = known.filter(own).sort_by([("window", "ascending"), ("row", "ascending")])
    grouping, total = load_grouping(folder, piece.task), np.zeros((max(len(piece.clusters), 1), len(piece.sets)))
    starts = np.searchsorted(known["window"].to_numpy(), np.arange(folder.window_count(piece.seed) + 1))
    mean, sets = known["score"].to_numpy().astype(np.float64), [frozenset(groups) for groups in piece.sets]
    targets = load_targets(folder, piece.task, piece.set_name, [name for part in piece.clusters for name in part])
    for number in range(folder.window_count(piece.seed)):
        if not mass_of.get(number):
            continue
        window = read_window(folder.transitions_path(piece.seed, number), grouping)
        wrong = window.corrections_by_group()
        inside = np.array([[group in groups for groups in sets] for group in wrong.groups], dtype=np.float64)
        change = window.signal.raw_change(wrong.change @ inside)
        scores = mean[starts[number] : starts[number + 1], None]
        if piece.clusters:
            scores = _cluster_scores(piece, window, targets)
        total += scores.T @ window.signal.weights_of(change) / mass_of[number]
    effects: list[float] = total.reshape(-1).tolist()
    return effects


def _cluster_scores(piece: _SeedPiece, window: Window, targets: Targets) -> Scores:
    """Return the mean scores of each cluster of failures, [N, K]."""
    folder, task = RunFolder(piece.root), piece.task
    cluster_of = {name: k for k, cluster in enumerate(piece.clusters) for name in cluster}
    member = np.zeros((targets.failures, len(piece.clusters)))
    member[np.arange(targets.failures), [cluster_of[name] for name in targets.ids]] = 1.0
    member /= member.sum(axis=0)
    parameters = read_tensors(folder.checkpoint_path(piece.seed, window.number))
    actor = on_device(as_actor(load_policy(task.agent, task.training_env, parameters)), task.device)
    prepared = piece.estimator.prepare(window, actor, targets)
    prepared.further = frozenset()
    scores = np.zeros((len(window.reward), len(piece.clusters)))
    for part in chunks(targets.failures):
        scores += prepared.influence(piece.estimator.damping, part).scores @ member[part]
    return scores
