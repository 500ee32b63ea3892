"""Attribution of one window: sums for groups and the top transitions of each failure."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..actors.outputs import Actor
from ..estimators.base import Estimator, chunks
from ..estimators.window import Window
from ..gradients.kernel import DEFAULT_LAMBDA, LAMBDAS
from ..targets.steps import Targets
from .top import TOP_K, Leaders, top_transitions

EFFECTS = ("effect", "effect_raw", "effect_value")
NULL_DRAWS = 20
_NULL_SEED = 0


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
    actor: Actor,
    targets: Targets,
    estimator: Estimator,
    top_k: int = TOP_K,
    leaders: Leaders | None = None,
) -> WindowInfluence:
    """Attribute F failures to the rewards of one window.

    Args:
        window: the window's transitions.
        actor: the policy with the parameters that collected it; its precision and parameters may be changed.
        targets: the failures' targets.
        estimator: how.
        top_k: transitions kept a failure: the k with the largest correction effect and the k with the
            largest influence |tau| among reward events.
        leaders: of other windows: what cannot be among the top of all of them is left out.

    Raises:
        NonFiniteError: a gradient is not finite.
    """
    prepared = estimator.prepare(window, actor, targets)
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
        least = None if leaders is None else leaders.least[:, part]
        tops.append(top_transitions(window, targets.ids[part], influence, estimator.label, top_k, least))
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
