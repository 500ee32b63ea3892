"""The distinct rows of a window: transitions with the same observation and action have the same gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.arrays import Array
from ..actors.inputs import OBSERVATION_ALONE, PolicyInputs
from ..shapes import distinct_rows, require_rows


@dataclass(frozen=True)
class WindowRows:
    """What scores need of a window: its distinct (observation, action) rows.

    Attributes:
        observations: [U, ...] distinct rows.
        actions: [U] or [U, K].
        counts: [U], how often each occurs.
        row: int64 [N], the distinct row of each transition.
        inputs: what the policy took in addition to the observations.

    Raises:
        InputError: arrays of another length than U.
    """

    observations: Array
    actions: Array
    counts: NDArray[np.int64]
    row: NDArray[np.int64]
    inputs: PolicyInputs = OBSERVATION_ALONE

    def __post_init__(self) -> None:
        require_rows("WindowRows", len(self.counts), observations=self.observations, actions=self.actions)
        self.inputs.require_rows("WindowRows", len(self.counts))

    @staticmethod
    def of(observations: Array, actions: Array, inputs: PolicyInputs = OBSERVATION_ALONE) -> WindowRows:
        """Collapse the transitions of a window, observations [N, ...] and actions [N] or [N, K].

        With a history no two transitions are the same, and none is left out.
        """
        if inputs.history is not None:
            every = np.arange(len(actions))
            return WindowRows(observations, actions, np.ones_like(every), every, inputs)
        parts = [observations, actions, *([] if inputs.mask is None else [inputs.mask])]
        first, row, counts = distinct_rows(parts)
        return WindowRows(observations[first], actions[first], counts, row, inputs.rows(first))
