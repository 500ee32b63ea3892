"""What a policy is given beside the observation of a state: allowed actions, and what came before in the episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ...datasets.arrays import array_format, decode_arrays
from ...datasets.errors import InputError


@dataclass(frozen=True)
class History:
    """How N states follow each other.

    An LSTM's state means nothing to another network than the one that made it, so what came before is kept as
    observations: the states that come in are computed from them, with the parameters that are asked.

    Attributes:
        first: bool [N], states that follow no other one of the N; any other follows the one before it.
        states: float32 [N, 4, layers, H], LSTM states that came in at the first ones (training/agents/memory.py); None:
            zero.
    """

    first: NDArray[np.bool_]
    states: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Given:
    """What a policy is given of N states beside their observations.

    Attributes:
        mask: bool [N, A], allowed actions (training/environments/masks.py); None: all are.
        history: for recurrent policies; None: not known.
    """

    mask: NDArray[np.bool_] | None = None
    history: History | None = None

    def rows(self, chosen: NDArray[np.int64]) -> Given:
        """Return what is given of some of the states, in any order: nothing of what came before."""
        return Given(None if self.mask is None else self.mask[chosen])

    def whole_episodes(self, chosen: NDArray[np.bool_]) -> Given:
        """Return what is given of some of the states, of which each that follows another comes with it."""
        history = self.history
        if history is not None:
            history = History(history.first[chosen], None if history.states is None else history.states[chosen])
        return Given(self.rows(np.flatnonzero(chosen)).mask, history)


NOTHING_BESIDE = Given()
COLUMNS = ("action_mask", "lstm_state")


def given_of_window(table: pa.Table) -> Given:
    """Return what a policy was given beside the observations of a window's transitions (with `step` and `t`)."""
    mask = _mask(table)
    if "lstm_state" not in table.column_names:
        return Given(mask)
    form = array_format(table.schema, "lstm_state")
    column = table["lstm_state"].combine_chunks().fill_null(bytes(form.width)).cast(pa.binary(form.width))
    first = (table["step"].to_numpy() == 0) | (table["t"].to_numpy() == 0)
    return Given(mask, History(first, decode_arrays(column, form)))


def given_of_episodes(table: pa.Table, episode: NDArray[np.int64]) -> Given:
    """Return what a policy was given beside the observations of whole episodes, one after the other."""
    return Given(_mask(table), History(np.diff(episode, prepend=-1) != 0))


def _mask(table: pa.Table) -> NDArray[np.bool_] | None:
    if "action_mask" not in table.column_names:
        return None
    return decode_arrays(table["action_mask"], array_format(table.schema, "action_mask"))


def incoming_states(lstm: nn.LSTM, features: Tensor, history: History | None, part: slice) -> Tensor:
    """Return the states that come in at each of N rows, [N, 2, layers, H], without a gradient.

    Args:
        lstm: the actor's or the critic's.
        features: its inputs at the rows, [N, I].
        history: how the rows follow each other.
        part: which of the recorded states are the LSTM's.

    Raises:
        InputError: the history is not known.
    """
    if history is None:
        raise InputError("a recurrent policy was asked about single states; expected what came before in the episode")
    found = features.new_zeros(len(features), 2, lstm.num_layers, lstm.hidden_size)
    begins = np.flatnonzero(history.first)
    if history.states is not None:
        found[begins] = torch.as_tensor(history.states[begins][:, part], dtype=features.dtype)
    lengths = np.diff(begins, append=len(features))
    with torch.no_grad():
        for step in range(int(lengths.max(initial=1)) - 1):
            rows = torch.as_tensor(begins[lengths > step + 1] + step)
            hidden, cell = found[rows].permute(1, 2, 0, 3).contiguous()
            _, after = lstm(features[rows][None], (hidden, cell))
            found[rows + 1] = torch.stack(after).permute(2, 0, 1, 3)
    return found


class Gates(NamedTuple):
    """One layer of an LSTM at N rows: its gates before their nonlinearities are linear in the inputs.

    Attributes:
        inputs: what comes in, the hidden state, and a column of ones for each bias, [N, I + H (+ 2)].
        gates: [N, 4 H].
    """

    inputs: Tensor
    gates: Tensor


def lstm_step(lstm: nn.LSTM, features: Tensor, states: Tensor) -> tuple[Tensor, list[Gates]]:
    r"""Return the output of one step of an LSTM, [N, H], and the gates of each layer.

    .. math::
        (i, f, g, o) &= W_{ih} x + b_{ih} + W_{hh} h + b_{hh} \\
        c' &= \sigma(f) c + \sigma(i) \tanh(g), \quad h' = \sigma(o) \tanh(c')

    Hochreiter and Schmidhuber 1997, as torch has it.

    Args:
        lstm: its own weights are used.
        features: x [N, I].
        states: h and c that come in, [N, 2, layers, H].
    """
    layers = []
    names = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if lstm.bias else ()))
    ones = features.new_ones(len(features), len(names) - 2)
    for layer in range(lstm.num_layers):
        by_input, by_hidden, *biases = (getattr(lstm, f"{name}_l{layer}") for name in names)
        hidden, cell = states[:, 0, layer], states[:, 1, layer]
        gates: Tensor = features @ by_input.mT + hidden @ by_hidden.mT + sum(biases)
        layers.append(Gates(torch.cat([features, hidden, ones], dim=1), gates))
        enter, forget, new, leave = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        features = torch.sigmoid(leave) * torch.tanh(cell)
    return features, layers
