"""Influence on another device than the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from trained import Trained

from aitia.attribution.estimators.influence import influence
from aitia.attribution.gradients import kernel, systems
from aitia.datasets.errors import InputError

KINDS = [
    ("vector", "discrete", "PPO", "log-odds"), ("image", "box", "PPO", "episode"), ("dict", "multi", "PPO", "value"),
    ("vector", "discrete", "MaskablePPO", "log-odds"), ("vector", "discrete", "RecurrentPPO", "log-odds"),
]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
@pytest.mark.parametrize(("observe", "act", "algorithm", "kind"), KINDS)
@pytest.mark.parametrize("form", ["_low_rank", "_single", "_whole"])
def test_cuda_gives_the_scores_of_the_cpu(
    observe: str, act: str, algorithm: str, kind: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = Trained(tmp_path, observe, act, True, algorithm)
    window, policy, targets = trained.window, trained.policy, trained.targets(kind)
    expected = influence(window, policy, targets).tau
    monkeypatch.setattr(kernel, "DOUBLE_ROWS", 0)
    monkeypatch.setattr(systems, "_MOST_COLUMNS", 1)
    if form != "_low_rank":
        monkeypatch.setattr(kernel, "low_rank", lambda gradients, probe: None)
    monkeypatch.setattr(kernel, "LARGEST_ERROR", -1.0 if form == "_whole" else 1.0)
    found = influence(window, policy, targets, device="cuda").tau
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    assert {parameter.device.type for parameter in policy.parameters()} == {"cpu"}, "the caller's policy was moved"


@pytest.mark.parametrize("device", ["cuda:99", "tpu"])
def test_a_device_that_is_not_there_is_named_with_those_that_are(device: str, tmp_path: Path) -> None:
    trained = Trained(tmp_path, "vector", "discrete", False, "PPO")
    with pytest.raises(InputError, match=f"device {device} was given, expected one that torch has here: cpu"):
        influence(trained.window, trained.policy, trained.targets("log-odds"), device=device)
