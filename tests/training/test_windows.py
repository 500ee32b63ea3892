"""The window writer: records that do not fit each other are refused when made, and files are whole or absent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aitia.datasets.errors import AitiaError, InputError
from aitia.datasets.files.remote import remove_folder
from aitia.datasets.files.store import RunFolder, read_table
from aitia.datasets.schema import metadata_of
from aitia.training.environments.contract import Told
from aitia.training.recording.provenance import EarlierTraining
from aitia.training.recording.window import Collected, Learned, Step
from aitia.training.recording.writer import WindowWriter

NOTHING = Told(None, None, None, None, None, None)


def make_step(envs: int = 2, ended: Any = None, last: Any = None, **changes: Any) -> Step:
    over = np.zeros(envs, bool) if ended is None else np.array(ended)
    values = {"truncated": np.zeros(envs, bool), "reported": [NOTHING] * envs, "scale": np.ones(envs), **changes}
    return Step(np.zeros(envs, np.float32), over, last=last or {}, **values)


def make_window(steps: int = 3, envs: int = 2, **changes: Any) -> Collected:
    values: dict[str, Any] = {
        "observations": np.arange(steps * envs, dtype=np.float32).reshape(steps, envs, 1),
        "actions": np.zeros((steps, envs), np.int64), "following": np.zeros((envs, 1), np.float32), **changes,
    }  # fmt: skip
    return Collected([make_step(envs) for _ in range(steps)], **values)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_step(ended=[True]), r"`ended` of a step: .*\[1\], expected \[2\]"),
        (lambda: make_step(scale=np.ones(3)), r"`scale` of a step: .*\[3\], expected \[2\]"),
        (lambda: make_step(reported=[NOTHING]), "1 infos, expected 2"),
        (lambda: make_window(actions=np.zeros((2, 3), int)), r"actions: .*\[2, 3\], expected \[3, 2\]"),
        (lambda: make_window(observations=np.zeros((6, 1))), r"observations: .*\[6, 1\], expected \[3, 2\]"),
        (lambda: make_window(observations={"x": np.zeros((3, 1))}), r"observations: .*\[3, 1\], expected \[3, 2\]"),
    ],
)
def test_a_record_whose_arrays_do_not_fit_names_both_shapes(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_what_a_data_set_does_not_know_is_null_and_has_no_checkpoints(tmp_path: Path) -> None:
    writer = WindowWriter(tmp_path, 3)
    writer.begin(2, EarlierTraining())
    writer.write(make_window(), Learned(), None)
    assert not RunFolder(tmp_path).transitions_folder(3).exists(), "visible before it is whole"
    writer.publish(None)
    table = read_table(RunFolder(tmp_path).transitions_path(3, 0))
    assert all(table[name].null_count == 6 for name in ("value", "log_prob", "advantage", "return"))
    assert "gamma" not in metadata_of(table.schema)
    assert not RunFolder(tmp_path).checkpoints_folder(3).exists() and not list((tmp_path / ".parts/train").iterdir())


def test_episodes_go_on_over_windows_and_their_last_observations_are_kept(tmp_path: Path) -> None:
    writer = WindowWriter(tmp_path, 0)
    writer.begin(1, EarlierTraining())
    for last in (0.5, 0.75):
        steps = [make_step(1), make_step(1, ended=[True], last={0: np.array([last])}), make_step(1)]
        window = Collected(steps, np.zeros((3, 1, 1)), np.zeros((3, 1), int), np.array([[last + 1.0]]))
        writer.write(window, Learned(), None)
    writer.publish(None)
    tables = [read_table(RunFolder(tmp_path).transitions_path(0, window)) for window in range(2)]
    assert [table["episode"].to_pylist() for table in tables] == [[0, 0, 1], [1, 1, 2]]
    assert [table["t"].to_pylist() for table in tables] == [[0, 1, 0], [1, 2, 0]]
    following = [
        value and np.frombuffer(value)[0] for table in tables for value in table["next_observation"].to_pylist()
    ]
    assert following == [None, 0.5, 1.5, None, 0.75, 1.75]


def test_a_recording_whose_files_somebody_removed_is_given_up(tmp_path: Path) -> None:
    writer = WindowWriter(tmp_path, 0)
    writer.begin(2, EarlierTraining())
    for left in (tmp_path / ".parts/train").glob("seed=0-????????"):
        remove_folder(left)
    with pytest.raises(AitiaError, match="was removed while seed 0 was training"):
        writer.write(make_window(), Learned(), None)
    writer.discard()
