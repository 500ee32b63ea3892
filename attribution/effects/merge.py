"""Sums of one seed's training as the rows of the influence tables: pure functions, no files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...datasets.rewards import intended_known
from ...datasets.schema import (
    DIRECTION_EFFECTS,
    GROUP_EFFECTS,
    MASSES,
    MEAN_SCORES,
    NULL_EFFECTS,
    UNIT_EFFECTS,
    WINDOW_EFFECTS,
)
from .sums import EFFECTS, Sums


def _named(index: NDArray[np.integer], names: Sequence[str]) -> pa.DictionaryArray:
    return pa.DictionaryArray.from_arrays(pa.array(index.astype(np.int32)), pa.array(names, pa.string()))


def _rows(schema: pa.Schema, rows: int, seed: int, estimator: str, columns: dict[str, pa.Array]) -> pa.Table:
    seeds = pa.array(np.full(rows, seed, np.int32))
    return pa.table(columns | {"seed": seeds, "estimator": pa.repeat(estimator, rows)}, schema=schema)


def window_table(sums: Sums, summary: pa.Table, seed: int, failures: Sequence[str], estimator: str) -> pa.Table:
    """Return the effect of all corrections of each window of one seed's training: influence over training time."""
    effect = sums.together if intended_known([summary]) else np.zeros((0, len(failures)))
    window = np.repeat(sums.windows[: len(effect)].astype(np.int32), len(failures))
    failure = np.tile(np.arange(len(failures)), len(effect))
    return _rows(
        WINDOW_EFFECTS, effect.size, seed, estimator,
        {"failure": _named(failure, failures), "window": pa.array(window), "effect": pa.array(effect.reshape(-1))},
    )  # fmt: skip


def null_table(sums: Sums, seed: int, estimator: str) -> pa.Table:
    """Return the sums of chance influence of one seed, [D, G] as rows; none where nothing is to correct."""
    draw, group = np.nonzero(sums.null)
    return _rows(
        NULL_EFFECTS, len(group), seed, estimator,
        {"group": _named(group, sums.groups), "draw": pa.array(draw.astype(np.int32)),
         "effect": pa.array(sums.null[draw, group].astype(np.float64))},
    )  # fmt: skip


def direction_table(sums: Sums, seed: int, estimator: str) -> pa.Table:
    """Return the effects of one seed with the critic corrected too, a row a group; none where they are not known."""
    known = np.flatnonzero(np.isfinite(sums.direction))
    return _rows(
        DIRECTION_EFFECTS, len(known), seed, estimator,
        {"group": _named(known, sums.groups), "effect": pa.array(sums.direction[known].astype(np.float64))},
    )  # fmt: skip


def mass_table(sums: Sums, seed: int, dampings: Sequence[float], estimator: str) -> pa.Table:
    """Return what each window's effects were divided by, a row a window and damping."""
    return _rows(
        MASSES, sums.mass.size, seed, estimator,
        {"window": pa.array(np.repeat(sums.windows, len(dampings)).astype(np.int32)),
         "lambda": pa.array(np.tile(np.array(dampings), len(sums.windows))),
         "mass": pa.array(sums.mass.reshape(-1).astype(np.float64))},
    )  # fmt: skip


def score_table(sums: Sums, seed: int, estimator: str) -> pa.Table:
    """Return the mean scores of all transitions of one seed's training, a row each."""
    first = np.cumsum(sums.transitions) - sums.transitions
    return _rows(
        MEAN_SCORES, len(sums.scores), seed, estimator,
        {"window": pa.array(np.repeat(sums.windows, sums.transitions).astype(np.int32)),
         "row": pa.array((np.arange(len(sums.scores)) - np.repeat(first, sums.transitions)).astype(np.int32)),
         "score": pa.array(sums.scores.astype(np.float32))},
    )  # fmt: skip


def unit_table(sums: Sums, seed: int, estimator: str) -> pa.Table:
    """Return the sums over what arbitrary edits would change, of one seed's training, one row a group."""
    count, paid, tau, reward_tau = sums.units
    return _rows(
        UNIT_EFFECTS, len(count), seed, estimator,
        {"group": _named(np.arange(len(count)), sums.unit_groups), "transitions": pa.array(count.astype(np.int64)),
         "paid": pa.array(paid), "tau": pa.array(tau), "reward_tau": pa.array(reward_tau)},
    )  # fmt: skip


def group_table(
    sums: Sums, summary: pa.Table, seed: int, failures: Sequence[str], dampings: Sequence[float], estimator: str
) -> pa.Table:
    """Return the group sums of one seed, every group of its training, zero where nothing is to correct."""
    groups = summary["group"].to_pylist()
    position = {name: i for i, name in enumerate(groups)}
    where = [position[name] for name in sums.groups]
    shape = (len(dampings), len(failures), len(groups))
    rows = int(np.prod(shape))
    failure = np.broadcast_to(np.arange(len(failures), dtype=np.int32)[None, :, None], shape).reshape(-1)
    group = np.broadcast_to(np.arange(len(groups), dtype=np.int32)[None, None, :], shape).reshape(-1)
    no_effect = None if intended_known([summary]) else np.ones(rows, dtype=bool)

    def counts(name: str) -> pa.Array:
        return pa.array(summary[name].to_numpy()[group])

    def effects(name: str) -> pa.Array:
        if name not in sums.effects:
            return pa.nulls(rows, pa.float64())
        total = np.zeros(shape)
        total[:, :, where] = sums.effects[name]
        return pa.array(total.reshape(-1), mask=no_effect)

    return _rows(
        GROUP_EFFECTS, rows, seed, estimator,
        {"failure": _named(failure, failures), "group": _named(group, groups),
         "lambda": pa.array(np.repeat(np.array(dampings), len(failures) * len(groups))),
         **{name: effects(name) for name in EFFECTS},
         "transitions": counts("transitions"), "reward_events": counts("reward_events")},
    )  # fmt: skip
