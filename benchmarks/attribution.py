"""How fast and how exact are the scores? Exact windowed TRAK beside traker's projection, on the same windows.

One thread, paired runs: ten windows of 2,048 transitions without repeated rows, an MLP policy with 8,775
parameters, 200 targets. Prints a table and, as the last line, one JSON object.

    python -m benchmarks.attribution
"""

from __future__ import annotations

import os

os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))

import json
import resource
import tempfile
import time
import warnings
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from aitia.attribution.outputs import Outputs
from aitia.attribution.targets import TargetSteps, UserSteps
from aitia.attribution.trak import DEFAULT_LAMBDA, DOUBLE_ROWS, WindowRows, policy_gradients

WINDOWS, ROWS, TARGETS, PROJECTED = 10, 2048, 200, 2048
OBSERVATION, ACTIONS = 64, 7
PAIRS = 3
PEER_BATCH = 512


def make_policy() -> ActorCriticPolicy:
    """Return a policy with 8,775 parameters between observation and action probabilities."""
    torch.manual_seed(0)
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (OBSERVATION,)), spaces.Discrete(ACTIONS), lambda _: 0.0)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    policy.set_training_mode(False)
    return policy


def make_samples(rows: int, seed: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return observations [N, 64] and actions [N]."""
    generator = np.random.default_rng(seed)
    observations = generator.uniform(-1, 1, (rows, OBSERVATION)).astype(np.float32)
    return observations, generator.integers(0, ACTIONS, rows)


def make_targets() -> TargetSteps:
    """Return 200 targets, log pi of one action each: an output that traker scores as it is."""
    observations, actions = make_samples(TARGETS, 10**6)

    def log_prob(log_probs: Tensor, steps: UserSteps) -> Tensor:
        return log_probs[0, int(steps.actions[0])]

    names = tuple(f"0-{i}" for i in range(TARGETS))
    labels = np.zeros((TARGETS, ACTIONS), np.int8)
    decisive = np.zeros(TARGETS, bool)
    return TargetSteps(
        names, ("user",) * TARGETS, np.arange(TARGETS), observations, actions, labels, decisive, log_prob
    )


def ours(windows: list[tuple[NDArray[np.float32], NDArray[np.int64]]], targets: TargetSteps) -> list[NDArray[Any]]:
    """Score all windows exactly."""
    scores = []
    for observations, actions in windows:
        rows = WindowRows.of(observations, actions)
        scores.append(policy_gradients(make_policy(), rows, targets, "window").trak(DEFAULT_LAMBDA)[rows.row])
    return scores


class _Actor(nn.Module):
    """The actor alone, as traker wants it."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.body, self.head = policy.mlp_extractor.policy_net, policy.action_net

    def forward(self, observations: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(observations))
        return out


def peer(windows: list[tuple[NDArray[np.float32], NDArray[np.int64]]], targets: TargetSteps) -> None:
    """Score all windows with traker: float32, one projection block kept in memory, batches of 512."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput
    from trak.projectors import BasicProjector, ProjectionType

    class LogProb(AbstractModelOutput):  # type: ignore[misc]
        def __init__(self) -> None: ...

        @staticmethod
        def get_output(model: nn.Module, weights: Any, buffers: Any, observation: Tensor, action: Tensor) -> Tensor:
            logits = torch.func.functional_call(model, (weights, buffers), (observation[None],))
            return (torch.log_softmax(logits, 1)[0] * (torch.arange(ACTIONS) == action)).sum()

        @staticmethod
        def get_out_to_loss_grad(model: nn.Module, weights: Any, buffers: Any, batch: tuple[Tensor, ...]) -> Tensor:
            return torch.ones(len(batch[0]), 1)

    for observations, actions in windows:
        actor = _Actor(make_policy())
        parameters = sum(parameter.numel() for parameter in actor.parameters())
        projector = BasicProjector(
            parameters, PROJECTED, 0, ProjectionType.rademacher, "cpu", block_size=PROJECTED
        )  # fmt: skip
        projector.free_memory = lambda: None
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            traker = TRAKer(
                actor, LogProb(), train_set_size=len(actions), save_dir=folder, device="cpu", projector=projector,
                proj_dim=PROJECTED, use_half_precision=False, logging_level=50,
                lambda_reg=DEFAULT_LAMBDA * len(actions) * PROJECTED / parameters,
            )  # fmt: skip
            traker.load_checkpoint(actor.state_dict(), model_id=0)
            for start in range(0, len(actions), PEER_BATCH):
                part = slice(start, start + PEER_BATCH)
                batch = (torch.as_tensor(observations[part]), torch.as_tensor(actions[part]))
                traker.featurize(batch=batch, num_samples=len(batch[0]))
            traker.finalize_features()
            traker.start_scoring_checkpoint("t", actor.state_dict(), model_id=0, num_targets=TARGETS)
            traker.score(
                batch=(torch.as_tensor(targets.observations), torch.as_tensor(targets.actions)), num_samples=TARGETS
            )
            traker.finalize_scores("t")


def primal_error() -> float:
    """Return the largest relative error of our scores against the float64 primal, on a window scored in float32."""

    observations, actions = make_samples(DOUBLE_ROWS + 256, 1)
    targets = make_targets()
    (found,) = ours([(observations, actions)], targets)
    policy = make_policy().double()
    layers = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]

    def gradients(samples: NDArray[Any], chosen: NDArray[np.int64]) -> Tensor:
        log_probs = Outputs(policy, torch.as_tensor(samples)).distribution.log_probs()
        rows = [torch.autograd.grad(log_probs[i, int(a)], layers, retain_graph=True) for i, a in enumerate(chosen)]
        return torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])

    phi, q = gradients(observations, actions), gradients(targets.observations, targets.actions).T
    fisher = phi.T @ phi / len(phi) + DEFAULT_LAMBDA * torch.eye(phi.shape[1], dtype=torch.float64)
    exact = (phi @ torch.linalg.solve(fisher, q)).numpy()
    return float(np.abs(found - exact).max() / np.abs(exact).max())


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    windows, targets = [make_samples(ROWS, seed) for seed in range(WINDOWS)], make_targets()
    seconds: dict[str, list[float]] = {"exact": [], "traker": []}
    for _ in range(PAIRS):
        for name, function in (("exact", ours), ("traker", peer)):
            began = time.perf_counter()
            function(windows, targets)
            seconds[name].append(time.perf_counter() - began)
            if name == "exact" and len(seconds["exact"]) == 1:
                memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    ratios = [theirs / mine for mine, theirs in zip(seconds["exact"], seconds["traker"], strict=True)]
    print(f"{WINDOWS} windows of {ROWS}, {TARGETS} targets, one thread, {PAIRS} pairs")
    for name, values in seconds.items():
        print(f"  {name:8s} {np.median(values):7.2f} s  (from {min(values):.2f} to {max(values):.2f})")
    result = {
        "speedup_vs_traker_2048": round(float(np.median(ratios)), 2),
        "speedup_low": round(min(ratios), 2),
        "speedup_high": round(max(ratios), 2),
        "seconds_exact": round(float(np.median(seconds["exact"])), 3),
        "seconds_traker": round(float(np.median(seconds["traker"])), 3),
        "exact_relative_error": primal_error(),
        "memory_mib": round(memory),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
