"""What training paid, summed by group, on windows made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from aitia.datasets.errors import RunFolderError
from aitia.datasets.files.store import RunFolder, write_table, write_tensors
from aitia.datasets.rewards import corrections, intended_known, return_range, reward_summary


def write_windows(folder: RunFolder, intended: bool = True) -> None:
    """Two windows; episode 1 crosses them; group `a` pays 1 for nothing once in each window."""
    rows = [
        # episode, t, reward, intended, context
        [(0, 0, 0.0, 0.0, "b"), (0, 1, 1.0, 1.0, "b"), (1, 0, 1.0, 0.0, "a"), (1, 1, 0.0, 0.0, "a")],
        [
            (1, 2, 1.0, 0.0, "a"),
            (2, 0, 0.0, 2.5, "a"),
            (2, 1, 3.0, 3.0 + 1e-12, "a"),
            (3, 0, -4.0, -4.0, "b"),
        ],
    ]
    for window, values in enumerate(rows):
        episode, t, reward, right, context = zip(*values, strict=True)
        right_column = pa.array(right if intended else [None] * 4, pa.float64())
        table = pa.table(
            {
                "episode": episode,
                "t": t,
                "reward": reward,
                "intended_reward": right_column,
                "context": context,
            }
        )
        write_table(folder.transitions_path(0, window), table)
        write_tensors(folder.checkpoint_path(0, window), {"w": torch.zeros(1)}, {})
    write_tensors(folder.final_path(0), {"w": torch.zeros(1)}, {"windows": "2"})


def test_groups_are_counted_over_windows(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_windows(folder)
    summary = reward_summary(folder, 0)
    a, b = summary.to_pylist()
    assert (a["group"], a["transitions"], a["reward_events"], a["episodes"]) == ("a", 5, 4, 2)
    assert (a["wrong_transitions"], a["wrong_events"], a["wrong_episodes"]) == (3, 3, 2), "episode 1 counts once"
    assert (a["error"], a["largest_error"]) == (4.5, 2.5)
    assert (b["wrong_transitions"], b["wrong_episodes"], b["error"], b["episodes"]) == (0, 0, 0.0, 2)
    assert return_range([summary]) == 7.0 and intended_known([summary])


def test_an_unknown_intended_reward_is_not_a_right_one(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_windows(folder, intended=False)
    summary = reward_summary(folder, 0)
    assert not intended_known([summary]) and summary["wrong_transitions"].to_pylist() == [0, 0]


def test_a_missing_window_is_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_windows(folder)
    folder.transitions_path(0, 1).unlink()
    with pytest.raises(RunFolderError, match=r"window=00001\.parquet is missing"):
        reward_summary(folder, 0)


def test_corrections_are_exactly_zero_where_rewards_agree() -> None:
    change = corrections(np.array([1.0, 1.0, 0.0]), np.array([1.0 + 1e-10, 0.0, np.nan]))
    assert change.tolist() == [0.0, -1.0, 0.0]
