"""Recordings made without training: windows, checkpoints and failures of the size that a benchmark asks for.

Everything is written by aitia's own writers and read by its own readers. Numbers are random, so nothing compresses or
repeats better than real data would: observations of 64 floats, sparse rewards at the ends of episodes, contexts of
which a part pays wrongly.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import torch
import yaml
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy

from aitia.datasets import schema
from aitia.datasets.arrays import array_format_of, array_metadata, encode_actions, encode_arrays
from aitia.datasets.files.store import RunFolder, write_table, write_tensors
from aitia.workflows.runs.begin import begin_run
from aitia.workflows.runs.run import Run

FEATURES, ACTIONS = 64, 7
ENVS, STEPS = 16, 128
ROWS = ENVS * STEPS  # of a window
EPISODE = 16  # steps of each episode
CONTEXTS, WRONG_CONTEXTS = 240, 60
DECISIVE = 8  # of the steps of a failing episode
_EPOCHS, _BATCH = 4, 256
_LABELS = np.array([1, -1, *[0] * (ACTIONS - 2)], np.int8)
_OUTCOMES = {"desired": ["goal"], "misbehaved": ["corner"]}
Data = tuple[NDArray[Any], NDArray[np.int64]]


class Rooms(gym.Env[NDArray[np.float32], np.int64]):
    """Random observations for a fixed number of steps: stands for the environment of the recordings."""

    def __init__(self) -> None:
        self.render_mode = None
        self.observation_space = spaces.Box(-1.0, 1.0, (FEATURES,), np.float32)
        self.action_space = spaces.Discrete(ACTIONS)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[NDArray[np.float32], dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        self.context = int(self.np_random.integers(CONTEXTS))
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        self.age += 1
        ended = self.age == EPISODE
        info: dict[str, Any] = {"intended_reward": 0.0, "context": self.context, "action_labels": _LABELS.tolist()}
        if ended:
            info["outcome"] = "corner"
        return self._observe(), 0.0, ended, False, info

    def _observe(self) -> NDArray[np.float32]:
        return self.np_random.uniform(-1.0, 1.0, FEATURES).astype(np.float32)


def mlp_policy() -> ActorCriticPolicy:
    """A policy with 8,775 parameters between observation and action probabilities."""
    torch.manual_seed(0)
    return disturbed(ActorCriticPolicy(spaces.Box(-1, 1, (FEATURES,)), spaces.Discrete(ACTIONS), lambda _: 0.0))


def disturbed(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """Move a policy far from SB3's nearly uniform start, so that gradients differ."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 / max(parameter[0].numel(), 1) ** 0.5 * torch.randn(parameter.shape))
    policy.set_training_mode(False)
    return policy


def samples(rows: int, seed: int, states: int = 0) -> Data:
    """Observations [N, 64] and actions [N]: no two alike, or of so many states only."""
    generator = np.random.default_rng(seed)
    observations: NDArray[Any] = generator.uniform(-1, 1, (states or rows, FEATURES)).astype(np.float32)
    if states:
        observations = observations[generator.integers(0, states, rows)]
    return observations, generator.integers(0, ACTIONS, rows)


