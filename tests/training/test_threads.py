"""Threads: a recorder says once that torch's threads slow a small policy down, and leaves them alone."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stable_baselines3 import PPO
from torch import nn
from toy_environments import Corridor

from aitia.training import threads
from aitia.training.recorder import Recorder


@pytest.fixture(autouse=True)
def two_threads(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    log = logging.getLogger("aitia")
    monkeypatch.setattr(log, "propagate", False)
    monkeypatch.setattr(log, "handlers", [caplog.handler])  # not those of a command that ran before
    threads._say.cache_clear()
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
    threads._say.cache_clear()


def test_a_recorder_says_it_once_and_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for seed in range(2):
        model = PPO("MlpPolicy", Corridor(), n_steps=16, batch_size=16, n_epochs=1, seed=seed, device="cpu")
        model.learn(16, callback=Recorder(tmp_path, seed=seed))
    hints = [record.getMessage() for record in caplog.records if "threads" in record.getMessage()]
    assert len(hints) == 1 and "2 threads" in hints[0] and "torch.set_num_threads(1)" in hints[0]
    assert torch.get_num_threads() == 2, "the setting is the script's own"


@pytest.mark.parametrize(
    ("policy", "count"),
    [
        (nn.Linear(64, 64), 1),
        (nn.Conv2d(3, 8, 3), 2),
        (nn.Linear(1024, 1024), 2),
        (nn.Linear(64, 64, device="meta"), 2),
        (nn.ReLU(), 2),
        (None, 2),
    ],
)
def test_nothing_is_said_where_threads_may_help(
    policy: nn.Module | None, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    torch.set_num_threads(count)
    threads.hint_at_threads(policy)
    assert not caplog.records
