"""How fast, how exact and how right are the scores? Beside traker and dattri, on the same windows, one thread.

MLP: ten windows of 2,048 transitions without repeated rows, 8,775 parameters, 200 targets. CNN: one such window of
44 x 44 images, 207,015 parameters. Then time against transitions, a worker's memory, and the decoy setting: does the
planted cause come out? Speed-ups stand beside their ceilings: the time of the bare BLAS calls
that exact scores need (floors.py). Prints tables and, as the last line, one JSON object. About ten minutes.

    python -m benchmarks.attribution
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TQDM_DISABLE"), "1"))

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.stats import linregress
from stable_baselines3.common.policies import ActorCriticCnnPolicy, ActorCriticPolicy
from torch import Tensor

import aitia
from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.effects.top import TOP_K, Leaders, keep_top
from aitia.attribution.effects.window import attribute_window
from aitia.attribution.estimators.base import Trak
from aitia.attribution.estimators.window import read_window
from aitia.attribution.gradients.channels import policy_gradients
from aitia.attribution.gradients.kernel import DEFAULT_LAMBDA, DOUBLE_ROWS
from aitia.attribution.gradients.rows import WindowRows
from aitia.attribution.targets.steps import Targets, UserSteps
from aitia.datasets.files.store import write_table
from aitia.datasets.schema import TOP_TRANSITIONS
from aitia.workflows.runs.run import open_for_computing
from benchmarks import peers, planted
from benchmarks.floors import necessary
from benchmarks.synthetic import ACTIONS, DECISIVE, ROWS, Data, disturbed, mlp_policy, samples, window_table

WINDOWS, TARGETS = 10, 200
IMAGE = (1, 44, 44)
PAIRS, CNN_PAIRS = 3, 3
TRAKER_MLP, TRAKER_CNN, DATTRI = 2048, 512, 512  # projected dimensions
TRANSITIONS = (10_240, 102_400, 1_024_000)
MANY_FAILURES = 1000


def cnn_policy() -> ActorCriticPolicy:
    """A NatureCNN policy with 207,015 parameters between image and action probabilities."""
    return disturbed(ActorCriticCnnPolicy(spaces.Box(0, 255, IMAGE, np.uint8), spaces.Discrete(ACTIONS), lambda _: 0.0))


def images(rows: int, seed: int) -> Data:
    """Images [N, ...] and actions [N], no two alike."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (rows, *IMAGE)).astype(np.uint8), generator.integers(0, ACTIONS, rows)


def log_prob_targets(image: bool = False) -> Targets:
    """200 targets, log pi of one action each: an output that other libraries score as it is."""
    observations, actions = (images if image else samples)(TARGETS, 10**6)

    def log_prob(log_probs: Tensor, steps: UserSteps) -> Tensor:
        return log_probs[0, int(steps.actions[0])]

    names = tuple(f"0-{i}" for i in range(TARGETS))
    labels = np.zeros((TARGETS, ACTIONS), np.int8)
    return Targets(
        names, ("user",) * TARGETS, np.arange(TARGETS), observations, actions, labels, np.zeros(TARGETS, bool), log_prob
    )


def ours(make: Callable[[], ActorCriticPolicy], windows: list[Data], targets: Targets) -> list[NDArray[Any]]:
    """Score all windows exactly."""
    scores = []
    for observations, actions in windows:
        rows = WindowRows.of(observations, actions)
        scores.append(policy_gradients(as_actor(make()), rows, targets, "window").trak(DEFAULT_LAMBDA)[rows.row])
    return scores


def _prepared(policy: ActorCriticPolicy, data: Data) -> peers.Samples:
    found = as_actor(policy).prepare(data[0])
    assert isinstance(found, Tensor)
    return found, torch.as_tensor(data[1])


def by_traker(
    make: Callable[[], ActorCriticPolicy], windows: list[Data], targets: Targets, dimensions: int, batch: int
) -> None:
    """Score all windows with traker."""
    for data in windows:
        policy = make()
        asked = _prepared(policy, (targets.observations, targets.actions))
        peers.traker(peers.Actor(policy), _prepared(policy, data), asked, dimensions, DEFAULT_LAMBDA, batch)


