r"""The adaptive search for a small sufficient correction: every set that was measured is evidence on its groups.

The bank's nested sets follow an order that was fixed before anything was measured. Here the order follows the
measurements. Let y(C) be the measured change of the log-odds of misbehaviour when the set C is corrected, as a share of
the change when all G wrong groups are. The belief is a ridge regression on membership, shrunk towards the attribution
order (Bayesian linear regression: Bishop 2006, *Pattern Recognition and Machine Learning*, 3.3 and 3.5):

.. math:: y(C) = h(\sum_{g \in C} w_g) + e, \quad w \sim N(p, (\alpha/G)^2 I), \quad e \sim N(0, s_C^2 + \sigma^2),

p sums to 1 and falls linearly with the rank, or is even over the first groups and 0 behind; :math:`s_C` is the standard
error over seeds; h is a straight line or a logistic curve through (0, 0) and (1, 1), for some misbehaviour gives way
only when enough is corrected. p, h, :math:`\alpha` (how far the order may be wrong) and :math:`\sigma` (how far changes
are from this form) are those of the largest marginal likelihood on a small grid, with errors carried through h to first
order. So a set that changes nothing speaks for the groups outside it, and one that cures speaks for its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, logit, ndtr

_CAUSES = (0.2, 0.35, 0.5, 0.7, 1.0)  # shares of the groups that may be the cause
_SPREADS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
_ERRORS = (0.02, 0.05, 0.1, 0.2, 0.4)
_STRAIGHT = (0.5, 0.1)
_CURVES = (_STRAIGHT, *((middle, steepness) for middle in (0.3, 0.45, 0.6, 0.75) for steepness in (8.0, 20.0)))
_CHANCE = 0.05
_FOURTH_OF_FIVE = 0.5  # standard deviations that the fourth best of five seeds lies from the mean: .495, normal
_FLAT = 0.02  # the ends of a logistic curve say little: changes are read no further out


@dataclass(frozen=True)
class MeasuredSet:
    """A correction set whose agents were trained and played.

    Attributes:
        groups: the wrong groups that it corrects.
        changes: of the log-odds of misbehaviour against the rewards as paid, one a seed.
        suffices: whether it brings the misbehaviour down to the level that is searched.
    """

    groups: frozenset[str]
    changes: tuple[float, ...]
    suffices: bool


def smallest_sufficient(measured: Sequence[MeasuredSet]) -> frozenset[str] | None:
    """Return the smallest measured set that suffices, the first of several; None where none does."""
    return min((each.groups for each in measured if each.suffices), key=len, default=None)


def next_set(
    order: Sequence[str], measured: Sequence[MeasuredSet], needed: float, above: int = 0, taken: Collection[int] = ()
) -> tuple[str, ...] | None:
    """Return the set to measure next: the first groups in the order of the present belief.

    Its size is bisected, between the smallest that is believed to have a chance to suffice and the smallest that does.
    A part of a set that does not suffice has none. A pure function of what was measured, in its order.

    Args:
        order: all wrong groups, the most suspected first.
        measured: the sets measured so far, the one of all groups among them.
        needed: change of the log-odds that brings the misbehaviour to the level, negative.
        above: the size of the largest set of this search that did not suffice; smaller ones are tried
            when nothing else is left.
        taken: sizes that are not to be returned.

    Returns:
        Its groups, the most suspected first; None where nothing smaller is left to try.
    """
    smallest = smallest_sufficient(measured)
    whole = next((each for each in measured if len(each.groups) == len(order)), None)
    if smallest is None or whole is None or not whole.changes or (total := float(np.mean(whole.changes))) >= 0.0:
        return None
    seen = [each for each in measured if each.groups and each.changes]
    rank = {group: index for index, group in enumerate(order)}
    members = np.zeros((len(seen), len(order)))
    for row, each in zip(members, seen, strict=True):
        row[[rank[group] for group in each.groups]] = 1.0
    shares = [np.array(each.changes) / total for each in seen]
    between = np.array([float(np.var(share, ddof=1)) if len(share) > 1 else 0.0 for share in shares])
    errors = between / np.array([len(share) for share in shares])
    goal = needed / total + _FOURTH_OF_FIVE * float(np.sqrt(between.mean()))
    belief = _believe(members, np.array([share.mean() for share in shares]), errors, goal)
    believed = np.argsort(-belief.mean, kind="stable")
    failed = [each.groups for each in measured if not each.suffices]
    sums, variances = np.cumsum(belief.mean[believed]), _variances_of_sums(belief.covariance, believed)
    possible, least = list[tuple[str, ...]](), len(smallest)
    for size in range(above + 1, len(smallest)):
        groups = tuple(order[index] for index in believed[:size])
        if any(each.issuperset(groups) for each in failed):
            continue
        spread = np.sqrt(variances[size - 1] + belief.noise)
        if ndtr((sums[size - 1] - belief.needed) / spread) > _CHANCE:
            least = min(least, size)
        if size not in taken:
            possible.append(groups)
    if not possible and above:
        return next_set(order, measured, needed, 0, taken)  # the order has changed since
    middle = (least - 1 + len(smallest)) // 2
    return min(possible, key=lambda groups: abs(len(groups) - middle), default=None)


class _Belief(NamedTuple):
    """The posterior of the weights: mean [G], covariance [G, G]; the sum that is needed, and its variance of form."""

    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    needed: float
    noise: float


def _believe(
    members: NDArray[np.float64], shares: NDArray[np.float64], errors: NDArray[np.float64], needed: float
) -> _Belief:
    """Return the posterior of the weights.

    Args:
        members: [M, G], 1 where a measured set has a group; groups in attribution order.
        shares: measured changes [M], as shares of the change when all are corrected.
        errors: their variances over seeds [M].
        needed: the share that suffices.
    """
    groups = members.shape[1]
    gram = members @ members.T
    best, most = None, -np.inf
    for curve, prior in itertools.product(_CURVES, _expectations(groups)):
        sums, slopes = _sums_behind(np.append(shares, needed), *curve)
        surprise, slope = sums[:-1] - members @ prior, slopes[:-1]
        for spread, error in itertools.product(_SPREADS, _ERRORS):
            variance = (spread / groups) ** 2
            system = variance * gram + np.diag((errors + error**2) * slope**2)
            fit = surprise @ np.linalg.solve(system, surprise) + np.linalg.slogdet(system)[1]
            if (evidence := float(np.log(slope).sum() - 0.5 * fit)) > most:
                most = evidence
                best = prior, variance, system, surprise, float(sums[-1]), float((error * slopes[-1]) ** 2)
    assert best is not None
    prior, variance, system, surprise, goal, noise = best
    gain = variance * np.linalg.solve(system, members).T
    covariance = variance * (np.eye(groups) - gain @ members)
    return _Belief(prior + gain @ surprise, covariance, goal, noise)


def _variances_of_sums(covariance: NDArray[np.float64], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the variance of the sum of the first 1, 2, ... weights of an order, [G]."""
    ordered = covariance[np.ix_(order, order)]
    variances: NDArray[np.float64] = np.cumsum(2.0 * np.tril(ordered).sum(axis=1) - ordered.diagonal())
    return variances


def _expectations(groups: int) -> list[NDArray[np.float64]]:
    """Return the prior means of the weights that are tried, [G] each: falling with the rank, or even over the first."""
    rank = np.arange(groups)
    shapes = [groups - rank, *(rank < max(1, round(share * groups)) for share in _CAUSES)]
    return [shape / shape.sum() for shape in shapes]


def _sums_behind(
    shares: NDArray[np.float64], middle: float, steepness: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the sums of weights that a curve makes shares from, and their derivatives by the shares."""
    start, end = expit(-steepness * middle), expit(steepness * (1.0 - middle))
    height = np.clip(start + shares * (end - start), _FLAT, 1.0 - _FLAT)
    return middle + logit(height) / steepness, (end - start) / (steepness * height * (1.0 - height))
