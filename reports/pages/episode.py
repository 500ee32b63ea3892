"""A failing episode as a table of its steps: what can be shown of it where nothing was drawn.

Everything is read from the steps of an evaluation. Steps that look alike fold into one line; text that an environment
drew itself with (`render_mode="ansi"`) stands next to its step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from ...attribution.targets.steps import decisive_steps
from ...datasets.arrays import Array, array_format, decode_actions, decode_arrays, fields, row_bytes
from ...datasets.errors import RunFolderError
from ...datasets.schema import metadata_of
from ...training.environments.spaces import action_text

MOST_COLUMNS = 8  # actions with a column of their own
MOST_LINES = 200  # at both ends of an episode; and as many at most of decisive steps between, with their neighbours
_MOST_NUMBERS = 12
_MOST_TEXT = 4000
_SMALL = 0.01
_STYLE = re.compile(r"\x1b\[([0-9;]*)m")
_FOREGROUND, _BACKGROUND, _UNDERLINE = 39, 49, 59  # SGR codes that end a colour
_ENDED_BY = {
    **dict.fromkeys([*range(30, 39), *range(90, 98)], _FOREGROUND),
    **dict.fromkeys([*range(40, 49), *range(100, 108)], _BACKGROUND),
    58: _UNDERLINE, 1: 22, 2: 22, 3: 23, 20: 23, 4: 24, 21: 24, 5: 25, 6: 25, 7: 27, 8: 28, 9: 29,
}  # fmt: skip
_ARGUMENTS = {5: 1, 2: 3}  # how many numbers name a colour after 38, 48 or 58: `38;5;n`, `38;2;r;g;b`
_ESCAPE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|.)?", re.S)


@dataclass(frozen=True)
class Piece:
    """A piece of text that an environment drew; `marked` where it was set off by colour."""

    text: str
    marked: bool


@dataclass(frozen=True)
class StepLine:
    """One line of the table: a step, or several in a row that look alike.

    Attributes:
        first, last: steps of the episode, counted from 0.
        action: its name, or its numbers.
        probabilities: of every action, in the order of the actions; empty where an action is no single choice.
        log_prob: log pi(a|s) of the action taken.
        value, reward: V(s), and the reward paid for the step; None: not kept by an earlier version.
        observation: what was observed, in short.
        decisive: whether a misbehaving action was taken where a desired one was there.
        taken: the place of the action among the probabilities; None where there are none.
        drawn: what the environment drew of the state, as text.
    """

    first: int
    last: int
    action: str
    probabilities: tuple[float, ...]
    log_prob: float
    value: float
    reward: float | None
    observation: str
    decisive: bool = False
    taken: int | None = None
    drawn: tuple[Piece, ...] = ()


@dataclass(frozen=True)
class EpisodeTable:
    """The steps of an episode.

    Attributes:
        actions: names of the actions, of those that `probabilities` are of; empty where there are none.
        lines: in their order; of very many both ends, and decisive steps with their neighbours.
        decisive_left_out: decisive steps that no line shows.
        complete: whether rewards and probabilities were kept (earlier versions did not).
        end: what the environment drew of the state in which the episode ended.
    """

    actions: tuple[str, ...]
    lines: tuple[StepLine, ...]
    decisive_left_out: int = 0
    complete: bool = True
    end: tuple[Piece, ...] = field(default=())

    @property
    def columns(self) -> tuple[str, ...]:
        """The actions that get a column each; none where they are too many."""
        return self.actions if len(self.actions) <= MOST_COLUMNS else ()

    @property
    def left_out(self) -> tuple[int, ...]:
        """How many steps were left out before each line."""
        before = [-1, *(line.last for line in self.lines)]
        return tuple(line.first - last - 1 for line, last in zip(self.lines, before, strict=False))

    def likely(self, line: StepLine) -> str:
        """Return the probabilities of a line in words: those of 1% or more, and what is left."""
        order = sorted(range(len(self.actions)), key=lambda i: -line.probabilities[i])
        shown = [i for i in order if line.probabilities[i] >= _SMALL or i == line.taken]
        rest = len(order) - len(shown)
        words = [f"{self.actions[i]} {line.probabilities[i]:.0%}" for i in shown]
        return ", ".join([*words, *([f"{rest} other{'s' if rest > 1 else ''} under {_SMALL:.0%}"] if rest else [])])


def episode_table(
    steps: pa.Table,
    name_of: Callable[[str], str],
    drawn: Mapping[int, str] | None = None,
    most: int = MOST_LINES,
) -> EpisodeTable:
    """Return the table of an episode.

    Args:
        steps: its rows of the steps table, T of them in their order, with the schema metadata.
        name_of: gives an action (`action_text`) its name.
        drawn: text that the environment drew, by the step that began in it (T: the last state); None: it draws none.
        most: lines that are shown of both ends; of decisive steps between them as many at most.

    Raises:
        RunFolderError: a step has no value, or not as many probabilities as the others.
    """
    texts, actions = drawn or {}, decode_actions(steps)
    observations = decode_arrays(steps["observation"], array_format(steps.schema, "observation"))
    columns = {name: steps[name].to_pylist() for name in ("log_prob", "value", "reward", "probabilities")
               if name in steps.column_names}  # fmt: skip
    missing = [None] * steps.num_rows
    rewards, pi = (columns.get(name, missing) for name in ("reward", "probabilities"))
    whole = all(isinstance(x, float) for name in ("log_prob", "value") for x in columns[name])
    if not whole or len({len(x or ()) for x in pi}) > 1 or any(None in x for x in pi if x is not None):
        raise RunFolderError("the steps of an episode are damaged: values, log pi or probabilities are missing")
    decisive = decisive_steps(_labels(steps), actions)
    looks = row_bytes(observations)
    single = not np.ndim(actions[0]) if len(actions) else False
    lines: list[StepLine] = []
    before: tuple[Any, ...] | None = None
    for t in range(steps.num_rows):
        line = StepLine(
            t, t, name_of(action_text(actions[t])), tuple(pi[t] or ()), columns["log_prob"][t], columns["value"][t],
            rewards[t], in_short(observations, t), bool(decisive[t]), int(actions[t]) if pi[t] and single else None,
            pieces(texts.get(t, "")),
        )  # fmt: skip
        look = (
            looks[t].tobytes(), line.action, line.drawn, line.decisive, line.reward, f"{line.value:.3g}",
            f"{line.log_prob:.3g}", *(f"{p:.0%}" for p in line.probabilities),
        )  # fmt: skip
        if look == before:
            lines[-1] = StepLine(**{**vars(lines[-1]), "last": t})
        else:
            lines.append(line)
        before = look
    shown = [lines[i] for i in _shown(lines, most)]
    hidden = int(decisive.sum()) - sum(line.last - line.first + 1 for line in shown if line.decisive)
    names = tuple(name_of(str(i)) for i in range(len(lines[0].probabilities))) if lines else ()
    complete = all(value is not None for value in rewards)
    return EpisodeTable(names, tuple(shown), hidden, complete, pieces(texts.get(steps.num_rows, "")))


def _shown(lines: Sequence[StepLine], most: int) -> list[int]:
    """Return which lines are shown: both ends, and between them decisive ones with their neighbours."""
    if len(lines) <= most:
        return list(range(len(lines)))
    end = len(lines) - (most - most // 2)
    between = range(most // 2, end)
    near = [i for i in between if any(line.decisive for line in lines[max(i - 1, 0) : i + 2])]
    return [*range(most // 2), *near[:most], *range(end, len(lines))]


def _labels(steps: pa.Table) -> np.ndarray[Any, np.dtype[np.int8]]:
    """Return the action labels [T, A] of an episode; no columns without labels."""
    column, actions = steps["action_labels"], int(metadata_of(steps.schema).get("actions", "0"))
    if column.null_count or not actions:
        return np.zeros((steps.num_rows, 0), dtype=np.int8)
    return np.array(column.to_pylist(), dtype=np.int8).reshape(steps.num_rows, actions)


def in_short(observations: Array, t: int) -> str:
    """Return an observation in a few words: a number, a short vector rounded, of others what changed.

    Args:
        observations: of the episode, [T, ...]; structured for a dictionary.
        t: which.
    """
    parts = fields(observations)
    if parts is not None:
        return "; ".join(f"{name}: {in_short(values, t)}" for name, values in parts.items())
    now = np.asarray(observations[t])
    if now.size == 1:
        return f"{now.item():.4g}"
    if now.ndim <= 1 and now.size <= _MOST_NUMBERS:
        return "[" + ", ".join(f"{number:.3g}" for number in now.astype(np.float64).reshape(-1)) + "]"
    ones = np.flatnonzero(now)
    if now.ndim == 1 and len(ones) == 1 and now.reshape(-1)[ones[0]] == 1:
        return f"one-hot, {ones[0]} of {now.size}"
    size = "×".join(map(str, now.shape))
    what = f"image {size}" if now.ndim == 3 and now.dtype == np.uint8 else f"{size} numbers"
    if t == 0:
        return f"{what}, {len(ones)} not 0"
    return f"{what}, {np.count_nonzero(now != observations[t - 1])} changed"


def pieces(text: str) -> tuple[Piece, ...]:
    """Return text that an environment drew for a terminal: what colour sets off is marked, nothing else is obeyed."""
    parts: list[Piece] = []
    on: set[int] = set()
    room = _MOST_TEXT
    for position, part in enumerate(_STYLE.split(text)):
        if position % 2:
            on = _style(on, part)
            continue
        plain = "".join(c for c in _ESCAPE.sub("", part) if c == "\n" or c.isprintable())
        if plain[:room]:
            parts.append(Piece(plain[:room], bool(on)))
        room -= len(plain)
        if room < 0:
            return (*parts, Piece(" …", False))
    return tuple(parts)


def _style(on: set[int], codes: str) -> set[int]:
    """Return what is set off after a style sequence (SGR: `31;1`), each by the code that ends it; 0 ends all."""
    on, numbers = set(on), iter([int(number[-3:]) if number else 0 for number in codes.split(";")])
    for number in numbers:
        if number == 0:
            on.clear()
        elif number in _ENDED_BY:
            on.add(_ENDED_BY[number])
            if number in (38, 48, 58):
                for _ in range(_ARGUMENTS.get(next(numbers, 0), 0)):
                    next(numbers, None)
        else:
            on.discard(number)
    return on
