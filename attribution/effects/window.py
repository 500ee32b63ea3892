"""Attribution of one window: sums for groups and the top transitions of each failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ..actors.outputs import Actor
from ..adjoints.critic import corrected_critic_change
from ..adjoints.gae import GaeAdvantages
from ..adjoints.signal import Scores
from ..estimators.base import EVERYTHING, Estimator, Prepared, ScoredWindow, chunks
from ..estimators.window import GroupedCorrections, Window
from ..gradients.kernel import LAMBDAS
from ..targets.steps import Targets
from .sums import EFFECTS, Sums
from .top import TOP_K, Leaders, top_transitions

NULL_DRAWS = 20
_NULL_SEED = 0
_NOTHING = 1e-7  # of the window's advantages: below it an effect is rounding, or the 1e-8 of SB3's normalisation
FURTHER = (*sorted(EVERYTHING), "lambdas")  # that can be asked for


@dataclass(frozen=True)
class Asked:
    """Which effects are computed in addition to that of corrections through the policy loss.

    Attributes:
        further: of `FURTHER`: without the normalisation of advantages, through the value loss, at more dampings.
    """

    further: frozenset[str] = frozenset()

    def dampings(self, estimator: Estimator) -> tuple[float, ...]:
        """Return the dampings [L]; the estimator's own is the first."""
        more = LAMBDAS if "lambdas" in self.further else ()
        return tuple(dict.fromkeys((estimator.damping, *more)))


class WindowInfluence(NamedTuple):
    """What the attribution of one window leaves: sums of groups, and the top transitions (a table)."""

    sums: Sums
    top: pa.Table


def attribute_window(
    window: Window,
    actor: Actor,
    targets: Targets,
    estimator: Estimator,
    top_k: int = TOP_K,
    leaders: Leaders | None = None,
    asked: Asked = Asked(),
    mass: NDArray[np.float64] | None = None,
) -> WindowInfluence:
    r"""Attribute F failures to the rewards of one window.

    Effects of a `finite_difference` estimator are divided by the window's mass
    :math:`c = \sum_g |\mathrm{mean}_f\, e_{gf}|`, so that every window counts the same: late windows, in which a policy
    has settled, would swamp all others. A window whose corrections change nothing but rounding has mass 0 and adds
    nothing. The null permutes the scores among the transitions whose advantage a correction changes: the same
    corrections, chance influence.

    Args:
        window: the window's transitions.
        actor: the policy with the parameters that collected it; its precision and parameters may be changed.
        targets: the failures' targets.
        estimator: how.
        top_k: transitions kept a failure: the k with the largest correction effect and the k with the
            largest influence |tau| among reward events.
        leaders: of other windows: what cannot be among the top of all of them is left out.
        asked: which effects are computed.
        mass: [L] that effects are divided by, where earlier failures decided it; NaN, or None for all: it is that of
            these failures.

    Raises:
        NonFiniteError: a gradient is not finite.
    """
    prepared = estimator.prepare(window, actor, targets)
    prepared.further = asked.further & EVERYTHING
    wrong, dampings = window.corrections_by_group(), asked.dampings(estimator)
    mean_tau, mean_scores, tops = np.zeros(len(window.reward)), np.zeros(len(window.reward)), []
    for part in chunks(targets.failures):
        influence = prepared.influence(dampings[0], part)
        mean_tau += influence.tau.sum(axis=1) / targets.failures
        mean_scores += influence.scores.sum(axis=1) / targets.failures
        least = None if leaders is None else leaders.least[:, part]
        tops.append(top_transitions(window, targets.ids[part], influence, estimator.label, top_k, least))
    changes = np.column_stack([wrong.change, wrong.change.sum(axis=1)])  # of each group, and of all as one set
    planes: dict[str, list[Scores]] = {}
    for lam in dampings:
        for name, effect in zip(EFFECTS, prepared.effects(lam, changes, targets.failures), strict=True):
            if effect is not None:
                planes.setdefault(name, []).append(effect.T)
    together = planes["effect"][0][:, -1]
    effects = {name: np.stack(values)[:, :, :-1] for name, values in planes.items()}  # [L, F, G]
    finite = estimator.finite_difference
    own, null = np.ones(len(dampings)), None
    if finite:
        own = np.abs(effects["effect"].mean(axis=1)).sum(axis=1)
        own[own <= _NOTHING * _size(window, mean_scores)] = 0.0  # corrections that normalisation takes back
        null = _null_of_scores(window, wrong, mean_scores, _weights(prepared, window, changes)[:, :-1])
    mass = own if mass is None else np.where(np.isnan(mass), own, mass)
    null = _null_of_tau(window, wrong, mean_tau) if null is None else null
    divisor = np.where(mass > 0.0, mass, np.inf)
    units, unit_sums = _unit_sums(window, mean_tau)
    sums = Sums(
        groups=wrong.groups, effects={name: planes / divisor[:, None, None] for name, planes in effects.items()},
        null=null / divisor[0],
        direction=_direction(window, actor, wrong, mean_scores) if finite else np.full(len(wrong.groups), np.nan),
        unit_groups=units, units=unit_sums, windows=np.array([window.number]), together=together[None],
        mass=mass[None], transitions=np.array([len(window.reward)]), scores=mean_scores.astype(np.float32),
    )  # fmt: skip
    return WindowInfluence(sums, pa.concat_tables(tops))


