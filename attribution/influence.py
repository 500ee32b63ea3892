"""Attribution of one window: sums for groups and the top transitions of each failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy

from ..datasets.rewards import corrections, reward_events
from ..training.spaces import action_text
from .estimators import Estimator, Influence
from .targets import TargetSteps
from .trak import DEFAULT_LAMBDA, LAMBDAS
from .window import Window

EFFECTS = ("effect", "effect_raw", "effect_value")
TOP_K = 16
NULL_DRAWS = 20
_NULL_SEED = 0
_CHUNK = 512  # failures whose [N, F] arrays are held at once


class GroupSums(NamedTuple):
    """Effects of correcting each group that has a wrong reward in the window.

    Attributes:
        groups: [G].
        effects: by name (`EFFECTS`), float64 [L, F, G], one plane a lambda: sums of dr * tau, dr * tau_raw and
            dr * tau_value.
        null: [D, G], mean effect over failures if the same wrong rewards had each other's influence: D random
            permutations of tau among them, at the default lambda.
    """

    groups: list[str]
    effects: dict[str, NDArray[np.float64]]
    null: NDArray[np.float64]


class UnitSums(NamedTuple):
    """Sums over the transitions of each group that an arbitrary edit would change, [U] each.

    Attributes:
        groups: their names.
        sums: float64 [4, U]: their number, r, tau and r * tau; tau is the mean over failures at the default lambda.
    """

    groups: list[str]
    sums: NDArray[np.float64]


class WindowInfluence(NamedTuple):
    """What the attribution of one window leaves: sums of groups and the top transitions (a table)."""

    sums: GroupSums
    units: UnitSums
    top: pa.Table


def attribute_window(
    window: Window, policy: ActorCriticPolicy, targets: TargetSteps, estimator: Estimator, top_k: int = TOP_K
) -> WindowInfluence:
    """Attribute F failures to the rewards of one window.

    Args:
        window: the window's transitions.
        policy: the policy with the parameters that collected it.
        targets: the failures' targets.
        estimator: how.
        top_k: transitions kept a failure: the k with the largest correction effect and the k with the
            largest influence |tau| among reward events.

    Raises:
        NonFiniteError: a gradient is not finite.
    """
    prepared = estimator.prepare(window, policy, targets)
    wrong = _wrong_rows(window)
    shape = (len(LAMBDAS), targets.failures, len(wrong.groups))
    effects = {name: np.zeros(shape) for name in EFFECTS}
    mean = np.zeros(len(window.reward))
    tops: list[pa.Table] = []
    for plane, lam in enumerate(LAMBDAS):
        for start in range(0, targets.failures, _CHUNK):
            part = slice(start, min(start + _CHUNK, targets.failures))
            influence = prepared.influence(lam, part)
            for name, tau in zip(EFFECTS, (influence.tau, influence.tau_raw, influence.tau_value), strict=True):
                effects[name][plane, part] = (wrong.change @ tau[wrong.rows]).T
            if lam == DEFAULT_LAMBDA:
                mean += influence.tau.sum(axis=1) / targets.failures
                tops.append(_top_transitions(window, targets.ids[part], influence, estimator.name, top_k))
    generator = np.random.default_rng([_NULL_SEED, window.seed, window.number])
    null = np.stack([wrong.change @ generator.permutation(mean[wrong.rows]) for _ in range(NULL_DRAWS)])
    return WindowInfluence(GroupSums(wrong.groups, effects, null), _unit_sums(window, mean), pa.concat_tables(tops))


def _unit_sums(window: Window, mean: NDArray[np.float64]) -> UnitSums:
    rows = np.flatnonzero(window.reward if window.editable is None else window.editable)
    groups, member = np.unique(window.group[rows], return_inverse=True)
    reward, tau = window.reward[rows], mean[rows]
    weights = (np.ones(len(rows)), reward, tau, reward * tau)
    return UnitSums(groups.tolist(), np.stack([np.bincount(member, w, len(groups)) for w in weights]))


class _WrongRows(NamedTuple):
    """Transitions to correct: their rows [M], their groups, and dr by group [G, M], one entry a column."""

    rows: NDArray[np.int64]
    groups: list[str]
    change: NDArray[np.float64]


def _wrong_rows(window: Window) -> _WrongRows:
    change = window.correction
    rows = np.flatnonzero(change) if change is not None else np.empty(0, np.int64)
    groups, member = np.unique(window.group[rows], return_inverse=True)
    by_group = np.zeros((len(groups), len(rows)))
    if change is not None:
        by_group[member, np.arange(len(rows))] = change[rows]
    return _WrongRows(rows, groups.tolist(), by_group)


def _top_transitions(window: Window, ids: Sequence[str], influence: Influence, estimator: str, top_k: int) -> pa.Table:
    """Return the top transitions of each failure in this window, as rows of the top-k table."""
    change, event = window.correction, window.is_event
    steps = window.steps
    size = np.abs(influence.tau) * event[:, None]
    kept_rows, kept_failures = [], []
    for failure in range(len(ids)):
        chosen = _largest(size[:, failure], top_k)
        if change is not None:
            chosen = np.union1d(chosen, _largest(-change * influence.tau[:, failure], top_k))
        kept_rows.append(chosen)
        kept_failures.append(np.full(len(chosen), failure))
    row, failure_of = np.concatenate(kept_rows), np.concatenate(kept_failures)
    intended = np.full(len(row), np.nan) if window.intended is None else window.intended[row]
    return pa.table(
        {
            "failure": pa.array(np.array(ids)[failure_of]),
            "seed": pa.array(np.full(len(row), window.seed, np.int32)),
            "window": pa.array(np.full(len(row), window.number, np.int32)),
            "step": pa.array((row % steps).astype(np.int32)),
            "env": pa.array((row // steps).astype(np.int32)),
            "tau": pa.array(influence.tau[row, failure_of]),
            "tau_raw": pa.array(influence.tau_raw[row, failure_of]),
            "tau_value": pa.array(influence.tau_value[row, failure_of]),
            "s": pa.array(influence.scores[row, failure_of]),
            "reward": pa.array(window.reward[row]),
            "intended_reward": pa.array(intended, from_pandas=True),
            "context": pa.array(window.group[row]),
            "action": pa.array([action_text(action) for action in window.action[row]], pa.string()),
            "estimator": pa.array([estimator] * len(row)),
        }
    )


def _largest(values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the rows of the k largest positive values; ties by row number, so that nothing else decides."""
    positive = np.flatnonzero(values > 0.0)
    return positive[np.argsort(-values[positive], kind="stable")[:k]]


def keep_top(table: pa.Table, k: int) -> pa.Table:
    """Keep, of each failure, the k transitions with the largest |tau| among reward events, and the k whose
    correction is predicted to help most (-dr * tau); the streaming step of merging windows.

    Args:
        table: rows of the top-k table, in the order of seed, window and row (it breaks ties).
        k: how many.
    """
    failure = table["failure"].combine_chunks().dictionary_encode().indices.to_numpy()
    tau, reward = table["tau"].to_numpy(), table["reward"].to_numpy()
    intended = table["intended_reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    event = reward_events(reward, intended)
    kept = np.zeros(table.num_rows, dtype=bool)
    for value in (np.abs(tau) * event, -corrections(reward, intended) * tau):
        order = np.lexsort((np.arange(len(value)), -value, failure))
        rank = np.arange(len(value)) - np.searchsorted(failure[order], failure[order])
        kept[order[(rank < k) & (value[order] > 0.0)]] = True
    return table.filter(pa.array(kept))