def by_dattri(windows: list[Data], targets: Targets) -> None:
    """Score all windows with dattri."""
    for data in windows:
        policy = mlp_policy()
        asked = _prepared(policy, (targets.observations, targets.actions))
        peers.dattri(peers.Actor(policy), _prepared(policy, data), asked, DATTRI, DEFAULT_LAMBDA)


def paired(functions: dict[str, Callable[[], object]], pairs: int) -> dict[str, list[float]]:
    """Time functions in turn, so that a slow minute of the machine falls on all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(pairs):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - began)
    for name, values in seconds.items():
        print(f"  {name:18s} {np.median(values):7.2f} s  (from {min(values):.2f} to {max(values):.2f})", flush=True)
    return seconds


def ratio(seconds: dict[str, list[float]], name: str, base: str = "ours") -> dict[str, float]:
    """Median, lowest and highest of the paired ratios."""
    found = [theirs / mine for mine, theirs in zip(seconds[base], seconds[name], strict=True)]
    return {"": round(float(np.median(found)), 2), "_low": round(min(found), 2), "_high": round(max(found), 2)}


def floor_ratio(path: Path) -> float:
    """Attribution of one window to 1,000 failures, over the time of the calls that it cannot do without."""
    window, targets = read_window(path), many_targets()
    floor = necessary(mlp_policy(), ROWS, len(targets.failure), targets.failures)
    seconds = paired(
        {"whole": lambda: attribute_window(window, as_actor(mlp_policy()), targets, Trak()), "floor": floor}, 2 * PAIRS
    )
    return round(min(seconds["whole"]) / min(seconds["floor"]), 2)


def primal_error() -> float:
    """Largest relative error of our scores against the float64 primal, on a window scored in float32."""
    observations, actions = samples(DOUBLE_ROWS + 256, 1)
    targets = log_prob_targets()
    (found,) = ours(mlp_policy, [(observations, actions)], targets)
    policy = mlp_policy().double()
    layers = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]

    def gradients(given: NDArray[Any], chosen: NDArray[np.int64]) -> Tensor:
        log_probs = as_actor(policy).outputs(given).distribution.log_probs()
        rows = [torch.autograd.grad(log_probs[i, int(a)], layers, retain_graph=True) for i, a in enumerate(chosen)]
        return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])

    phi, q = gradients(observations, actions), gradients(targets.observations, targets.actions).T
    fisher = phi.T @ phi / len(phi) + DEFAULT_LAMBDA * torch.eye(phi.shape[1], dtype=torch.float64)
    exact = (phi @ torch.linalg.solve(fisher, q)).numpy()
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def write_windows(folder: Path) -> list[Path]:
    """Ten recorded windows of random transitions."""
    paths = [folder / f"window={number:05d}.parquet" for number in range(WINDOWS)]
    for number, path in enumerate(paths):
        write_table(path, window_table(number))
    return paths


def stream(paths: list[Path], windows: int, targets: Targets) -> pa.Table:
    """What a worker does: read, attribute and reduce window after window."""
    top, sums, leaders = TOP_TRANSITIONS.empty_table(), np.zeros(()), Leaders.none(targets.ids)
    for number in range(windows):
        window = read_window(paths[number % len(paths)])
        found = attribute_window(window, as_actor(mlp_policy()), targets, Trak(), leaders=leaders)
        leaders = leaders.add((0, number), found.top)
        top = keep_top(pa.concat_tables([top, found.top.cast(TOP_TRANSITIONS)]), TOP_K)
        sums = sums + found.sums.effects["effect"].sum()
    return top


def cost_exponent(paths: list[Path]) -> tuple[float, list[float]]:
    """Log-log slope of time against transitions."""
    targets, seconds = log_prob_targets(), []
    stream(paths, 2, targets)
    for count in TRANSITIONS:
        began = time.perf_counter()
        stream(paths, count // ROWS, targets)
        seconds.append(time.perf_counter() - began)
        print(f"  {count:9,d} transitions {seconds[-1]:7.2f} s", flush=True)
    return float(linregress(np.log(TRANSITIONS), np.log(seconds)).slope), seconds


def memory_mib() -> float:
    """Most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def many_targets() -> Targets:
    """1,000 failures with eight decisive steps each."""
    steps = MANY_FAILURES * DECISIVE
    observations, actions = samples(steps, 10**7)
    labels = np.tile(np.array([1, -1, *[0] * (ACTIONS - 2)], np.int8), (steps, 1))
    names = tuple(f"0-{i}" for i in range(MANY_FAILURES))
    failure = np.repeat(np.arange(MANY_FAILURES), DECISIVE)
    return Targets(names, ("labels",) * MANY_FAILURES, failure, observations, actions * 0, labels, np.ones(steps, bool))


