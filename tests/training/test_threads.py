"""Threads: a recorder says once that torch's threads slow a small policy down, and leaves them alone."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from stable_baselines3 import PPO
from torch import nn
from toy_environments import Corridor

from aitia.training.agents import threads
from aitia.training.recording.recorder import Recorder


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said in a process whose torch has two threads; nothing of other tests' settings reaches it."""
    found: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    log = logging.Logger("aitia, of this test")
    log.addHandler(Kept())
    monkeypatch.setattr(threads, "log", log)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: pytest.fail("the setting is the script's own"))
    threads._say.cache_clear()
    return found


def test_a_recorder_says_it_once_and_changes_nothing(tmp_path: Path, said: list[str]) -> None:
    for seed in range(2):
        model = PPO("MlpPolicy", Corridor(), n_steps=16, batch_size=16, n_epochs=1, seed=seed, device="cpu")
        model.learn(16, callback=Recorder(tmp_path, seed=seed))
    (hint,) = said
    assert "2 threads" in hint and "torch.set_num_threads(1)" in hint


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
    policy: nn.Module | None, count: int, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    threads.hint_at_threads(policy)
    assert not said
