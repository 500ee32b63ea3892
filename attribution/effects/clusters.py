"""Failures with alike influence profiles, in clusters: each is verified and reported on its own.

A failure's profile is the predicted effect of correcting each group on it (a row of the group sums); two are alike if
the cosine between them is large. Every failure has one profile a training seed, so a split can be held to data that
did not make it: failures are clustered by half of the seeds, and the clusters must stand apart in the other half.
Ward linkage of unit profiles (scipy: half the squared distance is 1 - cosine); silhouettes: Rousseeuw 1987, J. Comput.
Appl. Math. 20, eq. 2; held-out agreement after Tibshirani and Walther 2005, J. Comput. Graph. Stat. 14, "prediction
strength".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from scipy.cluster.hierarchy import fcluster, linkage

from .order import at_own_damping, require_one_estimator

LEAST_SILHOUETTE = 0.5  # "a reasonable structure": Kaufman and Rousseeuw 1990, Finding Groups in Data, table 4
LEAST_DISTANCE = 0.7  # measured: two causes 1.60 (examples/two-mazes.yaml), one cause .46 and .48 (the demo's twins)
LEAST_FAILURES = 10
LEAST_SHARE = 0.05
MOST_CLUSTERS = 8
_MOST_COMPARED = 2000
Profiles = NDArray[np.float64]


class FailureClusters(NamedTuple):
    """Clusters of the failures of a set, the largest first.

    Attributes:
        of: number of each failure's cluster, by id.
        clusters: how many.
        silhouette: mean silhouette, the smaller of the two halves of the seeds held out; None with one cluster.
        distance: smallest mean cosine distance between two clusters, likewise.
    """

    of: dict[str, int]
    clusters: int
    silhouette: float | None
    distance: float | None

    def failures(self, number: int) -> list[str]:
        """Return the failures of a cluster, in the order of the arguments."""
        return [name for name, cluster in self.of.items() if cluster == number]


def cluster_failures(sums: pa.Table, failures: Sequence[str], most: int = MOST_CLUSTERS) -> FailureClusters:
    """Cluster failures whose profiles are alike; one cluster unless a split holds in seeds that did not make it.

    A split holds if, in each half of the seeds with clusters from the other, the mean silhouette is at least
    `LEAST_SILHOUETTE` and any two clusters are on average `LEAST_DISTANCE` apart. A cluster needs `LEAST_FAILURES` and
    `LEAST_SHARE` of all; failures of smaller ones go to the nearest.

    Args:
        sums: rows of `influence/SET/groups.parquet` of one estimator with known effects.
        failures: ids of all failures; one without a profile (no wrong reward met) is put into the largest cluster.
        most: largest number of clusters; 1: do not split.

    Raises:
        InputError: rows of several estimators.
    """
    require_one_estimator(sums)
    names, halves = _halves(sums)
    one = FailureClusters(dict.fromkeys(failures, 0), min(1, len(failures)), None, None)
    least = max(LEAST_FAILURES, int(np.ceil(LEAST_SHARE * len(failures))))
    if halves is None or most < 2 or len(names) < 2 * least:
        return one
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), _MOST_COMPARED)).astype(int))
    least = max(2, int(least * len(chosen) / len(names)))
    trees = [linkage(half[chosen], "ward") for half in halves]
    distances = [_distances(half[chosen]) for half in halves]
    scores = {count: _held_out(trees, distances, count, least) for count in range(2, most + 1)}
    holding = {count: score for count, score in scores.items() if min(score) > 0.0}
    if not holding:
        return one
    best = max(holding, key=lambda count: holding[count][0])
    whole = _unit(halves.sum(axis=0))
    centres = _centres(whole[chosen], _cut(linkage(whole[chosen], "ward"), best), least)
    if len(centres) < 2:
        return one
    nearest = np.argmax(whole @ centres.T, axis=1)
    order = np.argsort(-np.bincount(nearest, minlength=len(centres)), kind="stable")
    number = np.argsort(order)[nearest]
    cluster = dict.fromkeys(failures, 0) | dict(zip(names, number.tolist(), strict=True))
    return FailureClusters({name: cluster[name] for name in failures}, len(centres), *holding[best])


def _halves(sums: pa.Table) -> tuple[list[str], Profiles | None]:
    """Return failures and unit profiles [2, F, G], sums over every other seed; None with fewer than two seeds."""
    chosen = at_own_damping(sums).filter(pc.field("effect").is_valid())
    seeds, which = np.unique(chosen["seed"].to_numpy(), return_inverse=True)
    if len(seeds) < 2:
        return [], None
    failure, group = (
        chosen[name].combine_chunks().cast(pa.string()).dictionary_encode() for name in ("failure", "group")
    )
    shape = (2, len(failure.dictionary), len(group.dictionary))
    place = np.ravel_multi_index((which % 2, failure.indices.to_numpy(), group.indices.to_numpy()), shape)
    weights = chosen["effect"].to_numpy()
    total: Profiles = np.zeros(int(np.prod(shape)))
    np.add.at(total, place, weights)
    total = total.reshape(shape)
    return failure.dictionary.to_pylist(), np.stack([_unit(half) for half in total])


def _unit(rows: Profiles) -> Profiles:
    """Scale rows to length 1; a row of zeros stays."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Profiles = np.divide(rows, length, out=np.zeros_like(rows), where=length > 0.0)
    return scaled


