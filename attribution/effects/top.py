"""The top transitions of each failure: of a window, of the windows so far, and of all.

A transition is among the top of a failure by one of two criteria: |tau| of a reward event, the influence of the reward
as it was paid; or -dr * tau, by how much correcting it is predicted to reduce the misbehaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...datasets.rewards import corrections, reward_events
from ...training.environments.spaces import action_text
from ..estimators.base import Influence
from ..estimators.window import Window

TOP_K = 16
_CRITERIA = 2  # of the top transitions, in this order: |tau| of reward events, and -dr * tau


def top_transitions(
    window: Window,
    ids: Sequence[str],
    influence: Influence,
    estimator: str,
    top_k: int,
    least: NDArray[np.float64] | None,
) -> pa.Table:
    """Return the top transitions of each failure in this window, as rows of the top-k table.

    Args:
        window: the window.
        ids: of the F failures.
        influence: on them.
        estimator: what the table calls the estimator.
        top_k: transitions kept of each failure by each criterion.
        least: [2, F], what a transition needs at least by each criterion; None: nothing.
    """
    steps, change, context = window.steps, window.correction, window.context
    event = np.flatnonzero(window.is_event)
    by_criterion = [(event, np.abs(influence.tau[event]))]  # rows [R] and their values [R, F]
    if change is not None:
        wrong = np.flatnonzero(change)
        by_criterion.append((wrong, -change[wrong, None] * influence.tau[wrong]))
    shape = (len(ids), len(window.reward))
    bounds = np.zeros((_CRITERIA, len(ids))) if least is None else least
    kept = []
    for (rows, value), lowest in zip(by_criterion, bounds[: len(by_criterion)], strict=True):
        at, failure = np.nonzero((value > 0.0) & (value >= lowest))
        best = _largest(failure, value[at, failure], top_k).entries
        kept.append(np.ravel_multi_index((failure[best], rows[at[best]]), shape))
    failure_of, row = np.unravel_index(np.unique(np.concatenate(kept)), shape)  # each once, though kept by both
    intended = np.full(len(row), np.nan) if window.intended is None else window.intended[row]

    def further(tau: NDArray[np.float64] | None) -> pa.Array:
        return pa.nulls(len(row), pa.float64()) if tau is None else pa.array(tau[row, failure_of])

    return pa.table(
        {
            "failure": pa.array(np.array(ids)[failure_of]),
            "seed": pa.array(np.full(len(row), window.seed, np.int32)),
            "window": pa.array(np.full(len(row), window.number, np.int32)),
            "step": pa.array((row % steps).astype(np.int32)),
            "env": pa.array((row // steps).astype(np.int32)),
            "tau": pa.array(influence.tau[row, failure_of]),
            "tau_raw": further(influence.tau_raw),
            "tau_value": further(influence.tau_value),
            "s": pa.array(influence.scores[row, failure_of]),
            "reward": pa.array(window.reward[row]),
            "intended_reward": pa.array(intended, from_pandas=True),
            "group": pa.array(window.group[row]),
            "context": pa.nulls(len(row), pa.string()) if context is None else pa.array(context[row], pa.string()),
            "action": pa.array([action_text(action) for action in window.action[row]], pa.string()),
            "estimator": pa.array([estimator] * len(row), pa.string()),
        }
    )


class _Largest(NamedTuple):
    """Which entries have the largest values of their failure: ordered by failure and falling value.

    Attributes:
        entries: their indices.
        rank: of each among those of its failure, 0 the largest.
    """

    entries: NDArray[np.int64]
    rank: NDArray[np.int64]


def _largest(failure: NDArray[np.integer], value: NDArray[np.float64], k: int) -> _Largest:
    """Return the k largest positive values of each failure; ties by position, so that nothing else decides.

    Args:
        failure: of each entry.
        value: of each entry.
        k: how many of each failure.
    """
    order = np.lexsort((-value, failure))  # stable
    rank = np.arange(len(order)) - np.searchsorted(failure[order], failure[order])
    kept = (rank < k) & (value[order] > 0.0)
    return _Largest(order[kept], rank[kept])


def _criteria(top: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the value of each row of the top-k table by each of the two criteria; 0 by the first of no event."""
    tau, reward = top["tau"].to_numpy(), top["reward"].to_numpy()
    intended = top["intended_reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    return np.abs(tau) * reward_events(reward, intended), -corrections(reward, intended) * tau


class _Entries(NamedTuple):
    """The largest values so far by one criterion: of which failure (an index), and how large."""

    failure: NDArray[np.int32]
    value: NDArray[np.float64]


@dataclass(frozen=True)
class Leaders:
    """The top of the windows so far. What is below it in another window cannot be among the top of all of them.

    Attributes:
        ids: of F failures.
        k: transitions kept of each failure by each of the two criteria.
        least: [2, F], what the k-th of each failure has by each criterion; 0 while there are fewer.
        seen: the windows (seed, number).
        so_far: their largest values by each criterion.
    """

    ids: tuple[str, ...]
    k: int
    least: NDArray[np.float64]
    seen: frozenset[tuple[int, int]]
    so_far: tuple[_Entries, ...]

    @staticmethod
    def none(ids: Sequence[str], k: int = TOP_K) -> Leaders:
        """Return the top of no window."""
        nothing = _Entries(np.empty(0, np.int32), np.empty(0))
        return Leaders(tuple(ids), k, np.zeros((_CRITERIA, len(ids))), frozenset(), (nothing,) * _CRITERIA)

    def add(self, window: tuple[int, int], top: pa.Table) -> Leaders:
        """Return the top with one more window (seed, number), whose top transitions are counted once."""
        if window in self.seen:
            return self
        new = pc.index_in(top["failure"], pa.array(self.ids, pa.string())).to_numpy()
        least, so_far = self.least.copy(), []
        for criterion, (old, values) in enumerate(zip(self.so_far, _criteria(top), strict=True)):
            failure, value = np.concatenate([old.failure, new]), np.concatenate([old.value, values])
            entries, rank = _largest(failure, value, self.k)
            so_far.append(_Entries(failure[entries], value[entries]))
            last = entries[rank == self.k - 1]
            least[criterion, failure[last]] = value[last]
        return replace(self, least=least, seen=self.seen | {window}, so_far=tuple(so_far))


def keep_top(table: pa.Table, k: int) -> pa.Table:
    """Keep, of each failure, the k transitions with the largest |tau| among reward events, and the k whose
    correction is predicted to help most (-dr * tau); the streaming step of merging windows.

    Args:
        table: rows of the top-k table, in the order of seed, window and row (it breaks ties).
        k: how many.
    """
    failure = table["failure"].combine_chunks().dictionary_encode().indices.to_numpy()
    kept = np.zeros(table.num_rows, dtype=bool)
    for value in _criteria(table):
        kept[_largest(failure, value, k).entries] = True
    return table.filter(pa.array(kept))
