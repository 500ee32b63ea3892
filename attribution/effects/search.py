r"""The adaptive search for a small sufficient correction: every set that was measured is evidence on its groups.

The bank's nested sets follow an order that was fixed before anything was measured. Here the order follows the
measurements. Let y(C) be the measured change of the log-odds of misbehaviour when the set C is corrected, as a share of
the change when all G wrong groups are. The belief is the ridge regression of y on membership, shrunk towards the
attribution order (Bayesian linear regression: Bishop 2006, *Pattern Recognition and Machine Learning*, 3.3 and 3.5):

.. math:: y(C) = \sum_{g \in C} w_g + e, \quad w \sim N(p, (\alpha/G)^2 I), \quad e \sim N(0, s_C^2 + \sigma^2),

p falls linearly with the rank and sums to 1, :math:`s_C` is the standard error over seeds, and :math:`\alpha` (how far
the order may be wrong) and :math:`\sigma` (how far changes are from additive) have the largest marginal likelihood on
a small grid. So a set that changes nothing exonerates its groups, and one that cures exonerates all others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

_SPREADS = (0.5, 1.0, 2.0, 4.0)
_ERRORS = (0.05, 0.1, 0.2, 0.4)
_HOPE = 0.2  # sets below this probability to suffice are not tried: chosen in simulations of additive and steep curves


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
    order: Sequence[str], measured: Sequence[MeasuredSet], needed: float, taken: Collection[int] = ()
) -> tuple[str, ...] | None:
    """Return the set to measure next: the first groups in the order of the present belief.

    Of the sizes below the smallest sufficient set, those come into question whose set has some hope to suffice and is
    no part of one that does not; the middle one of them is taken. A pure function of what was measured, in its order.

    Args:
        order: all wrong groups, the most suspected first.
        measured: the sets measured so far, the one of all groups among them.
        needed: change of the log-odds that brings the misbehaviour to the level, negative.
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
    errors = [float(np.var(share, ddof=1)) / len(share) if len(share) > 1 else 0.0 for share in shares]
    mean, covariance, noise = _belief(members, np.array([share.mean() for share in shares]), np.array(errors))
    believed = np.argsort(-mean, kind="stable")
    failed = [each.groups for each in measured if not each.suffices]
    hopeful: list[tuple[str, ...]] = []
    likely: tuple[float, tuple[str, ...]] | None = None
    for size in range(1, len(smallest)):
        first = believed[:size]
        groups = tuple(order[index] for index in first)
        if size in taken or any(each.issuperset(groups) for each in failed):
            continue
        spread = np.sqrt(covariance[np.ix_(first, first)].sum() + noise)
        chance = float(ndtr((mean[first].sum() - needed / total) / spread))
        if chance > _HOPE:
            hopeful.append(groups)
        if likely is None or chance >= likely[0]:
            likely = chance, groups
    if hopeful:
        return hopeful[len(hopeful) // 2]
    return None if likely is None else likely[1]


def _belief(
    members: NDArray[np.float64], shares: NDArray[np.float64], errors: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Return the posterior mean [G] and covariance [G, G] of the weights, and the variance about additivity.

    Args:
        members: [M, G], 1 where a measured set has a group; groups in attribution order.
        shares: measured changes [M], as shares of the change when all are corrected.
        errors: their variances over seeds [M].
    """
    groups = members.shape[1]
    prior = np.arange(groups, 0, -1.0)
    prior /= prior.sum()
    surprise = shares - members @ prior
    gram = members @ members.T
    fits = []
    for spread in _SPREADS:
        for error in _ERRORS:
            variance = (spread / groups) ** 2
            system = variance * gram + np.diag(errors + error**2)
            evidence = -0.5 * (surprise @ np.linalg.solve(system, surprise) + np.linalg.slogdet(system)[1])
            fits.append((float(evidence), variance, error**2, system))
    _, variance, noise, system = max(fits, key=lambda fit: fit[0])
    gain = variance * np.linalg.solve(system, members).T
    covariance = variance * (np.eye(groups) - gain @ members)
    return prior + gain @ surprise, covariance, noise
