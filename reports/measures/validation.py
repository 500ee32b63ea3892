"""How well predictions foretell retraining: the linear datamodeling score (LDS), its intervals and its noise ceiling.

LDS: the rank correlation over random correction sets between the predicted and the measured change of a failure's
target, mean over failures (Park et al. 2023, arXiv:2303.14186, section 2). No predictor can correlate better with one
measurement than the square root of that measurement's reliability: the noise ceiling, from the same sets with other
seeds (Spearman-Brown, Spearman 1910).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from ..statistics import CONFIDENCE, NOTHING, Interval, mean_interval

Numbers = NDArray[np.float64]
_RESAMPLES = 1000
_MOST_SPLITS = 50
_ROUNDING = 1e-9
SHUFFLED = "shuffled"
_SHUFFLES = 100
_SHUFFLE_SEED = 0


def rank_correlations(one: Numbers, other: Numbers, control: Numbers | None = None) -> Numbers:
    """Return Spearman's correlation of each column over the rows of [M, F] and [M, F]; 0 where one is constant.

    Args:
        one, other: what is correlated.
        control: [M], held fixed: the correlation is then the partial one.
    """
    x, y = (_centred_ranks(values, control) for values in (one, other))
    size = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    return np.asarray(
        np.divide((x * y).sum(axis=0), size, out=np.zeros_like(size), where=size > _ROUNDING), dtype=np.float64
    )


def _centred_ranks(values: Numbers, control: Numbers | None) -> Numbers:
    ranks: Numbers = rankdata(values, axis=0)
    ranks = ranks - ranks.mean(axis=0)
    if control is None:
        return ranks
    fixed = rankdata(control)
    fixed = fixed - fixed.mean()
    return np.asarray(ranks - np.outer(fixed, fixed @ ranks / max(float(fixed @ fixed), 1.0)), dtype=np.float64)


def linear_datamodeling_score(predicted: Numbers, measured: Numbers, control: Numbers | None = None) -> Interval:
    """Return the LDS with a bootstrap interval over correction sets.

    Args:
        predicted: change of each failure's target that each set is predicted to make, [M, F].
        measured: the same as retrained, mean over seeds, [M, F].
        control: [M], held fixed, such as how many groups each set corrects.
    """
    return _bootstrapped(
        len(predicted),
        lambda sets: rank_correlations(
            predicted[sets], measured[sets], None if control is None else control[sets]
        ).mean(),
    )  # fmt: skip


def noise_ceiling(measured: Numbers) -> Interval:
    """Return the highest LDS that noise between seeds allows, with a bootstrap interval over correction sets.

    Args:
        measured: change of each failure's target, [S, M, F]: one plane a seed; nothing with fewer than two seeds.
    """
    seeds = len(measured)
    if seeds < 2:
        return NOTHING
    halves = list(combinations(range(seeds), seeds // 2))[:_MOST_SPLITS]

    def ceiling(sets: NDArray[np.int64]) -> float:
        correlations = []
        for half in halves:
            rest = [seed for seed in range(seeds) if seed not in half]
            one, other = (measured[list(part)][:, sets].mean(axis=0) for part in (half, rest))
            correlations.append(rank_correlations(one, other).mean())
        half_reliability = max(float(np.mean(correlations)), 0.0)
        return float(np.sqrt(2 * half_reliability / (1 + half_reliability)))

    return _bootstrapped(measured.shape[1], ceiling, resamples=_RESAMPLES // 5)


def validation_scores(changes: Numbers, chosen: Numbers, effects: Mapping[str, Numbers]) -> dict[str, Any]:
    """Return the LDS of every estimator and the noise ceiling, as `validation.json` has them.

    `shuffled`: effects permuted among the wrong groups; its interval is over permutations. It still knows how many
    groups a set corrects, and that alone can score high, so `lds_given_size` holds that number fixed.

    Args:
        changes: measured change of each failure's target, [S, M, F].
        chosen: which groups each set corrects, 0 or 1, [M, G].
        effects: of each estimator, the task's own first: the predicted effect of correcting each group, [G, F].
    """
    measured, sizes = changes.mean(axis=0), chosen.sum(axis=1)
    lds, given_size = {}, {}
    for name, effect in effects.items():
        lds[name] = linear_datamodeling_score(chosen @ effect, measured).as_dict()
        given_size[name] = linear_datamodeling_score(chosen @ effect, measured, sizes).as_dict()
    effect, generator = next(iter(effects.values())), np.random.default_rng(_SHUFFLE_SEED)
    drawn = [
        float(rank_correlations(chosen @ generator.permutation(effect), measured).mean()) for _ in range(_SHUFFLES)
    ]
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975]).tolist()
    lds[SHUFFLED] = Interval(middle, low, high).as_dict()
    return {"lds": lds, "lds_given_size": given_size, "noise_ceiling": noise_ceiling(changes).as_dict()}


def replay_gap(interactive: Numbers, replayed: Numbers) -> dict[str, Any]:
    """Return by how much replays differ from training again: mean change of the targets, over seeds.

    Args:
        interactive, replayed: measured change of each failure's target, [S, M, F].
    """

    def over_seeds(changes: Numbers) -> Interval:
        return mean_interval(changes.mean(axis=(1, 2)).tolist())

    return {
        "interactive": over_seeds(interactive).as_dict(), "replay": over_seeds(replayed).as_dict(),
        "difference": over_seeds(replayed - interactive).as_dict(),
    }  # fmt: skip


def _bootstrapped(count: int, statistic: Callable[[NDArray[np.int64]], float], resamples: int = _RESAMPLES) -> Interval:
    """Return a statistic of correction sets with its percentile bootstrap interval over them."""
    generator = np.random.default_rng(0)
    drawn = [statistic(generator.integers(0, count, count)) for _ in range(resamples)]
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(statistic(np.arange(count))), float(low), float(high))