def _distances(rows: Profiles) -> Profiles:
    """Return cosine distances [F, F] of unit rows, 0 to 2; a row of zeros is 1 from all others."""
    distances: Profiles = np.clip(1.0 - rows @ rows.T, 0.0, 2.0)
    np.fill_diagonal(distances, 0.0)
    return distances


def _cut(tree: Profiles, count: int) -> NDArray[np.int64]:
    """Return the cluster of each row, 0 to count - 1."""
    return fcluster(tree, count, "maxclust").astype(np.int64) - 1


def _held_out(trees: Sequence[Profiles], distances: Sequence[Profiles], count: int, least: int) -> tuple[float, float]:
    """Return silhouette and distance of clusters in the half that did not make them, the smaller of both ways.

    Zeros if the split does not hold.
    """
    both = []
    for tree, held_out in zip(trees, distances[::-1], strict=True):
        labels = _cut(tree, count)
        sizes = np.bincount(labels)
        kept = np.flatnonzero(sizes[labels] >= least)
        if len(np.unique(labels[kept])) < 2:
            return 0.0, 0.0
        both.append(_separation(held_out[np.ix_(kept, kept)], labels[kept]))
    silhouette, distance = np.min(both, axis=0).tolist()
    return (silhouette, distance) if silhouette >= LEAST_SILHOUETTE and distance >= LEAST_DISTANCE else (0.0, 0.0)


def _separation(distances: Profiles, labels: NDArray[np.int64]) -> tuple[float, float]:
    """Return the mean silhouette, and the smallest mean distance between two clusters."""
    _, own = np.unique(labels, return_inverse=True)
    member = np.eye(own.max() + 1)[own]
    sizes, rows = member.sum(axis=0), np.arange(len(own))
    total = distances @ member
    inside = total[rows, own] / np.maximum(sizes[own] - 1, 1)
    to_others = total / sizes
    to_others[rows, own] = np.inf
    outside = to_others.min(axis=1)
    silhouette = np.mean((outside - inside) / np.maximum(np.maximum(outside, inside), 1e-12))
    between = (member.T @ total) / np.outer(sizes, sizes)
    return float(silhouette), float(between[~np.eye(len(sizes), dtype=bool)].min())


def _centres(rows: Profiles, labels: NDArray[np.int64], least: int) -> Profiles:
    """Return the unit mean profile of each cluster of at least `least` rows."""
    sizes = np.bincount(labels)
    return _unit(np.stack([rows[labels == i].mean(axis=0) for i in np.flatnonzero(sizes >= least)] or [rows[0]]))
