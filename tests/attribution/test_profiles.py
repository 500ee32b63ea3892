"""Clusters of failures: planted ones are found, and nothing is split that other seeds do not bear out."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from aitia.attribution.effects.clusters import LEAST_DISTANCE, LEAST_FAILURES, LEAST_SILHOUETTE, cluster_failures
from aitia.attribution.gradients.kernel import LAMBDAS
from aitia.datasets.schema import GROUP_EFFECTS

GROUPS, SEEDS = 30, 4


def sums(profiles: NDArray[np.float64], noise: float, known: bool = True) -> tuple[pa.Table, list[str]]:
    """Group sums of failures with these profiles [F, G], and noise that every seed's training adds."""
    generator = np.random.default_rng(0)
    names = [f"{i % SEEDS}-{i}" for i in range(len(profiles))]
    rows = [
        {
            "failure": name, "group": f"g{g}", "seed": seed, "lambda": lam,
            "effect": (effect + noise * generator.normal() if lam == LAMBDAS[0] else 0.0) if known else None,
            "effect_raw": 0.0, "effect_value": 0.0, "transitions": 1, "reward_events": 1, "estimator": "trak",
        }
        for name, profile in zip(names, profiles.tolist(), strict=True)
        for g, effect in enumerate(profile)
        for seed in range(SEEDS)
        for lam in LAMBDAS[:2]
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=GROUP_EFFECTS), names


def planted(sizes: list[int]) -> NDArray[np.float64]:
    """Profiles of clusters: each drives its own third of the groups, with a scale of its own for every failure."""
    rows = []
    for cluster, size in enumerate(sizes):
        profile = np.where(np.arange(GROUPS) % 3 == cluster, -1.0, 0.0)
        rows += [profile * scale for scale in np.linspace(0.5, 5.0, size)]
    return np.array(rows)


@pytest.mark.parametrize("sizes", [[40, 25], [15, 40, 25]])
def test_planted_clusters_are_found_the_largest_first(sizes: list[int]) -> None:
    table, names = sums(planted(sizes), 0.3)
    found = cluster_failures(table, names)
    truth = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.argsort(np.argsort([-size for size in sizes]))
    assert found.clusters == len(sizes)
    agree = np.mean([found.of[name] == rank[cluster] for name, cluster in zip(names, truth, strict=True)])
    assert agree > 0.95, "a few failures with the weakest profiles may be taken for others"
    assert found.failures(0) == [name for name in names if found.of[name] == 0]
    assert found.silhouette is not None and found.silhouette >= LEAST_SILHOUETTE
    assert found.distance is not None and found.distance >= LEAST_DISTANCE


@pytest.mark.parametrize("noise", [0.1, 1.0, 30.0])
def test_failures_with_one_profile_are_one_cluster_however_noisy(noise: float) -> None:
    table, names = sums(np.tile(np.linspace(-1.0, 0.2, GROUPS), (60, 1)), noise)
    assert cluster_failures(table, names) == (dict.fromkeys(names, 0), 1, None, None)


def test_a_split_that_only_some_seeds_show_is_not_made() -> None:
    """Seeds 0 and 2 see two clusters, 1 and 3 none: the other half does not bear the split out."""
    table, names = sums(planted([30, 30]), 0.05)
    flat, _ = sums(np.tile(np.linspace(-1.0, 0.2, GROUPS), (60, 1)), 0.05)
    even = pa.array([seed % 2 == 0 for seed in table["seed"].to_pylist()])
    odd = pa.array([seed % 2 == 1 for seed in flat["seed"].to_pylist()])
    assert cluster_failures(table, names).clusters == 2
    assert cluster_failures(pa.concat_tables([table.filter(even), flat.filter(odd)]), names).clusters == 1


def test_a_few_odd_failures_go_to_the_nearest_cluster() -> None:
    table, names = sums(planted([40, 25, LEAST_FAILURES - 1]), 0.1)
    found = cluster_failures(table, names)
    assert found.clusters == 2 and sorted(set(found.of.values())) == [0, 1]


def test_gradual_differences_are_not_cut_in_two() -> None:
    """Profiles that turn evenly from one direction to another, a right angle apart: there is no gap to cut at."""
    turn = np.linspace(0.0, np.pi / 2, 80)[:, None]
    first, second = (np.where(np.arange(GROUPS) % 2 == side, -1.0, 0.0) for side in (0, 1))
    table, names = sums(np.cos(turn) * first + np.sin(turn) * second, 0.05)
    assert cluster_failures(table, names).clusters == 1


def test_one_cluster_where_there_is_nothing_to_compare() -> None:
    table, names = sums(planted([30, 30]), 0.1)
    assert cluster_failures(table, names, most=1).clusters == 1
    assert cluster_failures(sums(planted([30, 30]), 0.0, known=False)[0], names).clusters == 1
    one_seed = table.filter(pa.array([seed == 0 for seed in table["seed"].to_pylist()]))
    assert cluster_failures(one_seed, names).clusters == 1
    assert cluster_failures(GROUP_EFFECTS.empty_table(), []) == ({}, 0, None, None)


def test_failures_without_a_profile_are_in_the_largest_cluster() -> None:
    table, names = sums(planted([40, 25]), 0.1)
    found = cluster_failures(table, [*names, "0-999"])
    assert found.of["0-999"] == 0 and list(found.of) == [*names, "0-999"]
