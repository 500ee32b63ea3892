r"""The recorder: every transition and every window's parameters, from any Stable-Baselines3 script.

Three lines in a script of your own::

    recorder = Recorder("runs/mine", seed=0)
    model.learn(100_000, callback=recorder)
    recorder.published          # True: runs/mine/transitions and runs/mine/checkpoints are whole

and `runs/mine/task.yaml` describes the training, for `aitia run` to take it over.

A window is one on-policy rollout together with the parameters that collected it. Its transitions are
written once the window's update is done, for only then is it known which minibatch used which row.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch import Tensor, as_tensor

from ...datasets import schema
from ...datasets.arrays import Array, array_format_of, array_metadata, encode_actions, encode_arrays, pack
from ...datasets.errors import AitiaError, EnvironmentError_, InputError
from ...datasets.files.lock import held
from ...datasets.files.remote import remote, remove_folder
from ...datasets.files.store import RunFolder, begin_folder, publish_folder, write_table, write_tensors
from ..agents.threads import hint_at_threads
from ..edits.edit import CORRECTED, UNEDITED
from ..environments.contract import InfoReader, Told
from ..environments.spaces import ObservationForm
from .agent_block import AgentBlock, agent_block
from .buffers import Membership, action_masks, first_lstm_states, known_buffers, rebuilt
from .provenance import SCRIPT, EarlierTraining, recorded_hyperparameters
from .task_file import Seen, write_task

log = logging.getLogger("aitia")
_HELD = ".held"  # beside the folder aside: held while a script records


def recording_lock(aside: Path) -> Path:
    """Return the lock that is held while a script records into a folder aside."""
    return aside.with_name(f"{aside.name}{_HELD}")


def under_way(folder: RunFolder) -> list[Path]:
    """Return the folders aside of trainings that have not ended, or not well."""
    return sorted(path for path in folder.parts_folder("train").glob("seed=*") if _HELD not in path.name)


@dataclass
class _Rows:
    """What the recorder collects step by step: one entry a vector step, each [n_envs]."""

    reward: list[NDArray[np.float64]] = field(default_factory=list)
    scale: list[NDArray[np.float64]] = field(default_factory=list)
    unclipped_scale: list[NDArray[np.float64]] = field(default_factory=list)
    episode: list[NDArray[np.int64]] = field(default_factory=list)
    t: list[NDArray[np.int64]] = field(default_factory=list)
    done: list[NDArray[np.bool_]] = field(default_factory=list)
    truncated: list[NDArray[np.bool_]] = field(default_factory=list)
    told: list[list[Told]] = field(default_factory=list)
    following: dict[tuple[int, int], Any] = field(default_factory=dict)


@dataclass
class _Window:
    """A collected window that waits for its update to finish."""

    number: int
    columns: dict[str, pa.Array]
    metadata: dict[str, str]
    parameters: dict[str, Tensor]
    membership: list[NDArray[np.int32]]


def _flat(values: Any) -> Array:
    """Return [steps, envs, ...] as [N, ...], row = env * n_steps + step (SB3's own flat order)."""
    array = np.asarray(values)
    return array.swapaxes(0, 1).reshape(-1, *array.shape[2:])


class Recorder(BaseCallback):
    """Callback that writes `transitions/seed=J` and `checkpoints/seed=J` of a run folder.

    The files are collected aside and moved to their places when the training ends, so a training that
    fails leaves nothing under the final names.

    Args:
        out: the run folder: a path, or an address on an object store (docs/run-folder.md).
        seed: the number under which this training is kept.

    Raises:
        EnvironmentError_: a reward that is not finite, or an info that breaks the contract.
        InputError: an algorithm or space that cannot be recorded so far.
    """

    trained_by = SCRIPT

    def __init__(self, out: str | Path | RunFolder, seed: int = 0) -> None:
        super().__init__()
        self.folder = RunFolder.at(out)
        self.seed = seed
        self.published = False
        # a folder of this attempt's own: a training that was given up may still be running on a cluster
        self._aside = self.folder.parts_folder("train", f"seed={seed}-{uuid.uuid4().hex[:8]}")
        self._staged = RunFolder(self._aside)
        self._held = contextlib.ExitStack()
        self._windows = 0
        self._corrected = 0
        self._outcomes: Counter[str] = Counter()
        self._pending: _Window | None = None

    def _init_callback(self) -> None:
        model = self.model
        if not isinstance(model, OnPolicyAlgorithm) or not (
            type(model.rollout_buffer) in known_buffers() or isinstance(model.rollout_buffer, Membership)
        ):
            raise InputError(
                f"the recorder was given {type(model).__name__}, expected an on-policy algorithm of Stable-Baselines3 "
                "or sb3-contrib with its own rollout buffer (PPO, A2C, MaskablePPO or RecurrentPPO). DQN and SAC: use "
                "aitia.training.recording.off_policy.OffPolicyRecorder"
            )
        old = model.rollout_buffer
        model.rollout_buffer = rebuilt(old, Membership)
        self._begin(old.n_envs)

    def _begin(self, n_envs: int) -> None:
        """Prepare for the steps of a training on `n_envs` environments."""
        model = self.model
        if self._windows:
            raise InputError(
                f"this recorder has already recorded a training as seed {self.seed}; expected one `learn` a recorder. "
                "Make another with another seed"
            )
        if self.folder.manifest_path.exists() and not self.folder.missing_files(self.seed):
            raise InputError(
                f"{self.folder.root} holds a run (run.json) with a whole training of seed {self.seed}, and its other "
                "tables follow from that one: record into another folder, or as another seed"
            )
        self._earlier = EarlierTraining(int(model.num_timesteps), int(getattr(model, "_n_updates", 0)))
        if self._earlier:
            log.warning("seed %d: %s", self.seed, self._earlier.what_follows())
        if model.policy is not None:  # imported data have none
            hint_at_threads(model.policy)
        self._staged = RunFolder(begin_folder(self._aside))
        self._hold()
        env = model.get_env()
        assert env is not None
        self._normalize = unwrap_vec_normalize(env)
        discrete = isinstance(model.action_space, spaces.Discrete)
        self._reader = InfoReader(
            int(model.action_space.n) if isinstance(model.action_space, spaces.Discrete) else None,
            f"training environment (seed {self.seed})",
        )
        self._discrete = discrete
        self._n_envs = n_envs
        self._episode = np.arange(n_envs, dtype=np.int64)
        self._t = np.zeros(n_envs, dtype=np.int64)
        self._next_episode = n_envs
        self._rows = _Rows()

    @property
    def _model(self) -> OnPolicyAlgorithm:
        assert isinstance(self.model, OnPolicyAlgorithm)
        return self.model

    def _on_rollout_start(self) -> None:
        self._write_pending()
        self._rows = _Rows()

    def _on_step(self) -> bool:
        infos, dones = self.locals["infos"], np.asarray(self.locals["dones"], dtype=bool)
        normalize = self._normalize
        raw = self.locals["rewards"] if normalize is None else normalize.get_original_reward()
        self._paid_dtype = np.asarray(raw).dtype
        reward = np.array(raw, dtype=np.float64)  # a copy: SB3 adds gamma V(terminal) to its own in place
        rows = self._rows
        rows.reward.append(reward)
        rows.scale.append(self._reward_scale(reward))
        rows.unclipped_scale.append(np.full(self._n_envs, self._unclipped_scale()))
        rows.done.append(dones)
        rows.truncated.append(np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos]) & dones)
        for index in np.flatnonzero(dones):
            if rows.truncated[-1][index] or "terminal_observation" in infos[index]:
                rows.following[len(rows.done) - 1, int(index)] = infos[index]["terminal_observation"]
        rows.told.append([self._read(i, info, reward, dones) for i, info in enumerate(infos)])
        rows.episode.append(self._episode.copy())
        rows.t.append(self._t.copy())
        self._t += 1
        for index in np.flatnonzero(dones):
            self._t[index] = 0
            self._episode[index] = self._next_episode
            self._next_episode += 1
        return True

    def _read(self, index: int, info: dict[str, Any], reward: NDArray[np.float64], dones: NDArray[np.bool_]) -> Told:
        self._corrected += bool(info.get(CORRECTED, False))
        try:  # the contract is about what the environment pays, not about what an edit made of it
            told = self._reader.read(info, info.get(UNEDITED, float(reward[index])), bool(dones[index]))
        except EnvironmentError_ as error:
            step = len(self._rows.reward) - 1
            raise EnvironmentError_(f"window {self._windows}, env {index}, step {step}: {error}") from error
        if told.outcome is not None:
            self._outcomes[told.outcome] += 1
        return told

    def _reward_scale(self, reward: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what VecNormalize multiplied each reward with: 1 without it, 0 where it clipped."""
        scale = self._unclipped_scale()
        return np.where(np.abs(reward * scale) >= self._clip_reward, 0.0, scale)

    def _unclipped_scale(self) -> float:
        """Return what VecNormalize multiplies rewards with before it clips them; 1 without it."""
        normalize = self._normalize
        if normalize is None or not normalize.norm_reward:
            return 1.0
        return 1.0 / float(np.sqrt(float(normalize.ret_rms.var) + normalize.epsilon))

    @property
    def _clip_reward(self) -> float:
        """What VecNormalize clips rewards at; infinite without it."""
        normalize = self._normalize
        return float(normalize.clip_reward) if normalize is not None and normalize.norm_reward else np.inf

    def _on_rollout_end(self) -> None:
        buffer = self._model.rollout_buffer
        assert isinstance(buffer, Membership)
        self._follow_last(buffer.buffer_size - 1, self.locals["new_obs"])
        columns, metadata = self._columns(buffer), self._metadata(buffer)
        self._pending = _Window(self._windows, columns, metadata, self._parameters(), buffer.membership)
        self._windows += 1

    def _follow_last(self, step: int, observed: Any) -> None:
        """Keep what every environment showed after the window's last step."""
        for index in range(self._n_envs):
            parts = isinstance(observed, dict)
            value = {name: values[index] for name, values in observed.items()} if parts else observed[index]
            self._rows.following.setdefault((step, index), value)

    def _columns(self, buffer: RolloutBuffer) -> dict[str, pa.Array]:
        """Return the columns of the window, row = env * n_steps + step (SB3's own flat order)."""
        steps, envs, rows = buffer.buffer_size, buffer.n_envs, self._rows
        told = [rows.told[step][env] for env in range(envs) for step in range(steps)]

        def as_paid(values: list[float | None]) -> pa.Array:
            # SB3's environments pay in float32: round alike, or 0.1 as intended differs from 0.1 as paid
            rounded = [None if value is None else float(self._paid_dtype.type(value)) for value in values]
            return pa.array(rounded, pa.float64())

        done, truncated = _flat(rows.done), _flat(rows.truncated)
        observations, action = self._observations(buffer), self._actions(buffer)
        columns = {
            "seed": pa.array(np.full(len(told), self.seed, np.int32)),
            "window": pa.array(np.full(len(told), self._windows, np.int32)),
            "env": pa.array(np.repeat(np.arange(envs, dtype=np.int32), steps)),
            "step": pa.array(np.tile(np.arange(steps, dtype=np.int32), envs)),
            "episode": pa.array(_flat(rows.episode)),
            "t": pa.array(_flat(rows.t).astype(np.int32)),
            "observation": encode_arrays(observations),
            "next_observation": self._following(buffer, len(told)),
            "action": encode_actions(action)[0],
            "reward": pa.array(_flat(rows.reward)),
            "reward_scale": pa.array(_flat(rows.scale)),
            "intended_reward": as_paid([x.intended_reward for x in told]),
            "untampered_reward": as_paid([x.untampered_reward for x in told]),
            "context": pa.array([x.context for x in told], pa.string()),
            "outcome": pa.array([x.outcome for x in told], pa.string()),
            "value": pa.array(_flat(buffer.values)),
            "log_prob": pa.array(_flat(buffer.log_probs)),
            "advantage": pa.array(_flat(buffer.advantages)),
            "return": pa.array(_flat(buffer.returns)),
            "terminated": pa.array(done & ~truncated),
            "truncated": pa.array(truncated),
        }  # fmt: skip
        if np.isfinite(self._clip_reward):
            columns["unclipped_scale"] = pa.array(_flat(rows.unclipped_scale))
        masks, states = action_masks(buffer), first_lstm_states(buffer)
        if masks is not None:
            columns["action_mask"] = encode_arrays(_flat(masks))
        if states is not None:
            columns["lstm_state"] = self._lstm_states(states, len(told))
        names = sorted({name for x in told for name in x.components or {}})
        for name in names:
            values = [(x.components or {}).get(name) for x in told]
            columns[schema.COMPONENT_PREFIX + name] = pa.array(values, pa.float64())
        return columns

    @staticmethod
    def _observations(buffer: RolloutBuffer) -> Array:
        """Return the observations [N, ...], row = env * n_steps + step; structured for a dictionary."""
        kept: Any = buffer.observations
        if isinstance(kept, dict):
            return pack({name: _flat(values) for name, values in kept.items()})
        return _flat(kept)

    def _following(self, buffer: RolloutBuffer, rows: int) -> pa.Array:
        """Return what was observed after an episode's and the window's end, where no row of the window holds it."""
        form = ObservationForm(buffer.observation_space)
        found: list[bytes | None] = [None] * rows
        for (step, env), value in self._rows.following.items():
            found[env * buffer.buffer_size + step] = form.batch([value]).tobytes()
        width = array_format_of(self._observations(buffer)).width
        return pa.array(found, pa.binary(width))

    def _lstm_states(self, first: NDArray[np.float32], rows: int) -> pa.Array:
        """Return the LSTM states that came in where no row of the window tells: at its first step, inside an episode.

        At the start of an episode they are zero; at any other row they follow from the row before it.
        """
        found: list[bytes | None] = [None] * rows
        for env in np.flatnonzero(self._rows.t[0]):
            found[env * rows // self._n_envs] = first[env].tobytes()
        return pa.array(found, pa.binary(first[0].nbytes))

    def _actions(self, buffer: RolloutBuffer) -> Array:
        """Return the actions: int64 [N] or [N, K], or as drawn [N, K] for a Box."""
        actions = _flat(buffer.actions)
        if isinstance(self.model.action_space, spaces.Box):
            return actions
        return (actions.reshape(-1) if self._discrete else actions).astype(np.int64)

    def _parameters(self) -> dict[str, Tensor]:
        """Return copies of the policy's parameters and of VecNormalize's statistics."""
        found = {name: value.detach().clone() for name, value in self.model.policy.state_dict().items()}
        normalize = self._normalize
        if normalize is not None:
            statistics = {"return": normalize.ret_rms}
            if normalize.norm_obs and isinstance(normalize.obs_rms, dict):
                statistics |= {f"observation.{key}": moments for key, moments in normalize.obs_rms.items()}
            elif normalize.norm_obs:
                statistics["observation"] = normalize.obs_rms
            for name, moments in statistics.items():
                found[f"vecnormalize.{name}.mean"] = as_tensor(np.asarray(moments.mean))
                found[f"vecnormalize.{name}.var"] = as_tensor(np.asarray(moments.var))
        return found

    def _metadata(self, buffer: RolloutBuffer) -> dict[str, str]:
        """Return what a reader needs to know of the window beside its rows."""
        masks, states = action_masks(buffer), first_lstm_states(buffer)
        return {
            "schema_version": str(schema.SCHEMA_VERSION),
            "n_steps": str(buffer.buffer_size),
            "n_envs": str(buffer.n_envs),
            "gamma": repr(float(buffer.gamma)),
            "gae_lambda": repr(float(buffer.gae_lambda)),
            "vf_coef": repr(float(getattr(self.model, "vf_coef", 0.5))),
            "normalize_advantage": str(bool(getattr(self.model, "normalize_advantage", False))).lower(),
            **self._earlier.metadata(),
            **({"clip_reward": repr(self._clip_reward)} if np.isfinite(self._clip_reward) else {}),
            **array_metadata("observation", array_format_of(self._observations(buffer))),
            **encode_actions(self._actions(buffer))[1],
            **({} if masks is None else array_metadata("action_mask", array_format_of(_flat(masks)))),
            **({} if states is None else array_metadata("lstm_state", array_format_of(states))),
        }

    def _write_pending(self) -> None:
        window = self._pending
        if window is None:
            return
        if not self._aside.exists():
            raise AitiaError(f"{self._aside} was removed while seed {self.seed} was training; it is given up")
        rows = len(window.columns["seed"])
        epochs = np.stack(window.membership, axis=1) if window.membership else np.empty((rows, 0), np.int32)
        offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * epochs.shape[1])
        window.columns["minibatches"] = pa.ListArray.from_arrays(offsets, pa.array(epochs.reshape(-1)))
        table = schema.with_metadata(pa.table(window.columns), window.metadata)
        write_table(self._staged.transitions_path(self.seed, window.number), table)
        metadata = {"seed": str(self.seed), "window": str(window.number)}
        write_tensors(self._staged.checkpoint_path(self.seed, window.number), window.parameters, metadata)
        self._pending = None

    def _on_training_end(self) -> None:
        self._write_pending()
        metadata = {"seed": str(self.seed), "windows": str(self._windows), **self._about()}
        write_tensors(self._staged.final_path(self.seed), self._parameters(), metadata)
        remove_folder(self.folder.checkpoints_folder(self.seed))
        publish_folder(self._staged.transitions_folder(self.seed), self.folder.transitions_folder(self.seed))
        publish_folder(self._staged.checkpoints_folder(self.seed), self.folder.checkpoints_folder(self.seed))
        self.discard()
        self.published = True
        self._write_task()

    def _agent(self) -> AgentBlock | None:
        """Return the `agent` block of a task that trains like this; None where no task can, or aitia trains."""
        model = self.model
        if not isinstance(model, OnPolicyAlgorithm) or self.trained_by != SCRIPT:
            return None
        rows, asked, trained = model.n_steps * model.n_envs, model._total_timesteps, model.num_timesteps
        return agent_block(model, asked if math.ceil(asked / rows) * rows == trained else trained)

    def _write_task(self) -> None:
        """Leave a task file next to a recording that is whole, whatever comes of it."""
        try:
            agent = self._agent()
            if agent is not None:
                env = self.model.get_env()
                known = env if isinstance(env, VecEnv) else None
                write_task(self.folder, self.seed, agent, known, Seen(self._outcomes, self._corrected))
        except Exception as error:  # environments of any make are asked how they were made
            log.warning("%s: no task file was written: %s: %s", self.folder.root, type(error).__name__, error)

    def _about(self) -> dict[str, str]:
        """Return what the final checkpoint says of how it was trained."""
        found, agent = json.dumps(recorded_hyperparameters(self.model)), self._agent()
        return {
            "algorithm": type(self.model).__name__,
            "corrected": str(self._corrected),
            "hyperparameters": found,
            "trained_by": self.trained_by,
            **({} if agent is None else {"agent": json.dumps(agent.values)}),
        }

    def _hold(self) -> None:
        """Let commands see that a script is at work here, until it has finished or its process has ended."""
        if self.trained_by == SCRIPT:
            self._held.enter_context(held(recording_lock(self._aside), self._aside, "a script"))

    def discard(self) -> None:
        """Remove what a training left aside."""
        self._held.close()
        if remote(self._aside) is None:
            recording_lock(self._aside).unlink(missing_ok=True)
        remove_folder(self._staged.root)
        remove_folder(self._aside)
