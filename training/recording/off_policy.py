r"""The recorder of off-policy trainings (DQN, SAC): the same run folder, and what the replay buffer drew.

In a script of your own::

    recorder = OffPolicyRecorder("runs/mine", seed=0)
    model.learn(100_000, callback=recorder)

A window is a fixed number of vector steps together with the parameters at its beginning. Off-policy updates use
transitions of any age, so which transitions were used, and how often, is a table of its own:
`replay/seed=J/window=NNNNN.parquet` (docs/off-policy.md). What has no meaning off policy is null: value, log_prob,
advantage, return; `minibatches` is empty.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from ...datasets import schema
from ...datasets.errors import InputError
from ...datasets.files.store import RunFolder
from ...datasets.words import counted
from .recorder import ModelRecorder
from .window import Collected, Learned, stacked

DEFAULT_WINDOW = 2048


class _Draws:
    """Remembers what was drawn; a mix-in before SB3's replay buffers.

    It leaves every random number as it is, so a recorded training equals an unrecorded one.

    Attributes:
        drawn: one int64 [B, 3] a minibatch of the current window: vector step of the transition (counted from the
            first of the training), environment, number of rewards in its target.
        added: vector steps stored so far.
    """

    drawn: list[NDArray[np.int64]]
    added: int
    pos: int
    buffer_size: int
    n_envs: int
    dones: NDArray[np.float32]
    timeouts: NDArray[np.float32]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.drawn, self.added = [], 0

    def add(self, *args: Any, **kwargs: Any) -> None:
        """Store one vector step."""
        self.added += 1
        super().add(*args, **kwargs)  # type: ignore[misc]

    def _get_samples(self, batch_inds: NDArray[np.int64], env: VecNormalize | None = None) -> Any:
        state = np.random.get_state()  # noqa: NPY002 (SB3 draws from numpy's global generator)
        envs = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))  # noqa: NPY002 (as SB3 is about to)
        np.random.set_state(state)  # noqa: NPY002
        age = (self.pos - 1 - batch_inds) % self.buffer_size
        rewards = self._rewards_in_target(batch_inds, envs, age)
        self.drawn.append(np.stack([self.added - 1 - age, envs, rewards], axis=1))
        return super()._get_samples(batch_inds, env)  # type: ignore[misc]

    def _rewards_in_target(
        self, batch_inds: NDArray[np.int64], envs: NDArray[np.int64], age: NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return how many rewards the target of each drawn transition sums, [B]."""
        count = np.ones(len(batch_inds), dtype=np.int64)
        goes_on = np.ones(len(batch_inds), dtype=bool)
        for m in range(1, getattr(self, "n_steps", 1)):
            last = (batch_inds + m - 1) % self.buffer_size, envs
            goes_on &= (age >= m) & (self.dones[last] == 0.0) & (self.timeouts[last] == 0.0)
            count += goes_on
        return count


class RecordingReplayBuffer(_Draws, ReplayBuffer):
    """SB3's replay buffer that remembers draws."""


class RecordingDictReplayBuffer(_Draws, DictReplayBuffer):
    """SB3's replay buffer of dictionary observations that remembers draws."""


class RecordingNStepReplayBuffer(_Draws, NStepReplayBuffer):
    """SB3's replay buffer of n-step returns that remembers draws."""


_RECORDING: dict[type[ReplayBuffer], type[ReplayBuffer]] = {
    ReplayBuffer: RecordingReplayBuffer,
    DictReplayBuffer: RecordingDictReplayBuffer,
    NStepReplayBuffer: RecordingNStepReplayBuffer,
}