def _weights(prepared: Prepared, window: Window, change: Scores) -> Scores:
    if isinstance(prepared, ScoredWindow):
        return prepared.weights(change)
    return window.signal.weights_of(window.signal.raw_change(change))


def _size(window: Window, scores: Scores) -> float:
    """Return the sum of the absolute parts of the effect that taking all advantages away would have."""
    return float(np.abs(window.signal.weights_of(-window.signal.raw[:, None])[:, 0]) @ np.abs(scores))


def _null_of_scores(window: Window, wrong: GroupedCorrections, scores: Scores, weights: Scores) -> Scores:
    reached = np.flatnonzero(window.signal.raw_change(wrong.change).any(axis=1))
    generator, permuted = _generator(window), np.tile(scores, (NULL_DRAWS, 1))
    for draw in permuted:
        draw[reached] = generator.permutation(draw[reached])
    return permuted @ weights


def _null_of_tau(window: Window, wrong: GroupedCorrections, tau: Scores) -> Scores:
    generator, change, own = _generator(window), wrong.change[wrong.rows].T, tau[wrong.rows]
    return np.stack([change @ generator.permutation(own) for _ in range(NULL_DRAWS)])


def _generator(window: Window) -> np.random.Generator:
    return np.random.default_rng([_NULL_SEED, window.seed, window.number])


def _direction(window: Window, actor: Actor, wrong: GroupedCorrections, scores: Scores) -> Scores:
    """Return the mean effect of each group's correction with the critic corrected too, [G]; NaN: not known."""
    signal, features = window.signal, _critic_features(window, actor)
    if features is None or not isinstance(signal, GaeAdvantages):
        return np.full(len(wrong.groups), np.nan)
    change = corrected_critic_change(signal, *features, wrong.change)
    effects: Scores = signal.weights_of(change).T @ scores
    return effects


def _critic_features(window: Window, actor: Actor) -> tuple[Scores, Scores] | None:
    """Return the critic's latent features and 1 of each transition's state, and of what followed, [N, K] each.

    None where they are not known: the policy has no critic or remembers, or what followed was not recorded.
    """
    after, rows = window.following, window.rows
    if after is None or rows.inputs.history is not None:
        return None
    with torch.no_grad():
        latent = [actor.outputs(observed).critic_latent for observed in (rows.observations, after.observations)]
    now, later = (
        None if part is None else np.pad(part.double().cpu().numpy(), ((0, 0), (0, 1)), constant_values=1.0)
        for part in latent
    )
    if now is None or later is None:
        return None
    now = now[rows.row]
    following = np.concatenate([now[1:], np.zeros((1, now.shape[1]))])
    following[after.terminated], following[after.rows] = 0.0, later
    return now, following


def _unit_sums(window: Window, mean: NDArray[np.float64]) -> tuple[list[str], NDArray[np.float64]]:
    rows = np.flatnonzero(window.reward if window.editable is None else window.editable)
    groups, member = np.unique(window.group[rows], return_inverse=True)
    reward, tau = window.reward[rows], mean[rows]
    weights = (np.ones(len(rows)), reward, tau, reward * tau)
    return groups.tolist(), np.stack([np.bincount(member, w, len(groups)) for w in weights])