def window_table(number: int, states: int = 0) -> pa.Table:
    """One window of 2,048 transitions with the columns of the recorder."""
    observations, actions = samples(ROWS, number, states)
    generator = np.random.default_rng([number, 1])
    step = np.tile(np.arange(STEPS, dtype=np.int32), ENVS)
    t = step % EPISODE
    ended = t == EPISODE - 1
    whole = np.repeat(np.arange(ROWS // EPISODE), EPISODE)
    context = generator.integers(0, CONTEXTS, ROWS // EPISODE)[whole]
    reward = (ended & (generator.random(ROWS) < 0.9)).astype(np.float64)
    column, metadata = encode_actions(actions)
    following = [None if not end else row.tobytes() for end, row in zip(ended, observations, strict=True)]
    minibatches = np.stack([generator.permutation(ROWS) // _BATCH for _ in range(_EPOCHS)], axis=1).astype(np.int32)
    offsets = pa.array(np.arange(ROWS + 1, dtype=np.int32) * _EPOCHS)
    table = pa.table(
        {
            "seed": np.zeros(ROWS, np.int32), "window": np.full(ROWS, number, np.int32),
            "env": np.repeat(np.arange(ENVS, dtype=np.int32), STEPS), "step": step,
            "episode": number * (ROWS // EPISODE) + whole, "t": t,
            "observation": encode_arrays(observations),
            "next_observation": pa.array(following, pa.binary(observations[0].nbytes)),
            "action": column, "reward": reward, "reward_scale": np.ones(ROWS),
            "intended_reward": np.where(context < WRONG_CONTEXTS, 0.0, reward),
            "untampered_reward": pa.nulls(ROWS, pa.float64()), "context": context.astype(str),
            "outcome": pa.array(["corner"] * ROWS, pa.string(), mask=~ended),
            "value": generator.normal(size=ROWS).astype(np.float32),
            "log_prob": generator.normal(size=ROWS).astype(np.float32),
            "advantage": generator.normal(size=ROWS).astype(np.float32),
            "return": generator.normal(size=ROWS).astype(np.float32),
            "terminated": ended, "truncated": np.zeros(ROWS, bool),
            "minibatches": pa.ListArray.from_arrays(offsets, pa.array(minibatches.reshape(-1))),
        }
    )  # fmt: skip
    told = {
        "schema_version": str(schema.SCHEMA_VERSION), "n_steps": str(STEPS), "n_envs": str(ENVS), "gamma": "0.97",
        "gae_lambda": "0.95", "vf_coef": "0.5", "normalize_advantage": "true",
    }  # fmt: skip
    form = array_metadata("observation", array_format_of(observations))
    return schema.with_metadata(table, metadata | told | form)


def write_run(root: Path, windows: int, failures: int, states: int = 0) -> Run:
    """Write a trained and evaluated run of one seed, as `aitia train` and `aitia evaluate` leave it.

    Args:
        root: the run folder, new.
        windows: W, each with a checkpoint of its own.
        failures: F; every test episode fails.
        states: distinct observations of a window; 0: as many as transitions.
    """
    task = root.with_suffix(".yaml")
    task.parent.mkdir(parents=True, exist_ok=True)
    task.write_text(yaml.safe_dump(_task(windows, failures)))
    run = begin_run(task, root)
    policy, generator = mlp_policy(), torch.Generator().manual_seed(1)
    for number in range(windows):
        write_table(run.folder.transitions_path(0, number), window_table(number, states))
        with torch.no_grad():  # a training's steps: every window has parameters of its own
            for parameter in policy.parameters():
                parameter.add_(1e-3 * torch.randn(parameter.shape, generator=generator))
        told = {"seed": "0", "window": str(number)}
        write_tensors(run.folder.checkpoint_path(0, number), policy.state_dict(), told)
    write_tensors(run.folder.final_path(0), policy.state_dict(), {"seed": "0", "windows": str(windows)})
    write_failures(run.folder, failures)
    return run


def write_failures(folder: RunFolder, failures: int) -> None:
    """Write the tables of an evaluation in which every episode fails, with eight decisive steps of sixteen."""
    rows = failures * EPISODE
    observations, _ = samples(rows, 10**7)
    t = np.tile(np.arange(EPISODE, dtype=np.int32), failures)
    column, metadata = encode_actions((t >= DECISIVE).astype(np.int64))
    steps = pa.table(
        {
            "seed": np.zeros(rows, np.int32), "part": pa.repeat("test", rows),
            "episode": np.repeat(np.arange(failures, dtype=np.int32), EPISODE), "t": t,
            "observation": encode_arrays(observations), "action": column,
            "action_labels": pa.array([_LABELS] * rows, pa.list_(pa.int8())),
            "log_prob": np.full(rows, -1.0), "value": np.zeros(rows),
        }
    )  # fmt: skip
    metadata |= array_metadata("observation", array_format_of(observations)) | {"actions": str(ACTIONS)}
    episodes = [
        {"seed": 0, "part": "test", "episode": number, "repeat": 0, "outcome": "corner", "length": EPISODE,
         "reward": 0.0, "intended_reward": 0.0, "context": str(number % CONTEXTS)}
        for number in range(failures)
    ]  # fmt: skip
    write_table(folder.evaluation_path("test", "steps"), schema.with_metadata(steps, metadata))
    write_table(folder.evaluation_path("test", "episodes"), pa.Table.from_pylist(episodes, schema=schema.EPISODES))


def _task(windows: int, failures: int) -> dict[str, Any]:
    return {
        "name": "scale",
        "env": f"{__name__}:Rooms",
        "outcomes": _OUTCOMES,
        "agent": {
            "total_timesteps": windows * ROWS,
            "n_envs": ENVS,
            "hyperparameters": {"n_steps": STEPS, "batch_size": _BATCH, "n_epochs": _EPOCHS, "gamma": 0.97},
        },
        "seeds": [0],
        "evaluation": {"episodes": failures, "repeats": 1},
    }
