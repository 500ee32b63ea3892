"""What agents learned: how the episodes of each window of a training ended, and what they were paid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from .errors import RunFolderError
from .files.store import RunFolder, read_table, write_table
from .schema import BANK_LEARNING, LEARNING

_COLUMNS = ("episode", "reward", "outcome")


def training_outcomes(folder: RunFolder, seed: int) -> pa.Table:
    """Return how the episodes of a recorded training ended, by window (`LEARNING`): as kept, else read off its windows.

    Raises:
        RunFolderError: a window is missing or damaged.
    """
    path = learning_path(folder, seed)
    return read_table(path) if path.exists() else _read_off(folder, seed)


def keep_training_outcomes(folder: RunFolder, seed: int) -> None:
    """Keep `training_outcomes`, so that they are computed once."""
    if not (path := learning_path(folder, seed)).exists():
        write_table(path, _read_off(folder, seed))


def bank_outcomes(folder: RunFolder, set_name: str) -> pa.Table:
    """Return how the episodes of the bank's trainings ended (`BANK_LEARNING`); no rows where that was not kept."""
    path = folder.bank_path(set_name, "learning")
    return read_table(path) if path.exists() else BANK_LEARNING.empty_table()


def learning_path(folder: RunFolder, seed: int) -> Path:
    """Return where `training_outcomes` are kept."""
    return folder.parts_folder("learning", "training") / f"seed={seed}.parquet"


def _read_off(folder: RunFolder, seed: int) -> pa.Table:
    going: dict[int, float] = {}  # returns of episodes that go on in the next window
    records: list[tuple[int, int, str, int, float]] = []
    for window in range(folder.window_count(seed)):
        table = read_table(folder.transitions_path(seed, window), _COLUMNS)
        numbers, place = np.unique(table["episode"].to_numpy(), return_inverse=True)
        totals = np.bincount(place, table["reward"].to_numpy())
        returns = {int(n): going.pop(int(n), 0.0) + float(x) for n, x in zip(numbers, totals, strict=True)}
        ends: dict[str, list[float]] = {}
        rows = np.flatnonzero(table["outcome"].is_valid().to_numpy())
        for row, outcome in zip(rows, table["outcome"].drop_null().to_pylist(), strict=True):
            episode = int(numbers[place[row]])
            if episode not in returns:
                raise RunFolderError(
                    f"{folder.transitions_path(seed, window)} was not written by aitia: episode {episode} ends twice "
                    "in it, expected one outcome an episode"
                )
            ends.setdefault(outcome, []).append(returns.pop(episode))
        going |= returns
        records += [(seed, window, outcome, len(paid), sum(paid)) for outcome, paid in sorted(ends.items())]
    return _table(records, LEARNING)


def _table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in rows], schema=schema)


def learning_rows(member: str, counts: dict[str, list[int]]) -> pa.Table:
    """Return how the episodes of one training of the bank ended.

    Args:
        member: its name.
        counts: by outcome, the number of episodes that ended so in each window.

    Raises:
        RunFolderError: the outcomes do not have the same number of windows.
    """
    if len({len(numbers) for numbers in counts.values()}) > 1:
        lengths = {name: len(numbers) for name, numbers in counts.items()}
        raise RunFolderError(
            f"training outcomes of {member}: expected one number a window of each, {lengths} was found"
        )
    rows = [
        (member, window, outcome, number)
        for outcome, numbers in sorted(counts.items())
        for window, number in enumerate(numbers)
        if number
    ]
    return _table(rows, BANK_LEARNING)