class OffPolicyRecorder(ModelRecorder):
    """Callback that writes `transitions`, `checkpoints` and `replay` of a run folder, each under `seed=J`.

    Args:
        out: the run folder.
        seed: the number under which this training is kept.
        window: transitions a window, rounded down to whole vector steps (at least one).

    Raises:
        EnvironmentError_: a reward that is not finite, or an info that breaks the contract.
        InputError: an algorithm or replay buffer that cannot be recorded.
    """

    def __init__(self, out: str | Path | RunFolder, seed: int = 0, window: int = DEFAULT_WINDOW) -> None:
        super().__init__(out, seed)
        if window < 1:
            raise InputError(f"window={window} was given, expected the number of transitions of a window, at least 1")
        self._window = window

    def _init_callback(self) -> None:
        model = self.model
        old = getattr(model, "replay_buffer", None)
        if not isinstance(model, OffPolicyAlgorithm) or type(old) not in (*_RECORDING, *_RECORDING.values()):
            raise InputError(
                f"the off-policy recorder was given {type(model).__name__} with {type(old).__name__}, expected DQN or "
                "SAC of Stable-Baselines3 with one of its own replay buffers (not HerReplayBuffer, which pays rewards "
                "that were never paid). PPO and A2C: use aitia.training.recording.recorder.Recorder"
            )
        assert isinstance(old, ReplayBuffer)
        if model.get_vec_normalize_env() is not None:
            raise InputError(
                "the off-policy recorder was given an environment under VecNormalize, expected one without: a stored "
                "transition is normalised again, otherwise, at every draw. Scale rewards in the environment"
            )
        if old.size() > 0:
            raise InputError(
                f"the replay buffer already holds {counted(old.size(), 'step')} that were not recorded; "
                "expected a new model, recorded from its first step"
            )
        self._begin(old.n_envs)
        n_step = {"n_steps": old.n_steps, "gamma": old.gamma} if isinstance(old, NStepReplayBuffer) else {}
        self._buffer: Any = _RECORDING.get(type(old), type(old))(
            old.buffer_size * old.n_envs, old.observation_space, old.action_space, old.device, n_envs=old.n_envs,
            optimize_memory_usage=old.optimize_memory_usage,
            handle_timeout_termination=old.handle_timeout_termination, **n_step,
        )  # fmt: skip
        model.replay_buffer = self._buffer
        owner: Any = old if isinstance(old, NStepReplayBuffer) else model
        self._learner = {"gamma": repr(float(owner.gamma))}
        self._kind = {
            "algorithm": type(model).__name__,
            "bootstraps_time_limits": str(bool(old.handle_timeout_termination)).lower(),
        }
        self._length = max(self._window // old.n_envs, 1)  # of a window, in vector steps
        self._forget()

    def _forget(self) -> None:
        """Begin a new window."""
        self._steps = []
        self._seen: list[Any] = []
        self._chosen: list[NDArray[Any]] = []
        self._buffer.drawn = []

    def _on_step(self) -> bool:
        if len(self._steps) == self._length:  # the updates after the last step of the old window are done
            self._close()
        if not self._steps:
            self._first = self._parameters()
        buffer = self._buffer
        self._seen.append(self._as_kept(self.model._last_obs))
        self._chosen.append(np.array(self.locals["buffer_actions"]).reshape(buffer.n_envs, buffer.action_dim))
        return super()._on_step()

    def _as_kept(self, observed: Any) -> Any:
        """Return copies of the observations of all environments, in the shape in which SB3 keeps them."""
        shape: Any = self._buffer.obs_shape
        if isinstance(observed, dict):
            return {key: np.array(value).reshape(-1, *shape[key]) for key, value in observed.items()}
        return np.array(observed).reshape(-1, *shape)

    def _close(self) -> None:
        """Write the current window, with what was drawn since its first step."""
        if not self._steps:
            return
        window = Collected(
            steps=self._steps, observations=stacked(self._seen), following=self.model._last_obs,
            actions=self._drawn(np.stack(self._chosen).astype(self._buffer.actions.dtype)),
            learner=self._learner, about=self._kind,
        )  # fmt: skip
        self._writer.write(window, Learned(), self._first, self._draws_table())
        self._forget()

    def _draws_table(self) -> pa.Table:
        """Return how often each (transition, number of rewards) was drawn in the current window."""
        drawn = np.concatenate([np.empty((0, 3), np.int64), *self._buffer.drawn])
        ((step, env, count), draws) = np.unique(drawn.T, axis=1, return_counts=True)
        columns = {
            "seed": np.full(len(step), self._writer.seed), "window": np.full(len(step), self._writer.windows),
            "collected": step // self._length, "env": env, "step": step % self._length, "n": count, "draws": draws,
        }  # fmt: skip
        return pa.table({name: values.astype(np.int32) for name, values in columns.items()}, schema.REPLAY_DRAWS)

    def _on_training_end(self) -> None:
        self._close()
        self._writer.publish(self._parameters(), self._about())
