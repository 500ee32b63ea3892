"""How fast agents of a task are trained and play on this machine, and what a recording takes: measured on little ones.

A first training of a few rows warms up and says roughly how long rows take; a second, of about a second, is timed.
"""

from __future__ import annotations

import random
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback

from ..datasets.store import RunFolder
from .agents import AgentSpec
from .array_envs import Member
from .ensemble import train_recorded
from .environments import EnvSpec
from .evaluation import EvaluationSpec, evaluate_policy
from .stack_training import initial_policy, make_array_env, members_at_once, train_stack
from .stacked import STACK

_WARM_STEPS = 8  # of each environment
_SECONDS = 1.0  # that a timed training is to take, roughly
_PLAYED_STEPS = 4000


class Speed(NamedTuple):
    """What was measured, on one thread.

    Attributes:
        step: seconds a step of one agent that is trained by Stable-Baselines3 and recorded.
        bank_step: seconds a step of one agent of the bank.
        at_once: agents of the bank that are trained together.
        play: seconds an episode that an untrained agent plays.
        row_bytes: that a recorded transition takes, compressed.
        policy_bytes: that the parameters of a window take.
        steps: of the training that was timed.
    """

    step: float
    bank_step: float
    at_once: int
    play: float
    row_bytes: float
    policy_bytes: int
    steps: int


def measure_speed(agent: AgentSpec, env: EnvSpec, test: EnvSpec, episode_steps: float) -> Speed:
    """Train, record and play a little; nothing of it stays. Global random generators are left as they were.

    Args:
        agent: algorithm and hyperparameters.
        env, test: environments of training and of evaluation.
        episode_steps: about how long an episode is.
    """
    with _undisturbed(), tempfile.TemporaryDirectory(prefix="aitia-check-") as folder:
        warm = _short(agent, _WARM_STEPS)
        rough = _train(warm, env, Path(folder) / "warm") / warm.total_timesteps
        timed = _short(agent, max(_WARM_STEPS, int(_SECONDS / rough / agent.n_envs)))
        taken = _train(timed, env, Path(folder) / "timed")
        run, steps = RunFolder(Path(folder) / "timed"), timed.total_timesteps
        windows = run.window_count(0)
        rows = sum(run.transitions_path(0, window).stat().st_size for window in range(windows))
        at_once, reason = members_at_once(agent, env)
        step = taken / steps
        bank_step = step if reason is not None else _stack_seconds(timed, env) / steps / STACK
        plays = max(1, int(_PLAYED_STEPS / max(episode_steps, 1.0)))
        spec = EvaluationSpec(episodes=min(plays, 16), repeats=max(1, min(plays // 16, 8)))
        began = time.perf_counter()
        evaluate_policy(initial_policy(agent, env, 0), test, spec, 0, "test")
        play = (time.perf_counter() - began) / spec.episodes / spec.repeats
        return Speed(step, bank_step, at_once, play, rows / steps, run.final_path(0).stat().st_size, steps)


def _short(agent: AgentSpec, steps: int) -> AgentSpec:
    """Return the agent with one window of at most so many steps of each environment; minibatches are no larger."""
    known = agent.parameters
    steps = min(steps, int(agent.hyperparameter("n_steps")))
    changes = {"n_steps": max(steps, 2)}
    rows = changes["n_steps"] * agent.n_envs
    if "batch_size" in known:
        batch = min(int(agent.hyperparameter("batch_size")), rows)
        changes["batch_size"] = batch if rows % batch != 1 else rows
    return agent.model_copy(update={"hyperparameters": {**agent.hyperparameters, **changes}, "total_timesteps": rows})


def _train(agent: AgentSpec, env: EnvSpec, folder: Path) -> float:
    """Train and record an agent; return the seconds, without those that making environments and networks takes."""
    watch = _Stopwatch()
    train_recorded(agent, env, 0, RunFolder(folder), watch=watch)
    return watch.seconds


def _stack_seconds(agent: AgentSpec, env: EnvSpec) -> float:
    members = [Member(seed, None) for seed in range(STACK)]
    began = time.perf_counter()
    make_array_env(agent, env, members).close()
    making = time.perf_counter() - began
    train_stack(agent, env, members)
    return max(time.perf_counter() - began - 2 * making, 0.0)


class _Stopwatch(BaseCallback):
    """Says how long a training took, recording included."""

    seconds = 0.0

    def _on_training_start(self) -> None:
        self._began = time.perf_counter()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.seconds = time.perf_counter() - self._began


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Compute on one thread as workers do; give threads and generators back as they were."""
    threads, drawn, numpy_drawn = torch.get_num_threads(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of minibatches that do not divide the short window
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(drawn)
        np.random.set_state(numpy_drawn)  # noqa: NPY002
