r"""Normalisation within minibatches, as a finite difference.

Stable-Baselines3 centres and scales the advantages of each minibatch B,
:math:`n_B(x) = (x_B - \bar x_B) / (\mathrm{std}(x_B) + 10^{-8})` (ddof 1; a minibatch of one row stays as it is), and
averages the surrogate over B. So with D the change of the raw advantages A and s the effect of a unit of normalised
advantage, the effect of the change, mean over the recorded minibatches, is

.. math:: e = \frac{1}{|\mathcal B|} \sum_B \frac{1}{|B|} \sum_{t \in B} s_t \, (n_B(A + D) - n_B(A))_t.

Where no minibatches were recorded the whole window is one.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SB3_EPSILON = 1e-8
_ROUNDING = 1e-12  # of a mean in float64, relative: equal float32 advantages are 0 apart, different ones 1e-7 or more
_COLUMNS = 64  # changes at once, so that their advantages stay in the cache

Numbers = NDArray[np.float64]


class _Epoch(NamedTuple):
    """The minibatches of one pass over a window.

    Attributes:
        rows: [n] used, minibatch after minibatch.
        starts: [B] where each begins.
        counts: [B] rows of each.
        owner: [n] the minibatch of each row.
    """

    rows: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int64]
    owner: NDArray[np.int64]


def _epochs(minibatches: NDArray[np.int32] | None, rows: int) -> Iterator[_Epoch]:
    whole = np.zeros((rows, 1), np.int32)
    for epoch in (minibatches if minibatches is not None and minibatches.size else whole).T:
        order = np.argsort(epoch, kind="stable")[np.count_nonzero(epoch < 0) :]
        if len(order):  # `target_kl` ends a training's epochs early
            _, starts, owner, counts = np.unique(
                epoch[order], return_index=True, return_inverse=True, return_counts=True
            )
            yield _Epoch(order, starts, counts, owner)


def use_of_rows(minibatches: NDArray[np.int32] | None, rows: int) -> Numbers:
    """Return the weight of each row's advantage in the mean of minibatch means, [N]; 1/N each where sizes are equal.

    Args:
        minibatches: int32 [N, E], minibatch of each row in each epoch, -1 where unused; None: not recorded.
        rows: N.
    """
    use, batches = np.zeros(rows), 0
    for epoch in _epochs(minibatches, rows):
        use[epoch.rows] += 1.0 / epoch.counts[epoch.owner]
        batches += len(epoch.counts)
    return use / max(batches, 1)


def normalised_change(raw: Numbers, change: Numbers, minibatches: NDArray[np.int32] | None) -> Numbers:
    """Return what scores are summed with for the effect of changed advantages, [N, G]; see the top of this file.

    Args:
        raw: A [N], advantages before normalisation.
        change: D [N, G], of the raw advantages.
        minibatches: int32 [N, E], minibatch of each row in each epoch, -1 where unused; None: not recorded.
    """
    epochs = list(_epochs(minibatches, len(raw)))
    batches = sum(len(epoch.counts) for epoch in epochs)
    result = np.zeros(change.shape)
    for start in range(0, change.shape[1], _COLUMNS):
        some = slice(start, start + _COLUMNS)
        part = change[:, some]
        before_and_after = raw[:, None] + np.concatenate([np.zeros((len(raw), 1)), part], axis=1)
        for epoch in epochs:
            normalised = _normalised(before_and_after[epoch.rows], epoch)
            difference = normalised[:, 1:] - normalised[:, :1]
            alone = epoch.counts[epoch.owner] == 1
            difference[alone] = part[epoch.rows[alone]]
            result[epoch.rows, some] += difference
    return result / max(batches, 1)


def _normalised(advantages: Numbers, epoch: _Epoch) -> Numbers:
    """Return n_B(x) / |B| of the rows of an epoch, [n, G]; zero where all advantages of a minibatch are equal."""
    counts = epoch.counts[:, None]
    deviation = advantages - (np.add.reduceat(advantages, epoch.starts) / counts)[epoch.owner]
    spreads = np.sqrt(np.add.reduceat(deviation**2, epoch.starts) / np.maximum(counts - 1, 1))
    equal = spreads <= _ROUNDING * np.maximum.reduceat(np.abs(advantages), epoch.starts)
    factor = np.where(equal, 0.0, 1.0 / (counts * (spreads + SB3_EPSILON)))
    scaled: Numbers = deviation * factor[epoch.owner]
    return scaled


def spread(raw: Numbers) -> float:
    """Return the standard deviation of advantages (ddof 1); exactly 0 where only rounding sets them apart."""
    deviation = float(np.std(raw, ddof=1)) if len(raw) > 1 else 0.0
    return deviation if deviation > _ROUNDING * float(np.abs(raw).max(initial=0.0)) else 0.0
