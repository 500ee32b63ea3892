"""How fast are agents trained again? The stacked trainer beside Stable-Baselines3, one core, paired runs.

Agent-steps a second on the arrow maze: one agent of SB3 (DummyVecEnv of 16), and eight agents in a stack. Prints a
table and, as the last line, one JSON object.

    python -m benchmarks.retraining
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import json
import time
from collections.abc import Callable

import numpy as np
import torch

from aitia.training.agents import AgentSpec
from aitia.training.array_envs import Member
from aitia.training.ensemble import train_agent
from aitia.training.environments import EnvSpec
from aitia.training.stack_training import train_stack
from aitia.training.stacked import STACK
from aitia.workflows.workers import Workers

MAZE = EnvSpec("aitia/ArrowMaze-v0", {"levels": 240, "moved": 36, "bug": 36, "harmless": 60})
STEPS = 16_384
PAIRS = 3
SETTINGS = {"": {"batch_size": 256, "n_epochs": 4}, "_64x10": {"batch_size": 64, "n_epochs": 10}}


def rate(function: Callable[[], object], steps: int) -> float:
    """Agent-steps a second."""
    began = time.perf_counter()
    function()
    return steps / (time.perf_counter() - began)


def compare(changes: dict[str, int]) -> tuple[list[float], list[float]]:
    """Agent-steps a second of SB3 and of the stack, pair by pair."""
    spec = AgentSpec(total_timesteps=STEPS, n_envs=16, hyperparameters=changes)
    stack = [Member(seed, None) for seed in range(STACK)]
    train_stack(AgentSpec(total_timesteps=2048, n_envs=16, hyperparameters=changes), MAZE, stack)
    single, stacked = [], []
    for _ in range(PAIRS):
        single.append(rate(lambda: train_agent(spec, MAZE, 0), STEPS))
        stacked.append(rate(lambda: train_stack(spec, MAZE, stack), STEPS * STACK))
    return single, stacked


def one_stack(seed: int) -> int:
    """Train one stack in this process."""
    torch.set_num_threads(1)
    spec = AgentSpec(total_timesteps=STEPS, n_envs=16, hyperparameters=SETTINGS[""])
    return len(train_stack(spec, MAZE, [Member(seed + i, None) for i in range(STACK)]))


def scaling(workers: Workers) -> float:
    """How much faster two worker processes train four stacks than one does, the workers warm."""
    workers.map(one_stack, [0, 8], "warm")
    began = time.perf_counter()
    workers.map(one_stack, [0, 8, 16, 24], "two workers")
    together = time.perf_counter() - began
    began = time.perf_counter()
    for seed in (0, 8, 16, 24):
        workers.map(one_stack, [seed], "one worker")
    return (time.perf_counter() - began) / together


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    result = {}
    for key, changes in SETTINGS.items():
        single, stacked = compare(changes)
        ratios = [many / one for one, many in zip(single, stacked, strict=True)]
        print(f"batch {changes['batch_size']} x {changes['n_epochs']} epochs: agent-steps a second, {PAIRS} pairs")
        for name, rates in (("SB3, one agent", single), (f"stack of {STACK} agents", stacked)):
            print(f"  {name:18s} {np.median(rates):9,.0f}  (from {min(rates):,.0f} to {max(rates):,.0f})")
        result[f"speedup_vs_sb3{key}"] = round(float(np.median(ratios)), 2)
        result[f"speedup_vs_sb3{key}_low"] = round(min(ratios), 2)
    with Workers(2) as workers:
        result["scaling_two_workers"] = round(scaling(workers), 2)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
