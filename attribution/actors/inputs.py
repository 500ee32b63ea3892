"""What a policy takes in addition to an observation: allowed actions, and what came before in the episode."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...datasets.arrays import array_format, decode_arrays
from ..shapes import require_rows


@dataclass(frozen=True)
class History:
    """How N states follow each other.

    An LSTM's state means nothing to another network than the one that made it, so what came before is kept as
    observations: the states that come in are computed from them, with the parameters that are asked.

    Attributes:
        first: bool [N], states that follow no other one of the N; any other follows the one before it.
        states: float32 [N, 4, layers, H], LSTM states that came in at the first ones (training/agents/memory.py); None:
            zero.

    Raises:
        InputError: states of another number than N.
    """

    first: NDArray[np.bool_]
    states: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        require_rows("History", len(self.first), states=self.states)


@dataclass(frozen=True)
class PolicyInputs:
    """What a policy takes at N states in addition to their observations.

    Attributes:
        mask: bool [N, A], allowed actions (training/environments/actions.py); None: all are.
        history: for recurrent policies; None: not known.
    """

    mask: NDArray[np.bool_] | None = None
    history: History | None = None

    def require_rows(self, record: str, rows: int) -> None:
        """Check that they are of as many states as a record that holds them.

        Raises:
            InputError: they are not; names both numbers.
        """
        require_rows(record, rows, mask=self.mask, history=None if self.history is None else self.history.first)

    def rows(self, chosen: NDArray[np.int64]) -> PolicyInputs:
        """Return the inputs of some of the states, in any order: nothing of what came before."""
        return PolicyInputs(None if self.mask is None else self.mask[chosen])

    def whole_episodes(self, chosen: NDArray[np.bool_]) -> PolicyInputs:
        """Return the inputs of some of the states, of which each that follows another comes with it."""
        history = self.history
        if history is not None:
            history = History(history.first[chosen], None if history.states is None else history.states[chosen])
        return PolicyInputs(self.rows(np.flatnonzero(chosen)).mask, history)


OBSERVATION_ALONE = PolicyInputs()
COLUMNS = ("action_mask", "lstm_state")


def inputs_of_window(table: pa.Table) -> PolicyInputs:
    """Return a policy's further inputs at a window's transitions (a table with `step` and `t`)."""
    mask = _mask(table)
    if "lstm_state" not in table.column_names:
        return PolicyInputs(mask)
    form = array_format(table.schema, "lstm_state")
    column = table["lstm_state"].combine_chunks().fill_null(bytes(form.width)).cast(pa.binary(form.width))
    first = (table["step"].to_numpy() == 0) | (table["t"].to_numpy() == 0)
    return PolicyInputs(mask, History(first, decode_arrays(column, form)))


def inputs_of_episodes(table: pa.Table, episode: NDArray[np.int64]) -> PolicyInputs:
    """Return a policy's further inputs at the steps of whole episodes, one after the other."""
    return PolicyInputs(_mask(table), History(np.diff(episode, prepend=-1) != 0))


def _mask(table: pa.Table) -> NDArray[np.bool_] | None:
    if "action_mask" not in table.column_names:
        return None
    return decode_arrays(table["action_mask"], array_format(table.schema, "action_mask"))
