"""Attribution of one window: sums for groups and the top transitions of each failure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy

from ...datasets.rewards import corrections, reward_events
from ...training.environments.spaces import action_text
from ..adjoints.gae import Scores
from ..estimators.base import Estimator, Influence, chunks
from ..estimators.window import Window
from ..gradients.kernel import DEFAULT_LAMBDA, LAMBDAS
from ..targets.steps import TargetSteps

EFFECTS = ("effect", "effect_raw", "effect_value")
TOP_K = 16
NULL_DRAWS = 20
_NULL_SEED = 0
_KINDS = 2  # values by which transitions are kept: |tau| of reward events, and -dr * tau


class GroupSums(NamedTuple):
    """Effects of correcting each group that has a wrong reward in the window.

    Attributes:
        groups: [G].
        effects: by name (`EFFECTS`), float64 [L, F, G], one plane a lambda: sums of dr * tau, dr * tau_raw and
            dr * tau_value; without `effect_value` where the estimator does not compute that channel.
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
    window: Window,
    policy: ActorCriticPolicy,
    targets: TargetSteps,
    estimator: Estimator,
    top_k: int = TOP_K,
    leaders: Leaders | None = None,
) -> WindowInfluence:
    """Attribute F failures to the rewards of one window.

    Args:
        window: the window's transitions.
        policy: the policy with the parameters that collected it.
        targets: the failures' targets.
        estimator: how.
        top_k: transitions kept a failure: the k with the largest correction effect and the k with the
            largest influence |tau| among reward events.
        leaders: of other windows: what cannot be among the top of all of them is left out.

    Raises:
        NonFiniteError: a gradient is not finite.
    """
    prepared = estimator.prepare(window, policy, targets)
    wrong = _wrong_rows(window)
    shape = (len(LAMBDAS), targets.failures, len(wrong.groups))
    effects: dict[str, NDArray[np.float64]] = {}
    mean = np.zeros(len(window.reward))
    tops: list[pa.Table] = []
    for part in chunks(targets.failures):
        influence = prepared.influence(DEFAULT_LAMBDA, part)
        for name, tau in zip(EFFECTS, (influence.tau, influence.tau_raw, influence.tau_value), strict=True):
            if tau is not None:
                plane = effects.setdefault(name, np.zeros(shape))[LAMBDAS.index(DEFAULT_LAMBDA)]
                plane[part] = (wrong.change[:, wrong.rows] @ tau[wrong.rows]).T
        mean += influence.tau.sum(axis=1) / targets.failures
        least = np.zeros((_KINDS, targets.failures)) if leaders is None else leaders.least
        tops.append(_top_transitions(window, targets.ids[part], influence, estimator.name, top_k, least[:, part]))
    for index, lam in enumerate(LAMBDAS):
        if lam != DEFAULT_LAMBDA and wrong.groups:
            sums = prepared.sums(lam, wrong.change.T, targets.failures)
            for name, total in zip(EFFECTS, sums, strict=True):
                if total is not None:
                    effects[name][index] = total.T
    generator = np.random.default_rng([_NULL_SEED, window.seed, window.number])
    change = wrong.change[:, wrong.rows]
    null = np.stack([change @ generator.permutation(mean[wrong.rows]) for _ in range(NULL_DRAWS)])
    return WindowInfluence(GroupSums(wrong.groups, effects, null), _unit_sums(window, mean), pa.concat_tables(tops))


def _unit_sums(window: Window, mean: NDArray[np.float64]) -> UnitSums:
    rows = np.flatnonzero(window.reward if window.editable is None else window.editable)
    groups, member = np.unique(window.group[rows], return_inverse=True)
    reward, tau = window.reward[rows], mean[rows]
    weights = (np.ones(len(rows)), reward, tau, reward * tau)
    return UnitSums(groups.tolist(), np.stack([np.bincount(member, w, len(groups)) for w in weights]))


class _WrongRows(NamedTuple):
    """Transitions to correct: their rows [M], their groups, and dr by group [G, N], zero but for one entry a row."""

    rows: NDArray[np.int64]
    groups: list[str]
    change: NDArray[np.float64]


def _wrong_rows(window: Window) -> _WrongRows:
    change = np.zeros(len(window.reward)) if window.correction is None else window.correction
    rows = np.flatnonzero(change)
    groups, member = np.unique(window.group[rows], return_inverse=True)
    by_group = np.zeros((len(groups), len(change)))
    by_group[member, rows] = change[rows]
    return _WrongRows(rows, groups.tolist(), by_group)


