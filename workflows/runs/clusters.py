"""The clusters of an evaluation set's failures: which failures, and which of the episodes played count for each."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from ...attribution.effects.clusters import cluster_failures
from ...datasets.bank import Selection
from .task import Task

log = logging.getLogger("aitia")


@dataclass(frozen=True, eq=False)
class Cluster:
    """Failures that are explained together.

    Attributes:
        number: 0 is the largest.
        failures: their ids.
        selection: the episodes played that count for it; None: all, where it is the whole set.
    """

    number: int
    failures: tuple[str, ...]
    selection: Selection | None = None


def whole_set(failures: Sequence[str]) -> Cluster:
    """Return all failures of a set as one cluster, for which every episode counts."""
    return Cluster(0, tuple(failures))


def find_clusters(task: Task, sums: pa.Table, failures: Sequence[str]) -> list[Cluster]:
    """Cluster the failures of a set by their influence profiles, as far as the task allows; the largest first.

    One cluster is the whole set.

    Args:
        task: the task; with one repeat no episode is left to count for a cluster, and there is one.
        sums: group sums of the task's own estimator.
        failures: ids of all failures.
    """
    split = cluster_failures(sums, failures, 1 if task.evaluation.repeats == 1 else task.verify.clusters)
    if split.clusters < 2:
        return [whole_set(failures)] if failures else []
    members = [tuple(split.failures(number)) for number in range(split.clusters)]
    log.info(
        "%s: %d clusters of %s failures (held-out silhouette %.2f, distance %.2f)",
        task.name, split.clusters, ", ".join(str(len(names)) for names in members), split.silhouette, split.distance,
    )  # fmt: skip
    return [Cluster(number, names, Selection.of(names, task.seeds)) for number, names in enumerate(members)]
