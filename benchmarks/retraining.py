"""How fast are agents trained again, and how many of them does a verdict take?

Speed: agent-steps a second on the arrow maze, one agent of SB3 (DummyVecEnv of 16) and eight agents in a stack, one
core, paired runs; two worker processes against one. Decoys: misbehaviour as paid, with only the causal levels corrected
and with only the harmless ones, and the fewest levels that remove it by attribution, by the size of the error and at
random. Twins: agents trained until the verdict, against the same bank with every seed of the ensemble.

Prints tables and, as the last line, one JSON object.

    python -m benchmarks.retraining [--only speed|decoy|twins]
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import aitia
from aitia.datasets.files.store import read_table
from aitia.training.agents.spec import AgentSpec
from aitia.training.environments.spec import EnvSpec
from aitia.training.retraining.arrays import Member
from aitia.training.retraining.live import train_agent
from aitia.training.retraining.ppo import STACK
from aitia.training.retraining.stack import train_stack
from aitia.workflows.workers.cluster import DaskWorkers

MAZE = EnvSpec("aitia/ArrowMaze-v0", {"levels": 240, "moved": 36, "bug": 36, "harmless": 60})
STEPS = 16_384
PAIRS = 3
MINIMAL_RATE = 0.1
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


def scaling(workers: DaskWorkers) -> float:
    """How much faster two worker processes train four stacks than one does, the workers warm."""
    workers.map(one_stack, [0, 8], "warm")
    began = time.perf_counter()
    workers.map(one_stack, [0, 8, 16, 24], "two workers")
    together = time.perf_counter() - began
    began = time.perf_counter()
    for seed in (0, 8, 16, 24):
        workers.map(one_stack, [seed], "one worker")
    return (time.perf_counter() - began) / together


def decoy(folder: Path) -> dict[str, Any]:
    """Run the decoy setting; return rates with their intervals, and the smallest corrections by order."""
    task = yaml.safe_load(Path(__file__).with_name("decoys.yaml").read_text(encoding="utf-8"))
    maze = "aitia.training.worlds.maze"
    sets = {"causal": f"{maze}:causal_levels", "harmless": f"{maze}:harmless_levels"}
    task["verify"] = {"seeds": 5, "points": 0, "minimal": MINIMAL_RATE, "sets": sets}
    summary = run(task, folder / "decoys")
    points = {
        point["order"]: point for point in summary["correction_curve"] if point["order"] in ("none", "all", *sets)
    }
    print(f"decoys: {'rewards':28s} misbehaviour [95%, 5 seeds]")
    rates = {
        "none": "as paid",
        "causal": "causal levels corrected",
        "harmless": "harmless corrected",
        "all": "all corrected",
    }
    for order, text in rates.items():
        point = points[order]
        print(f"  {text:34s} {point['misbehaviour_rate']:.3f} [{point['low']:.3f}, {point['high']:.3f}]")
    minimal = {found["order"]: found["groups"] for found in summary["minimal_corrections"]}
    print(f"  fewest of {points['all']['groups']} wrong levels for a rate of {MINIMAL_RATE} or less: {minimal}")
    names = {"none": "uncorrected", "causal": "causal_corrected", "harmless": "harmless_corrected"}
    return {
        **{text: round(points[order]["misbehaviour_rate"], 4) for order, text in names.items()},
        "minimal_levels": minimal,
        "wrong_levels": points["all"]["groups"],
    }


def twins(folder: Path) -> dict[str, Any]:
    """Run both twins with eight seeds; return how many agents were trained again, against a bank of every seed."""
    found = {}
    print(f"{'twin':8s} {'verdict':8s} {'to the verdict':>15s} {'whole bank':>11s} {'every seed, every set':>22s}")
    for name in ("outer", "inner"):
        text = files("aitia.workflows").joinpath(f"tasks/arrow-maze-{name}.yaml").read_text(encoding="utf-8")
        task = yaml.safe_load(text) | {"seeds": 8}
        summary = run(task, folder / name)
        masks = read_table(folder / name / "bank/test/masks.parquet")["order"].to_pylist()
        fixed = task["seeds"] * (1 + 2 * task["verify"]["points"])
        used = {"to_verdict": masks.count("all"), "bank": len(masks) - masks.count("none"), "fixed_design": fixed}
        print(f"{name:8s} {summary['verdict']:8s} {used['to_verdict']:15d} {used['bank']:11d} {fixed:22d}")
        found[name] = {"verdict": summary["verdict"], **used}
    return found


def run(task: dict[str, Any], out: Path) -> dict[str, Any]:
    """Run a task and return the summary of its test set."""
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(task), encoding="utf-8")
    summary: dict[str, Any] = aitia.run(path, out)["test"]
    return summary


def speed() -> dict[str, Any]:
    """Measure the stacked trainer against Stable-Baselines3, and two workers against one."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {}
    for key, changes in SETTINGS.items():
        single, stacked = compare(changes)
        ratios = [many / one for one, many in zip(single, stacked, strict=True)]
        print(f"batch {changes['batch_size']} x {changes['n_epochs']} epochs: agent-steps a second, {PAIRS} pairs")
        for name, rates in (("SB3, one agent", single), (f"stack of {STACK} agents", stacked)):
            print(f"  {name:18s} {np.median(rates):9,.0f}  (from {min(rates):,.0f} to {max(rates):,.0f})")
        result[f"speedup_vs_sb3{key}"] = round(float(np.median(ratios)), 2)
        result[f"speedup_vs_sb3{key}_low"] = round(min(ratios), 2)
    with DaskWorkers(2) as workers:
        result["scaling_two_workers"] = round(scaling(workers), 2)
    print(f"two worker processes train {result['scaling_two_workers']} times as many agents a second as one")
    return result


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("speed", "decoy", "twins"), help="measure only this")
    only = parser.parse_args().only
    result: dict[str, Any] = speed() if only in (None, "speed") else {}
    with tempfile.TemporaryDirectory() as folder:
        if only in (None, "decoy"):
            result["decoy"] = decoy(Path(folder))
        if only in (None, "twins"):
            result["retrainings_to_verdict"] = twins(Path(folder))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