def _top_transitions(
    window: Window,
    ids: Sequence[str],
    influence: Influence,
    estimator: str,
    top_k: int,
    least: NDArray[np.float64],
) -> pa.Table:
    """Return the top transitions of each failure in this window, as rows of the top-k table."""
    steps, change, context = window.steps, window.correction, window.context
    event = np.flatnonzero(window.is_event)
    wrong = np.empty(0, np.int64) if change is None else np.flatnonzero(change)
    values = [np.abs(influence.tau[event])]
    values.append(-change[wrong, None] * influence.tau[wrong] if change is not None else values[0][:0])
    kept = []
    for rows, value, lowest in zip((event, wrong), values, least, strict=True):
        at, failure = np.nonzero((value > 0.0) & (value >= lowest))
        best = _best(failure, value[at, failure], top_k).kept
        kept.append(failure[best] * len(window.reward) + rows[at[best]])
    failure_of, row = np.divmod(np.unique(np.concatenate(kept)), len(window.reward))
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
            "tau_value": _or_null(influence.tau_value, row, failure_of),
            "s": pa.array(influence.scores[row, failure_of]),
            "reward": pa.array(window.reward[row]),
            "intended_reward": pa.array(intended, from_pandas=True),
            "group": pa.array(window.group[row]),
            "context": pa.nulls(len(row), pa.string()) if context is None else pa.array(context[row], pa.string()),
            "action": pa.array([action_text(action) for action in window.action[row]], pa.string()),
            "estimator": pa.array([estimator] * len(row), pa.string()),
        }
    )


def _or_null(tau: Scores | None, row: NDArray[np.integer], failure: NDArray[np.integer]) -> pa.Array:
    """Return the influence of some rows on a failure each; null where the estimator does not compute the channel."""
    return pa.nulls(len(row), pa.float64()) if tau is None else pa.array(tau[row, failure])


class _Best(NamedTuple):
    """Which entries are kept, by failure and falling value, and the rank of each among those of its failure."""

    kept: NDArray[np.int64]
    rank: NDArray[np.int64]


def _best(failure: NDArray[np.integer], value: NDArray[np.float64], k: int) -> _Best:
    """Return the entries with the k largest values of each failure; ties by position, so that nothing else decides."""
    order = np.lexsort((-value, failure))  # stable
    rank = np.arange(len(order)) - np.searchsorted(failure[order], failure[order])
    kept = (rank < k) & (value[order] > 0.0)
    return _Best(order[kept], rank[kept])


def _values(top: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return by what rows of the top-k table are kept: |tau| among reward events, and -dr * tau."""
    tau, reward = top["tau"].to_numpy(), top["reward"].to_numpy()
    intended = top["intended_reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    return np.abs(tau) * reward_events(reward, intended), -corrections(reward, intended) * tau


class Leaders:
    """The top of the windows so far. What is below it in another window cannot be among the top of all of them.

    Args:
        ids: of F failures.
        k: transitions kept a failure, by each of the two values.

    Attributes:
        least: [2, F], what the k-th of each failure has of each value; 0 while there are fewer.
    """

    def __init__(self, ids: Sequence[str], k: int = TOP_K) -> None:
        self._ids, self._k = pa.array(ids, pa.string()), k
        self.least = np.zeros((_KINDS, len(ids)))
        self._seen: set[tuple[int, int]] = set()
        self._so_far = [(np.empty(0, np.int32), np.empty(0))] * _KINDS

    def add(self, window: tuple[int, int], top: pa.Table) -> None:
        """Take the top transitions of one more window (seed, number) into account, once."""
        if window in self._seen:
            return
        self._seen.add(window)
        found = pc.index_in(top["failure"], self._ids).to_numpy()
        for kind, new in enumerate(_values(top)):
            old_failure, old = self._so_far[kind]
            failure, value = np.concatenate([old_failure, found]), np.concatenate([old, new])
            kept, rank = _best(failure, value, self._k)
            self._so_far[kind] = failure[kept], value[kept]
            last = kept[rank == self._k - 1]
            self.least[kind, failure[last]] = value[last]


def keep_top(table: pa.Table, k: int) -> pa.Table:
    """Keep, of each failure, the k transitions with the largest |tau| among reward events, and the k whose
    correction is predicted to help most (-dr * tau); the streaming step of merging windows.

    Args:
        table: rows of the top-k table, in the order of seed, window and row (it breaks ties).
        k: how many.
    """
    failure = table["failure"].combine_chunks().dictionary_encode().indices.to_numpy()
    kept = np.zeros(table.num_rows, dtype=bool)
    for value in _values(table):
        kept[_best(failure, value, k).kept] = True
    return table.filter(pa.array(kept))
