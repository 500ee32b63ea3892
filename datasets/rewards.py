"""What training paid: one pass over a seed's transitions, summed for each group, kept as a small table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .errors import RunFolderError
from .files.store import RunFolder, read_table, read_table_schema, write_table
from .groups import BY_CONTEXT, Grouping
from .schema import GROUP_NAMES, metadata_of, with_metadata

WRONG_REWARD = 1e-9  # a training reward is wrong if it differs from the intended one by more than this
_COLUMNS = ("episode", "t", "reward", "intended_reward")
_EARLIER = ("first_timestep", "earlier_updates")  # not 0: the training began before its recording
_COUNTS = (
    "transitions", "reward_events", "episodes", "wrong_transitions", "wrong_events", "wrong_episodes",
)  # fmt: skip


def corrections(reward: NDArray[np.float64], intended: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return dr = r* - r [N], exactly 0 where they agree (or the intended reward is unknown, NaN)."""
    change = np.nan_to_num(intended - reward)  # NaN means "no intended reward", not a damaged number
    return np.where(np.abs(change) > WRONG_REWARD, change, 0.0)


def reward_events(reward: NDArray[np.float64], intended: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return which transitions are reward events [N]: r != 0 or r* != 0 (NaN: not known)."""
    return np.asarray((reward != 0.0) | (np.nan_to_num(intended) != 0.0), dtype=np.bool_)


def editable(reward: NDArray[np.float64], terminated: NDArray[np.bool_], grouping: Grouping) -> NDArray[np.bool_]:
    """Return which transitions an arbitrary edit of their group changes, [N].

    Reward events as paid; where a group is one state and action, also unpaid ends of episodes. What is neither could be
    paid again and again: measured, such edits cost the agents' competence.
    """
    return np.asarray((reward != 0.0) | (terminated & (grouping.name == "transition")), dtype=np.bool_)


def reward_summary(folder: RunFolder, seed: int, grouping: Grouping = BY_CONTEXT) -> pa.Table:
    """Return one row a group of what a seed's training paid; computed once, then read.

    Columns: `seed, group, transitions, reward_events, episodes, wrong_transitions, wrong_events,
    wrong_episodes` (counts), `error` (sum of |dr|), `largest_error`. Metadata: `return_low,
    return_high` (of whole training episodes), `reward_low, reward_high`, `intended_known`, `whole` (recorded from the
    first step).

    Raises:
        RunFolderError: a window is missing or damaged.
    """
    path = reward_sums_path(folder, seed, grouping.name)
    if not path.exists():
        write_table(path, sum_rewards(folder, seed, grouping))
    return read_table(path)


def reward_sums_path(folder: RunFolder, seed: int, grouping: str) -> Path:
    """Return where `reward_summary` keeps what a seed's training paid; `grouping` is the task's `group_by`."""
    return folder.parts_folder("reward_sums", grouping) / f"seed={seed}.parquet"


def sum_rewards(folder: RunFolder, seed: int, grouping: Grouping) -> pa.Table:
    """Return what `reward_summary` does, computed anew and not kept.

    Raises:
        RunFolderError: a window is missing or damaged.
    """
    missing = folder.missing_files(seed)
    if missing:
        raise missing_file(missing[0])
    windows = [folder.transitions_path(seed, w) for w in range(folder.window_count(seed))]
    return _summarise(windows, seed, grouping)


def missing_file(path: Path) -> RunFolderError:
    """Return the error for a file of a finished training that is not there."""
    return RunFolderError(
        f"{path} is missing: every window of a finished training is expected. Run "
        "`aitia train TASK.yaml --out RUN` again; it trains only the seeds that are not whole"
    )


def _summarise(windows: list[Path], seed: int, grouping: Grouping) -> pa.Table:
    groups: dict[str, NDArray[np.float64]] = {}
    returns: dict[int, float] = {}
    wrong_episodes: set[int] = set()
    intended_known, whole = True, True
    extremes: list[float] = []
    for path in windows:
        needed = dict.fromkeys([*_COLUMNS, *grouping.columns(read_table_schema(path).names)])
        table = read_table(path, list(needed))
        whole &= all(metadata_of(table.schema).get(key, "0") == "0" for key in _EARLIER)
        reward = table["reward"].to_numpy()
        known = table["intended_reward"].null_count == 0
        intended_known &= known
        intended = table["intended_reward"].to_numpy() if known else np.full(len(reward), np.nan)
        episode, t = table["episode"].to_numpy(), table["t"].to_numpy()
        names, member = np.unique(grouping.of_table(table), return_inverse=True)
        change = corrections(reward, intended)
        wrong = change != 0.0
        event = reward_events(reward, intended)
        first_wrong = np.zeros(len(reward), dtype=bool)
        mistaken, first = np.unique(episode[wrong], return_index=True)
        new = [number not in wrong_episodes for number in mistaken.tolist()]
        first_wrong[np.flatnonzero(wrong)[first[new]]] = True
        wrong_episodes.update(mistaken.tolist())
        counted = (np.ones(len(reward)), event, t == 0, wrong, wrong & event, first_wrong)
        counts = np.stack([np.bincount(member, values, len(names)) for values in (*counted, np.abs(change))], axis=1)
        largest = np.zeros(len(names))
        np.maximum.at(largest, member, np.abs(change))
        extremes += [float(reward.min()), float(reward.max())]
        for name, row, most in zip(names.tolist(), counts, largest.tolist(), strict=True):
            total = groups.setdefault(name, np.zeros(counts.shape[1] + 1))
            total[:-1] += row
            total[-1] = max(total[-1], most)
        ids, where = np.unique(episode, return_inverse=True)
        for number, value in zip(ids.tolist(), np.bincount(where, reward).tolist(), strict=True):
            returns[number] = returns.get(number, 0.0) + value
    ordered = sorted(groups)
    totals = np.stack([groups[name] for name in ordered])
    columns = {"seed": pa.array(np.full(len(ordered), seed, np.int32)), "group": pa.array(ordered)}
    columns |= {name: pa.array(totals[:, i].astype(np.int64)) for i, name in enumerate(_COUNTS)}
    sums = ("error", "largest_error")
    columns |= {name: pa.array(totals[:, len(_COUNTS) + i]) for i, name in enumerate(sums)}
    metadata = {
        "return_low": repr(min(returns.values())),
        "return_high": repr(max(returns.values())),
        "reward_low": repr(min(extremes)),
        "reward_high": repr(max(extremes)),
        "intended_known": str(intended_known).lower(),
        "whole": str(whole).lower(),
        "group_names": GROUP_NAMES,
    }
    return with_metadata(pa.table(columns), metadata)


def intended_known(summaries: list[pa.Table]) -> bool:
    """Return whether the intended reward of every training transition is known."""
    return all(metadata_of(table.schema)["intended_known"] == "true" for table in summaries)


def recorded_whole(summaries: list[pa.Table]) -> bool:
    """Return whether every training was recorded from its first step."""
    return all(metadata_of(table.schema).get("whole", "true") == "true" for table in summaries)


def reward_bounds(summaries: list[pa.Table]) -> tuple[float, float]:
    """Return the smallest and the largest reward that any seed's training paid."""
    metadata = [metadata_of(table.schema) for table in summaries]
    return min(float(m["reward_low"]) for m in metadata), max(float(m["reward_high"]) for m in metadata)


def return_range(summaries: list[pa.Table]) -> float:
    """Return the range of training returns over all seeds, in units of reward."""
    metadata = [metadata_of(table.schema) for table in summaries]
    return max(float(m["return_high"]) for m in metadata) - min(float(m["return_low"]) for m in metadata)


def wrong_groups(rewards: Sequence[pa.Table]) -> set[str]:
    """Return the groups with a wrong reward in some seed's training."""
    return {
        group
        for table in rewards
        for group, wrong in zip(table["group"].to_pylist(), table["wrong_transitions"].to_pylist(), strict=True)
        if wrong
    }
