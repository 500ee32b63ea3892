"""A recorder that is fed by hand: the rows, columns and files of `Recorder` for data that SB3 did not collect."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from ...datasets.arrays import Array
from ..environments.spaces import Space
from .agent_block import AgentBlock, loop_block
from .recorder import Recorder, _Window


class FedRecorder(Recorder):
    """Writes windows that its user brings: `begin`, then for each window `add` every step and `close_window`.

    Args:
        out: the run folder.
        seed: the number under which the data are kept.
        algorithm: what the final checkpoint says it was trained with.
    """

    algorithm = ""
    _steps_fed = 0

    def begin(self, action_space: Space, n_envs: int, **model: Any) -> None:
        """Prepare for the first step.

        Args:
            action_space: its kind decides how actions are kept.
            n_envs: environments stepped together.
            model: what a recorder asks of a model: `policy, vf_coef, normalize_advantage, num_timesteps`.
        """
        no_env = object()  # nothing to unwrap
        self.model = SimpleNamespace(action_space=action_space, get_env=lambda: no_env, **model)  # type: ignore[assignment]
        self._scale: NDArray[np.float64] = np.ones(n_envs)
        self._begin(n_envs)
        self._reader.actions = None  # labels are not kept, and the space may be made from values alone

    @property
    def windows(self) -> int:
        """Windows written."""
        return self._windows

    def add(self, rewards: Array, ended: Array, infos: Sequence[Mapping[str, Any]], scale: Any = 1.0) -> None:
        """Add one vector step: rewards and ends [n_envs], and infos as a VecEnv of Stable-Baselines3 gives them."""
        self._scale = np.array(np.broadcast_to(np.asarray(scale, dtype=np.float64), rewards.shape))
        self.locals = {"rewards": rewards, "dones": ended, "infos": infos}
        self._on_step()

    def _reward_scale(self, reward: NDArray[np.float64]) -> NDArray[np.float64]:
        return self._scale

    def rollout(self, observations: Sequence[Any], actions: Sequence[Array], gamma: float, lam: float) -> RolloutBuffer:
        """Return the steps added so far as SB3's rollout buffer: all but values, log-probabilities and advantages.

        Args:
            observations: of each step [n_envs, ...], or a dictionary of such arrays.
            actions: of each step [n_envs] or [n_envs, K].
            gamma, lam: discount and GAE's lambda.
        """
        first, rows, steps = observations[0], self._rows, len(actions)
        kind, kept = RolloutBuffer, np.stack(observations)  # type: Any, Any
        if isinstance(first, dict):
            kind, kept = DictRolloutBuffer, {key: np.stack([o[key] for o in observations]) for key in first}
        space = value_space(first)
        buffer = kind(steps, space, spaces.Discrete(2), "cpu", gamma=gamma, gae_lambda=lam, n_envs=self._n_envs)
        buffer.observations, buffer.actions = kept, np.stack(actions)
        buffer.rewards = (np.stack(rows.reward) * np.stack(rows.scale)).astype(np.float32)
        buffer.episode_starts[1:] = np.stack(rows.done)[:-1]
        buffer.episode_starts[0] = rows.t[0] == 0
        assert isinstance(buffer, RolloutBuffer)
        return buffer

    @property
    def time_limits(self) -> dict[tuple[int, int], Any]:
        """By (step, env), the last observation of the episodes of this window that a time limit ended."""
        return {place: kept for place, kept in self._rows.following.items() if self._rows.truncated[place[0]][place[1]]}

    @property
    def ended(self) -> NDArray[np.bool_]:
        """Which episodes ended with the last step, [n_envs]."""
        return self._rows.done[-1]

    def close_window(
        self, buffer: RolloutBuffer, last: Any, parameters: dict[str, Tensor],
        membership: list[NDArray[np.int32]], unknown: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """Write the window whose steps were added.

        Args:
            buffer: `rollout`, with what was learned.
            last: what was observed after the last step, [n_envs, ...].
            parameters: those that collected the window.
            membership: for each epoch the minibatch that used each row, row = env * n_steps + step.
            unknown: columns that are null.
        """
        self._follow_last(buffer.buffer_size - 1, last)
        columns = self._columns(buffer)
        columns |= {name: pa.nulls(len(columns[name]), pa.float32()) for name in unknown}
        self._pending = _Window(self._windows, columns, self._metadata(buffer), parameters, membership)
        self._known = _hyperparameters(buffer, membership)
        self._steps_fed += buffer.buffer_size * buffer.n_envs
        self._windows += 1
        self._on_rollout_start()

    def finish(self) -> None:
        """Move the files to their places."""
        self._on_training_end()

    def _agent(self) -> AgentBlock | None:
        policy: Any = getattr(self.model, "policy", None)
        if self.algorithm not in (PPO.__name__, A2C.__name__) or not isinstance(policy, ActorCriticPolicy):
            return None
        model: Any = self.model
        known = {"vf_coef": model.vf_coef, "normalize_advantage": model.normalize_advantage, **self._known}
        known["total_timesteps"] = self._earlier.timesteps + self._steps_fed
        return loop_block(self.algorithm, policy, self._n_envs, known)

    def _about(self) -> dict[str, str]:
        return {"algorithm": self.algorithm, "trained_by": self.trained_by}


def _hyperparameters(buffer: RolloutBuffer, membership: Sequence[NDArray[np.int32]]) -> dict[str, Any]:
    """Return what a window shows of the hyperparameters that it was learned from with."""
    found = {"n_steps": buffer.buffer_size, "gamma": float(buffer.gamma), "gae_lambda": float(buffer.gae_lambda)}
    if membership:
        used = membership[0][membership[0] >= 0]
        found |= {"batch_size": int(np.bincount(used).max(initial=1)), "n_epochs": len(membership)}
    return found


def value_space(value: Any) -> Space:
    """Return a space of arrays like those given, [n_envs, ...]; its bounds mean nothing."""
    if isinstance(value, dict):
        return spaces.Dict({key: value_space(part) for key, part in value.items()})
    if np.issubdtype(value.dtype, np.integer):
        limits = np.iinfo(value.dtype)  # one less than the highest: SB3 takes 0 to 255 for an image and turns its axes
        return spaces.Box(limits.min, limits.max - 1, value.shape[1:], value.dtype)
    return spaces.Box(-np.inf, np.inf, value.shape[1:], value.dtype)


def action_space_of(actions: Array) -> Space:
    """Return a space of the kind of actions [n_envs] or [n_envs, K]; the number of choices means nothing."""
    if np.issubdtype(actions.dtype, np.floating):
        return spaces.Box(-np.inf, np.inf, actions.shape[1:], actions.dtype)
    return spaces.Discrete(2) if actions.ndim == 1 else spaces.MultiDiscrete([2] * actions.shape[1])


def env_info(infos: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return what the info of a Gymnasium vector environment says of one of its environments."""
    found: dict[str, Any] = {}
    for key, given in infos.items():
        mask = infos.get(f"_{key}")
        if (key.startswith("_") and key[1:] in infos) or (mask is not None and not mask[index]):
            continue
        found[key] = env_info(given, index) if isinstance(given, Mapping) else given[index]
    return found
