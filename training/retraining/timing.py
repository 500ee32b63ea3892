"""How fast agents of a task are trained and play on this machine, and what a recording takes: measured on little ones.

A first training of a few rows warms up and says roughly how long rows take; a second, of about half a second, is timed.
"""

from __future__ import annotations

import math
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

from ...datasets.files.store import RunFolder
from ..agents.play import EvaluationSpec, evaluate_policy
from ..agents.spec import AgentSpec
from ..environments.spec import EnvSpec
from .arrays import Member
from .live import train_recorded
from .ppo import STACK
from .stack import initial_policy, members_at_once, train_stack

_WARM_STEPS = 8  # of each environment
_SECONDS = 0.6  # that a timed training is to take, roughly
_FEWEST_ROWS = 512  # of a timed one: what every file takes is shared among few otherwise
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


@contextmanager
def as_a_worker() -> Iterator[None]:
    """Compute on one thread as workers do; give threads and global random generators back as they were."""
    threads, drawn, numpy_drawn = torch.get_num_threads(), random.getstate(), np.random.get_state()  # noqa: NPY002
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
        random.setstate(drawn)
        np.random.set_state(numpy_drawn)  # noqa: NPY002


@contextmanager
def undisturbed() -> Iterator[None]:
    """Compute as a worker does, without warnings: of minibatches that do not divide a short window, for example."""
    with as_a_worker(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def measure_speed(agent: AgentSpec, env: EnvSpec, test: EnvSpec, episode_steps: float) -> Speed:
    """Train, record and play a little; nothing of it stays.

    Args:
        agent: algorithm and hyperparameters.
        env, test: environments of training and of evaluation.
        episode_steps: about how long an episode is.
    """
    with undisturbed(), tempfile.TemporaryDirectory(prefix="aitia-check-") as folder:
        warm = _short(agent, _WARM_STEPS)
        rough = _train(warm, env, Path(folder) / "warm").seconds / warm.total_timesteps
        timed = _short(agent, math.ceil(max(_SECONDS / rough, _FEWEST_ROWS) / agent.n_envs))
        taken, cpu = _train(timed, env, Path(folder) / "timed")
        run, steps = RunFolder(Path(folder) / "timed"), timed.total_timesteps
        windows = run.window_count(0)
        rows = sum(run.transitions_path(0, window).stat().st_size for window in range(windows))
        at_once, reason = members_at_once(agent, env)
        step = taken / steps
        bank_step = step  # seconds by the clock, in the ratio of processor seconds: the machine may do other work
        if reason is None:
            bank_step *= _stack_cpu(warm, timed, env) * steps / cpu
        plays = max(1, int(_PLAYED_STEPS / max(episode_steps, 1.0)))
        spec = EvaluationSpec(episodes=min(plays, 16), repeats=max(1, min(plays // 16, 8)))
        began = time.perf_counter()
        evaluate_policy(initial_policy(agent, env, 0), test, spec, 0, "test")
        play = (time.perf_counter() - began) / spec.episodes / spec.repeats
        return Speed(step, bank_step, at_once, play, rows / steps, run.final_path(0).stat().st_size, steps)


def _short(agent: AgentSpec, steps: int) -> AgentSpec:
    """Return the agent with about so many steps of each environment, in short windows; minibatches are no larger."""
    window = max(2, min(steps, int(agent.hyperparameter("n_steps"))))
    changes, rows = {"n_steps": window}, window * agent.n_envs
    if "batch_size" in agent.parameters:
        batch = min(int(agent.hyperparameter("batch_size") or rows), rows)
        changes["batch_size"] = batch if rows % batch != 1 else rows
    total = rows * max(1, round(steps / window))
    return agent.model_copy(update={"hyperparameters": {**agent.hyperparameters, **changes}, "total_timesteps": total})


class _Taken(NamedTuple):
    """Seconds by the clock and of the processor."""

    seconds: float
    cpu: float


def _train(agent: AgentSpec, env: EnvSpec, folder: Path) -> _Taken:
    """Train and record an agent; return what it takes, without making environments and networks."""
    watch = _Stopwatch()
    train_recorded(agent, env, 0, RunFolder(folder), watch=watch)
    return watch.taken


def _stack_cpu(warm: AgentSpec, timed: AgentSpec, env: EnvSpec) -> float:
    """Return the processor seconds a step of one agent in a stack: of steps that one training has more than another."""
    members, seconds = [Member(seed, None) for seed in range(STACK)], []
    for agent in (warm, warm, timed):  # the first fills caches
        began = time.process_time()
        train_stack(agent, env, members)
        seconds.append(time.process_time() - began)
    more, longer = timed.total_timesteps - warm.total_timesteps, seconds[2] - seconds[1]
    per_step = longer / more if more > 0 and longer > 0.0 else seconds[2] / timed.total_timesteps
    return per_step / STACK


class _Stopwatch(BaseCallback):
    """Says how long a training took, recording included."""

    taken = _Taken(0.0, 0.0)

    def _on_training_start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def _on_step(self) -> bool:
        return True

    def _on_training_end(self) -> None:
        self.taken = _Taken(time.perf_counter() - self._began[0], time.process_time() - self._began[1])
