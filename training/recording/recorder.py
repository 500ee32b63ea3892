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

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize, unwrap_vec_normalize
from torch import Tensor, as_tensor

from ...datasets.arrays import Array
from ...datasets.errors import InputError
from ...datasets.files.store import RunFolder
from ..agents.threads import hint_at_threads
from .agent_block import AgentBlock, agent_block
from .buffers import Membership, action_masks, first_lstm_states, known_buffers, rebuilt
from .provenance import SCRIPT, EarlierTraining, recorded_hyperparameters
from .task_file import write_task
from .window import Collected, Learned, Step
from .writer import WindowWriter, parameters_of


class ModelRecorder(BaseCallback):
    """What the recorders of Stable-Baselines3's algorithms share: the steps of a vector environment, as records."""

    def __init__(self, out: str | Path | RunFolder, seed: int = 0, *, trained_by: str = SCRIPT) -> None:
        super().__init__()
        self._writer = WindowWriter(out, seed, trained_by)
        self._steps: list[Step] = []
        self._normalize: VecNormalize | None = None

    @property
    def published(self) -> bool:
        """Whether the files are at their places."""
        return self._writer.published

    def discard(self) -> None:
        """Remove what has not been published."""
        self._writer.discard()

    def _begin(self, n_envs: int) -> None:
        """Prepare for the steps of a training on `n_envs` environments."""
        model, space = self.model, self.model.action_space
        actions = int(space.n) if isinstance(space, spaces.Discrete) else None
        earlier = EarlierTraining(int(model.num_timesteps), int(getattr(model, "_n_updates", 0)))
        self._writer.begin(n_envs, earlier, actions)
        hint_at_threads(model.policy)

    def _on_step(self) -> bool:
        infos, ended = self.locals["infos"], np.asarray(self.locals["dones"], dtype=bool)
        normalize, scale = self._normalize, _scale(self._normalize)
        # a copy, for SB3 adds gamma V(terminal) to its own in place
        paid = np.array(self.locals["rewards"] if normalize is None else normalize.get_original_reward())
        reward = paid.astype(np.float64)
        truncated = np.array([bool(info.get("TimeLimit.truncated", False)) for info in infos]) & ended
        last = {
            env: infos[env]["terminal_observation"]
            for env in np.flatnonzero(ended).tolist()
            if truncated[env] or "terminal_observation" in infos[env]
        }
        reported = self._writer.read(len(self._steps), infos, reward, ended)
        scales = np.where(np.abs(reward * scale) >= _clip(normalize), 0.0, scale)
        self._steps.append(Step(paid, ended, truncated, reported, last, scales, scale))
        return True

    def _drawn(self, actions: Array) -> Array:
        """Return actions [T, E, K] as SB3 keeps them: [T, E] where each is one choice."""
        return actions[..., 0] if isinstance(self.model.action_space, spaces.Discrete) else actions

    def _parameters(self) -> dict[str, Tensor]:
        """Return copies of the policy's parameters and of VecNormalize's statistics."""
        parameters, normalize = parameters_of(self.model.policy), self._normalize
        if normalize is not None:
            statistics = {"return": normalize.ret_rms}
            if normalize.norm_obs and isinstance(normalize.obs_rms, dict):
                statistics |= {f"observation.{key}": moments for key, moments in normalize.obs_rms.items()}
            elif normalize.norm_obs:
                statistics["observation"] = normalize.obs_rms
            for name, moments in statistics.items():
                parameters[f"vecnormalize.{name}.mean"] = as_tensor(np.asarray(moments.mean))
                parameters[f"vecnormalize.{name}.var"] = as_tensor(np.asarray(moments.var))
        return parameters

    def _about(self) -> dict[str, str]:
        """Return what the final checkpoint says of how it was trained."""
        return {
            "algorithm": type(self.model).__name__,
            "corrected": str(self._writer.corrected),
            "hyperparameters": json.dumps(recorded_hyperparameters(self.model)),
        }