def worker_memory(paths: list[Path]) -> dict[str, int]:
    """Most memory of a worker with 1,000 failures of eight decisive steps, and what ten more windows add to it."""
    targets = many_targets()
    stream(paths, 3, targets)
    early = memory_mib()
    stream(paths, 10, targets)
    return {"memory_worker_mib": round(memory_mib()), "memory_worker_growth_mib": round(memory_mib() - early)}


def decoys(folder: Path) -> dict[str, float]:
    """AUC of the planted cause in the decoy setting, from training to ranking."""
    run = folder / "decoys"
    aitia.train(Path(__file__).with_name("decoys.yaml"), run)
    aitia.evaluate(run)
    for name in ("trak", "tracin", "size"):
        aitia.attribute(run, estimator=name)
    found = planted.measure(open_for_computing(run), ["trak", "tracin", "size"])
    return {
        "auc_ensemble": found["auc_trak"], "auc_single": found["auc_single_trak"],
        "auc_size_baseline": found["auc_size"], "auc_tracin": found["auc_tracin"],
    }  # fmt: skip


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Speed, exactness and rightness of the scores.")
    parser.add_argument("--skip-decoys", action="store_true", help="Leave out the decoy setting (it trains 8 agents).")
    skip_decoys = parser.parse_args().skip_decoys
    torch.set_num_threads(1)
    result: dict[str, float | int] = {}
    windows, targets = [samples(ROWS, seed) for seed in range(WINDOWS)], log_prob_targets()
    calls = necessary(mlp_policy(), ROWS, TARGETS, TARGETS)
    ours(mlp_policy, windows, targets)
    result["memory_mib"] = round(memory_mib())
    with tempfile.TemporaryDirectory() as name:
        result |= worker_memory(write_windows(Path(name)))
    print(f"MLP: {WINDOWS} windows of {ROWS}, {TARGETS} targets, {PAIRS} pairs, one thread", flush=True)
    seconds = paired(
        {
            "ours": lambda: ours(mlp_policy, windows, targets),
            f"traker {TRAKER_MLP}": lambda: by_traker(mlp_policy, windows, targets, TRAKER_MLP, 512),
            f"dattri TRAK {DATTRI}": lambda: by_dattri(windows, targets),
            "bare calls": lambda: [calls() for _ in windows],
        },
        PAIRS,
    )
    for key, name in (("traker_2048", f"traker {TRAKER_MLP}"), ("dattri_trak", f"dattri TRAK {DATTRI}")):
        result |= {f"speedup_vs_{key}{end}": value for end, value in ratio(seconds, name).items()}
        result[f"ceiling_{key.removesuffix('_2048').removesuffix('_trak')}"] = ratio(seconds, name, "bare calls")[""]
    pictures, asked = [images(ROWS, 0)], log_prob_targets(image=True)
    ours(cnn_policy, pictures, asked)
    print(f"CNN: one window of {ROWS}, {TARGETS} targets, {CNN_PAIRS} pairs, one thread", flush=True)
    seconds = paired(
        {
            "ours": lambda: ours(cnn_policy, pictures, asked),
            f"traker {TRAKER_CNN}": lambda: by_traker(cnn_policy, pictures, asked, TRAKER_CNN, 128),
        },
        CNN_PAIRS,
    )
    result |= {f"speedup_vs_traker_cnn{end}": v for end, v in ratio(seconds, f"traker {TRAKER_CNN}").items()}
    result["exact_relative_error"] = primal_error()
    with tempfile.TemporaryDirectory() as name:
        paths = write_windows(Path(name))
        print(f"One window to {MANY_FAILURES} failures of {DECISIVE} steps", flush=True)
        result["floor_ratio"] = floor_ratio(paths[0])
        print("Whole attribution against transitions (three dampings, files read, top-k kept)", flush=True)
        result["cost_exponent"] = round(cost_exponent(paths)[0], 3)
        if not skip_decoys:
            result |= decoys(Path(name))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
