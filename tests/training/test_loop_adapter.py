"""A loop's policy that is refused is told eight lines that make it accepted, and these lines do."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toy_environments import Corridor

from aitia.datasets.errors import InputError
from aitia.datasets.files.store import RunFolder, read_table
from aitia.training.recording.agreement import ADAPTER
from aitia.training.recording.loop import LoopRecorder

DOCS = Path(__file__).parents[2] / "docs"


class _ActorCritic(nn.Module):
    """As many scripts have it: one trunk, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.actor, self.critic = nn.Linear(2, 8), nn.Linear(8, 2), nn.Linear(8, 1)

    def forward(self, observations: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.trunk(observations))
        return self.actor(hidden), self.critic(hidden)


def _lines_told(module: nn.Module, out: Path) -> str:
    with pytest.raises(InputError) as refused:
        LoopRecorder(out, policy=module)
    told = re.search(r"^class .*", str(refused.value), re.DOTALL | re.MULTILINE)
    assert told is not None, "the message shows no code"
    return told[0]


def test_the_eight_lines_of_the_message_make_a_refused_module_recordable(tmp_path: Path) -> None:
    module = _ActorCritic()
    lines = _lines_told(module, tmp_path)
    assert len([line for line in lines.splitlines() if line]) == 8
    namespace: dict[str, Any] = {"torch": torch}
    exec(lines, namespace)
    policy, env = namespace["Recorded"](module), Corridor(intended_error=0.5)
    with LoopRecorder(tmp_path, policy=policy, gamma=0.9) as recorder:
        observation, _ = env.reset(seed=0)
        for _ in range(12):
            seen = torch.as_tensor(observation)[None]
            with torch.no_grad():
                action = torch.distributions.Categorical(logits=module(seen)[0]).sample()
                log_prob, value = policy.log_prob(seen, action)[0], policy.value(seen)[0]
            after, reward, terminated, truncated, info = env.step(int(action))
            recorder.step(
                observation, int(action), reward, terminated, truncated, info, after, log_prob=log_prob, value=value
            )
            observation = env.reset()[0] if terminated or truncated else after
        recorder.update()
    table = read_table(RunFolder(tmp_path).transitions_path(0, 0))
    assert table.num_rows == 12 and table["value"].null_count == 0
    assert np.isfinite(table["advantage"].to_numpy()).all()


def test_the_page_shows_the_lines_of_the_message() -> None:
    assert ADAPTER in (DOCS / "recording.md").read_text()


def test_a_module_without_values_is_told_the_lines_where_they_are_needed(tmp_path: Path) -> None:
    class OnlyProbabilities(nn.Module):
        def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
            return torch.full((len(actions),), -0.5)

    with (
        pytest.raises(InputError, match=r"has no method value\(observations\)") as refused,
        LoopRecorder(tmp_path, policy=OnlyProbabilities()) as recorder,
    ):
        recorder.step([0.5, 1.0], 1, 0.0, False, False, {}, [0.75, 1.0], log_prob=-0.5, value=0.0)
        recorder.update()
    assert ADAPTER in str(refused.value)