class Recorder(ModelRecorder):
    """Callback that writes `transitions/seed=J` and `checkpoints/seed=J` of a run folder.

    The files are moved to their places when the training ends, so a training that fails leaves nothing under the
    final names.

    Args:
        out: the run folder: a path, or an address on an object store (docs/run-folder.md).
        seed: the number under which this training is kept.
        trained_by: `provenance.SCRIPT`, or `AITIA` where aitia itself trains.

    Raises:
        EnvironmentError_: a reward that is not finite, or an info that breaks the contract.
        InputError: an algorithm or space that cannot be recorded so far.
    """

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
        model.rollout_buffer = rebuilt(model.rollout_buffer, Membership)
        env = model.get_env()
        assert env is not None
        self._normalize = unwrap_vec_normalize(env)
        self._window: tuple[Collected, Learned, dict[str, Tensor]] | None = None  # waits for its update to finish
        self._begin(model.n_envs)

    def _on_rollout_start(self) -> None:
        self._write()
        self._steps = []

    def _on_rollout_end(self) -> None:
        model = self.model
        assert isinstance(model, OnPolicyAlgorithm)
        buffer: Any = model.rollout_buffer
        assert isinstance(buffer, RolloutBuffer) and isinstance(buffer, Membership)
        seen: Any = buffer.observations
        learner = learner_metadata(
            buffer.gamma, buffer.gae_lambda, model.vf_coef, getattr(model, "normalize_advantage", False)
        )
        window = Collected(
            steps=self._steps, actions=self._drawn(buffer.actions),
            observations=dict(seen) if isinstance(seen, dict) else seen,  # the update reorders those in the buffer
            following=self.locals["new_obs"], learner=learner, clip_reward=_clip(self._normalize),
            action_masks=action_masks(buffer), lstm_states=first_lstm_states(buffer),
        )  # fmt: skip
        learned = Learned(buffer.values, buffer.log_probs, buffer.advantages, buffer.returns, buffer.membership)
        self._window = (window, learned, self._parameters())

    def _write(self) -> None:
        if self._window is not None:
            self._writer.write(*self._window)
            self._window = None

    def _on_training_end(self) -> None:
        self._write()
        agent = self._agent()
        said = {} if agent is None else {"agent": json.dumps(agent.values)}
        self._writer.publish(self._parameters(), {**self._about(), **said})
        write_task(self._writer, lambda: agent, self.model.get_env())

    def _agent(self) -> AgentBlock | None:
        """Return the `agent` block of a task that trains like this; None where aitia trains."""
        model = self.model
        if not isinstance(model, OnPolicyAlgorithm) or self._writer.trained_by != SCRIPT:
            return None
        rows, asked, trained = model.n_steps * model.n_envs, model._total_timesteps, model.num_timesteps
        return agent_block(model, asked if math.ceil(asked / rows) * rows == trained else trained)


def learner_metadata(gamma: float, gae_lambda: float, vf_coef: float, normalize_advantage: bool) -> dict[str, str]:
    """Return what a transitions table says of an on-policy learner."""
    numbers = {"gamma": gamma, "gae_lambda": gae_lambda, "vf_coef": vf_coef}
    flag = str(bool(normalize_advantage)).lower()
    return {**{name: repr(float(value)) for name, value in numbers.items()}, "normalize_advantage": flag}


def _scale(normalize: VecNormalize | None) -> float:
    """Return what VecNormalize multiplies rewards with before it clips them; 1 without it."""
    if normalize is None or not normalize.norm_reward:
        return 1.0
    return 1.0 / float(np.sqrt(float(normalize.ret_rms.var) + normalize.epsilon))


def _clip(normalize: VecNormalize | None) -> float:
    """Return what VecNormalize clips rewards at; infinite without it."""
    return float(normalize.clip_reward) if normalize is not None and normalize.norm_reward else np.inf
