"""An off-policy training as it was recorded: all its transitions, and what each window's updates drew of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...datasets.arrays import Array, array_format, decode_actions, decode_arrays
from ...datasets.errors import RunFolderError
from ...datasets.files.store import RunFolder, read_table
from ...datasets.rewards import missing_file
from ...datasets.schema import metadata_of

Ints = NDArray[np.int64]
_KEYS = ("seed", "window", "env", "step", "episode", "reward", "intended_reward", "context")


@dataclass(frozen=True)
class Draws:
    """What the updates of one window drew; one entry a target, [M].

    Attributes:
        row: its transition, a row of the record.
        count: rewards in the target (n_k).
        times: how often it was drawn (c_k).
    """

    row: Ints
    count: Ints
    times: Ints

    def take(self, chosen: NDArray[np.bool_]) -> Draws:
        """Return some of them."""
        return Draws(self.row[chosen], self.count[chosen], self.times[chosen])


@dataclass(frozen=True)
class Record:
    """All transitions of one training, environment by environment, each in time order: [N].

    Attributes:
        folder, seed: where they were read from.
        table: their keys and rewards (`seed, window, env, step, episode, reward, intended_reward, context`).
        observations: [N, ...].
        actions: [N] or [N, K], as the Q-network takes them.
        ended: bool [N], no value follows in a target that ends here.
        gamma: discount factor.
        starts: [W + 1], vector steps before each window.
        known, following: rows [L] in ascending order, and what was observed after them [L, ...], where the next row
            does not hold it.
    """

    folder: RunFolder
    seed: int
    table: pa.Table
    observations: Array
    actions: Array
    ended: NDArray[np.bool_]
    gamma: float
    starts: Ints
    known: Ints
    following: Array

    @property
    def windows(self) -> int:
        """W."""
        return len(self.starts) - 1

    def next_observations(self, rows: Ints) -> Array:
        """Return what was observed after some rows."""
        after = self.observations[np.minimum(rows + 1, len(self.observations) - 1)]
        place = np.minimum(np.searchsorted(self.known, rows), len(self.known) - 1)
        recorded = self.known[place] == rows
        after[recorded] = self.following[place[recorded]]
        return after

    def draws(self, window: int) -> Draws:
        """Return what the updates of one window drew."""
        table = read_table(self.folder.replay_path(self.seed, window))
        collected, env, step, count, times = (
            np.asarray(table[name].to_numpy(), dtype=np.int64) for name in ("collected", "env", "step", "n", "draws")
        )
        return Draws(env * self.starts[-1] + self.starts[collected] + step, count, times)


def read_record(folder: RunFolder, seed: int) -> Record:
    """Read the transitions of an off-policy training (all of them: they must fit into memory).

    Raises:
        RunFolderError: a file is missing or damaged, or the training was on-policy.
    """
    missing = folder.missing_files(seed)
    if missing:
        raise missing_file(missing[0])
    tables = [read_table(folder.transitions_path(seed, window)) for window in range(folder.window_count(seed))]
    metadata = metadata_of(tables[0].schema)
    if not folder.replay_path(seed, 0).exists():
        raise RunFolderError(
            f"{folder.replay_path(seed, 0)} is missing: what the replay buffer drew is expected, which "
            "aitia.training.recording.off_policy.OffPolicyRecorder writes. An on-policy training: `aitia attribute`"
        )
    table = pa.concat_tables([table.select(_KEYS) for table in tables])
    order = np.lexsort((table["step"].to_numpy(), table["window"].to_numpy(), table["env"].to_numpy()))
    form = array_format(tables[0].schema, "observation")

    def column(name: str) -> pa.ChunkedArray:
        return pa.chunked_array([chunk for table in tables for chunk in table[name].chunks])

    next_ones = column("next_observation").take(pa.array(order))
    known = np.flatnonzero(~next_ones.is_null().to_numpy())
    ended = column("terminated").to_numpy()
    if metadata["bootstraps_time_limits"] != "true":
        ended = ended | column("truncated").to_numpy()
    steps = [table.num_rows // int(metadata["n_envs"]) for table in tables]
    return Record(
        folder, seed, table.take(pa.array(order)),
        observations=np.concatenate([decode_arrays(t["observation"], form) for t in tables])[order],
        actions=np.concatenate([decode_actions(t) for t in tables])[order],
        ended=np.asarray(ended[order], dtype=np.bool_),
        gamma=float(metadata["gamma"]),
        starts=np.concatenate([[0], np.cumsum(steps)]),
        known=known,
        following=decode_arrays(next_ones.drop_null().cast(pa.binary(form.width)), form),
    )  # fmt: skip
