"""Influence over training time: the effects of each window's rewards on failures, in few stretches of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..statistics import Interval, mean_half_width

MOST_STRETCHES = 60


class Stretch(NamedTuple):
    """Windows `first` to `last` of training, and the summed effect of their rewards, with its interval over seeds."""

    first: int
    last: int
    effect: Interval


class Timeline:
    """Effects of windows on failures, summed over stretches of equal length.

    Args:
        rows: rows of `influence/SET/windows.parquet` of one estimator.
    """

    def __init__(self, rows: pa.Table) -> None:
        failure = rows["failure"].combine_chunks().cast(pa.string()).dictionary_encode()
        window, seed = rows["window"].to_numpy(), rows["seed"].to_numpy()
        self._failures = {name: index for index, name in enumerate(failure.dictionary.to_pylist())}
        self._windows = int(window.max()) + 1 if len(window) else 0
        self._length = max(1, -(-self._windows // MOST_STRETCHES))
        seeds, which = np.unique(seed, return_inverse=True)
        shape = (len(self._failures), len(seeds), -(-self._windows // self._length))
        place = np.ravel_multi_index((failure.indices.to_numpy(), which, window // self._length), shape)
        total = np.bincount(place, rows["effect"].to_numpy(), int(np.prod(shape)))
        self._effects: NDArray[np.float64] = total.reshape(shape).astype(np.float64)

    def of(self, failures: Sequence[str]) -> list[Stretch]:
        """Return the stretches, means over failures (those without rows are left out) and seeds.

        Empty where no window has an effect: no reward is wrong, or none is known to be.
        """
        chosen = [self._failures[name] for name in failures if name in self._failures]
        by_seed = self._effects[chosen].mean(axis=0) if chosen else np.zeros((0, 0))
        if not by_seed.any():
            return []
        mean, half = by_seed.mean(axis=0), mean_half_width(len(by_seed))
        error = by_seed.std(axis=0, ddof=1) / np.sqrt(len(by_seed)) if half is not None else np.zeros_like(mean)
        return [
            Stretch(
                i * self._length,
                min((i + 1) * self._length, self._windows) - 1,
                Interval(value, None, None) if half is None else Interval(value, value - half * e, value + half * e),
            )
            for i, (value, e) in enumerate(zip(mean.tolist(), error.tolist(), strict=True))
        ]
