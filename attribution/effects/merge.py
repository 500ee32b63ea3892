"""Sums of windows merged into the influence tables of one seed's training: pure functions, no files."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ...datasets.rewards import intended_known
from ...datasets.schema import GROUP_EFFECTS, NULL_EFFECTS, UNIT_EFFECTS, WINDOW_EFFECTS
from ..gradients.kernel import DEFAULT_LAMBDA, LAMBDAS
from .window import EFFECTS, NULL_DRAWS


class WindowSums(NamedTuple):
    """The sums of one window, as they are kept until all windows are there (see `GroupSums` and `UnitSums`).

    Attributes:
        groups: [G] with a wrong reward in the window.
        effects: by name (`EFFECTS`), float32 or float64 [L, F, G]; one that is not there is zero.
        unknown: names of effects that the estimator does not compute.
        null: of permuted influence, [D, G].
        unit_groups: [U].
        units: [4, U].
    """

    groups: Sequence[str]
    effects: dict[str, NDArray[np.floating]]
    unknown: Sequence[str]
    null: NDArray[np.float64]
    unit_groups: Sequence[str]
    units: NDArray[np.float64]


class SeedSums(NamedTuple):
    """Sums over the windows of one seed's training.

    Attributes:
        effects: by name (`EFFECTS`), [L, F, G]; without those that the estimator does not compute.
        windows: sum over all groups of each window at the default damping, [W, F].
        null: of permuted influence, [D, G].
        units: by group, [4].
    """

    effects: dict[str, NDArray[np.float64]]
    windows: NDArray[np.float64]
    null: NDArray[np.float64]
    units: dict[str, NDArray[np.float64]]


def sum_windows(windows: Iterable[WindowSums], count: int, groups: Sequence[str], failures: int) -> SeedSums:
    """Sum the windows of one seed; one window's sums are held at a time.

    Args:
        windows: their sums, in order.
        count: W.
        groups: all G groups of the training.
        failures: F.
    """
    position, plane = {name: i for i, name in enumerate(groups)}, LAMBDAS.index(DEFAULT_LAMBDA)
    effects = {name: np.zeros((len(LAMBDAS), failures, len(groups))) for name in EFFECTS}
    sums = SeedSums(effects, np.zeros((count, failures)), np.zeros((NULL_DRAWS, len(groups))), {})
    for index, window in enumerate(windows):
        where = [position[name] for name in window.groups]
        for name in window.unknown:
            effects.pop(name, None)
        for name, total in effects.items():
            if name in window.effects:
                total[:, :, where] += window.effects[name]
        if "effect" in window.effects:
            sums.windows[index] = torch.from_numpy(window.effects["effect"][plane]).double().sum(dim=1).numpy()
        sums.null[:, where] += window.null
        for name, row in zip(window.unit_groups, window.units.T, strict=True):
            sums.units[name] = sums.units.get(name, 0.0) + row
    return sums


def window_table(sums: SeedSums | None, seed: int, failures: Sequence[str], estimator: str) -> pa.Table:
    """Return the sum over all groups of each window of one seed's training: influence over training time."""
    effect = np.zeros((0, len(failures))) if sums is None else sums.windows
    rows, count = effect.size, len(failures)
    failure = np.tile(np.arange(count, dtype=np.int32), len(effect))
    return pa.table(
        {
            "failure": pa.DictionaryArray.from_arrays(pa.array(failure), pa.array(failures, pa.string())),
            "seed": pa.array(np.full(rows, seed, np.int32)),
            "window": pa.array(np.repeat(np.arange(len(effect), dtype=np.int32), count)),
            "effect": pa.array(effect.reshape(-1)),
            "estimator": pa.repeat(estimator, rows),
        },
        schema=WINDOW_EFFECTS,
    )


def null_table(sums: SeedSums, summary: pa.Table, seed: int, estimator: str) -> pa.Table:
    """Return the sums of permuted influence of one seed, [D, G] as rows; none where nothing is to correct."""
    groups, total = summary["group"].to_pylist(), sums.null
    draw, group = np.nonzero(total)
    return pa.table(
        {
            "group": pa.DictionaryArray.from_arrays(pa.array(group.astype(np.int32)), pa.array(groups, pa.string())),
            "seed": pa.array(np.full(len(group), seed, np.int32)),
            "draw": pa.array(draw.astype(np.int32)),
            "effect": pa.array(total[draw, group]),
            "estimator": pa.array([estimator] * len(group), pa.string()),
        },
        schema=NULL_EFFECTS,
    )


def unit_table(sums: SeedSums, seed: int, estimator: str) -> pa.Table:
    """Return the sums over what arbitrary edits would change, of one seed's training, one row a group."""
    total = sums.units
    count, paid, tau, reward_tau = np.stack(list(total.values()), axis=1) if total else np.zeros((4, 0))
    return pa.table(
        {
            "group": pa.array(list(total), pa.string()).dictionary_encode(),
            "seed": pa.array(np.full(len(total), seed, np.int32)),
            "transitions": pa.array(count.astype(np.int64)),
            "paid": pa.array(paid),
            "tau": pa.array(tau),
            "reward_tau": pa.array(reward_tau),
            "estimator": pa.array([estimator] * len(total), pa.string()),
        },
        schema=UNIT_EFFECTS,
    )


def group_table(sums: SeedSums, summary: pa.Table, seed: int, failures: Sequence[str], estimator: str) -> pa.Table:
    """Return the group sums of one seed, every group of its training, zero where nothing is to correct."""
    groups = summary["group"].to_pylist()
    shape = (len(LAMBDAS), len(failures), len(groups))
    rows = int(np.prod(shape))
    failure = np.broadcast_to(np.arange(len(failures), dtype=np.int32)[None, :, None], shape).reshape(-1)
    group = np.broadcast_to(np.arange(len(groups), dtype=np.int32)[None, None, :], shape).reshape(-1)
    no_effect = None if intended_known([summary]) else np.ones(rows, dtype=bool)

    def counts(name: str) -> pa.Array:
        return pa.array(summary[name].to_numpy()[group])

    def effects(name: str) -> pa.Array:
        total = sums.effects.get(name)
        return pa.nulls(rows, pa.float64()) if total is None else pa.array(total.reshape(-1), mask=no_effect)

    return pa.table(
        {
            "failure": pa.DictionaryArray.from_arrays(pa.array(failure), pa.array(failures, pa.string())),
            "group": pa.DictionaryArray.from_arrays(pa.array(group), pa.array(groups, pa.string())),
            "seed": pa.array(np.full(rows, seed, np.int32)),
            "lambda": pa.array(np.repeat(np.array(LAMBDAS), len(failures) * len(groups))),
            **{name: effects(name) for name in EFFECTS},
            "transitions": counts("transitions"),
            "reward_events": counts("reward_events"),
            "estimator": pa.repeat(estimator, rows),
        },
        schema=GROUP_EFFECTS,
    )
