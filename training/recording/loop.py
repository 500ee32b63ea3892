"""The recorder of a training loop of your own: the run folder that `Recorder` writes, without Stable-Baselines3's loop.

::

    with LoopRecorder("runs/mine", seed=0, policy=policy, gamma=0.99, gae_lambda=0.95) as recorder:
        ...
        recorder.step(observation, action, reward, terminated, truncated, info, next_observation,
                      log_prob=log_prob, value=value)
        ...
        recorder.update(minibatches=minibatches)  # after the optimiser's steps: the window is written

A window begins with the first step after an update, with the parameters that the policy has then. docs/recording.md.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from ...datasets.arrays import Array, pack
from ...datasets.errors import InputError
from ...datasets.files.store import RunFolder
from ...datasets.words import counted
from .agreement import ADAPTER, log_probs, require_agreement, values
from .buffers import UNUSED_ROW
from .feed import FedRecorder, action_space_of, env_info
from .recorder import _flat, log

Minibatches = Sequence[Sequence[Any]]
_CAUSES = (
    "Did the parameters change since the first step of the window (call update() after every round of updates)? Is "
    "the policy in another mode (dropout, batch norm)? Was the action clipped, or the observation changed, before it "
    "was recorded?"
)

_HOW = (
    "A module of your own is accepted in eight lines, as policy=Recorded(module), with log_prob=recorded.log_prob(...) "
    f"in step():\n\n{ADAPTER}"
)


class LoopRecorder:
    """Context manager that writes `transitions/seed=J` and `checkpoints/seed=J` of a run folder.

    The files come to their places when the block ends; a block that raises leaves nothing there.

    Args:
        out: the run folder.
        seed: the number under which this training is kept.
        policy: a `torch.nn.Module` with the methods of `agreement.RecordedPolicy`, or an actor-critic policy of
            Stable-Baselines3.
        gamma, gae_lambda: discount and GAE's lambda.
        n_envs: environments stepped together. Where rewards are single numbers (one environment), `step` takes single
            values, else arrays [n_envs, ...].
        normalize_advantage: whether the loop centres and scales the advantages of each minibatch.
        vf_coef: weight of the value loss.
        algorithm: what the loop implements: `PPO` or `A2C`, where `aitia run` is to take the seed for one of a task.
        first_timestep: environment steps that the policy was trained for before.

    Raises:
        InputError: a policy without `log_prob`, rows whose `log_prob` is not the policy's, shapes that do not fit.
        EnvironmentError_: a reward that is not finite, or an info that breaks the contract.
    """

    def __init__(
        self,
        out: str | Path | RunFolder,
        seed: int = 0,
        *,
        policy: nn.Module,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        n_envs: int = 1,
        normalize_advantage: bool = True,
        vf_coef: float = 0.5,
        algorithm: str = "loop",
        first_timestep: int = 0,
    ) -> None:
        if not isinstance(policy, nn.Module) or not (
            _says(policy, "log_prob") or isinstance(policy, ActorCriticPolicy)
        ):
            raise InputError(
                f"policy: {type(policy).__name__} was given, expected a torch.nn.Module with the methods "
                f"log_prob(observations, actions) -> [N] and value(observations) -> [N]. {_HOW}"
            )
        self._recorder = FedRecorder(out, seed)
        self._recorder.algorithm = algorithm
        self._policy, self._n_envs, self._gamma, self._gae_lambda = policy, n_envs, gamma, gae_lambda
        self._about = {
            "policy": policy, "normalize_advantage": normalize_advantage, "vf_coef": vf_coef,
            "num_timesteps": first_timestep,
        }  # fmt: skip
        self._begun = False
        self._clear()

    def _clear(self) -> None:
        self._observations: list[Any] = []
        self._actions: list[Array] = []
        self._log_probs: list[Array] = []
        self._values: list[Array | None] = []

    @property
    def published(self) -> bool:
        """Whether the files are at their places."""
        return self._recorder.published

    def __enter__(self) -> LoopRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._recorder.discard()
        elif not self._recorder.windows:
            self._recorder.discard()
            raise InputError("nothing was recorded: expected recorder.update() after every round of updates")
        else:
            if self._actions:
                log.warning("not recorded, for no update() followed: the last %s", counted(len(self._actions), "step"))
            self._recorder.finish()

    def step(
        self,
        observation: Any,
        action: Any,
        reward: Any,
        terminated: Any,
        truncated: Any,
        info: Any,
        next_observation: Any,
        *,
        log_prob: Any,
        value: Any = None,
        reward_scale: Any = 1.0,
    ) -> None:
        """Record one step.

        Args:
            observation: as the policy got it.
            action: as the policy drew it, before any clipping.
            reward: as the environment paid it, before any scaling.
            terminated, truncated: as the environment said.
            info: of this transition: a dict; of several environments a list of dicts, or the dict of a Gymnasium
                vector environment (one with autoreset_mode=SAME_STEP, whose `final_obs` and `final_info` are read).
            next_observation: what the environment showed then; of an ended episode its last observation.
            log_prob: log pi(action|observation); the record is checked by it.
            value: V(observation); None: `update` is given the advantages.
            reward_scale: what the reward was multiplied with before it was learned from.
        """
        if np.ndim(_array(reward)) == 0:
            observation, next_observation = _one(observation), _one(next_observation)
            action, reward, terminated, truncated, log_prob = map(
                _one, (action, reward, terminated, truncated, log_prob)
            )
            value, info = None if value is None else _one(value), [info]
        paid = _array(reward).astype(np.float32)  # as it is learned from, and as SB3's environments pay
        ends, cut = _array(terminated).astype(bool), _array(truncated).astype(bool)
        drawn, given = _array(action), _array(log_prob).astype(np.float32)
        for name, found in (("reward", paid), ("terminated", ends), ("truncated", cut), ("log_prob", given)):
            if found.shape != (self._n_envs,):
                raise InputError(
                    f"step: {name} of shape {found.shape} was given, expected n_envs={self._n_envs} numbers"
                )
        if not self._actions:
            self._begin_window(drawn)
        observed = self._observed(observation)
        infos = [self._as_vec_env(info, next_observation, i, ends, cut) for i in range(self._n_envs)]
        self._recorder.add(paid, ends | cut, infos, reward_scale)
        self._observations.append(observed)
        self._actions.append(drawn)
        self._log_probs.append(given)
        self._values.append(None if value is None else _array(value).astype(np.float32).reshape(self._n_envs))
        self._last = self._observed(next_observation)

    def _begin_window(self, drawn: Array) -> None:
        if not self._begun:
            self._recorder.begin(action_space_of(drawn), self._n_envs, **self._about)
            self._begun = True
        self._collecting = copy.deepcopy(self._policy)  # the parameters that collect this window

    def _observed(self, observation: Any) -> Any:
        """Return observations [n_envs, ...]; floats in the precision of the policy's parameters."""
        if isinstance(observation, Mapping):
            return {key: self._observed(part) for key, part in observation.items()}
        found = _array(observation)
        if not np.issubdtype(found.dtype, np.floating):
            return found.astype(np.int8) if found.dtype == bool else found
        parameter = next(self._policy.parameters(), torch.empty(0))
        return found.astype(torch.empty(0, dtype=parameter.dtype).numpy().dtype)

    def _as_vec_env(self, info: Any, after: Any, index: int, ends: Array, cut: Array) -> dict[str, Any]:
        """Return the info of one environment as a VecEnv of Stable-Baselines3 gives it."""
        told = env_info(info, index) if isinstance(info, Mapping) else dict(info[index])
        if not ends[index] and not cut[index]:
            return told
        last = told["final_obs"] if "final_obs" in told else _of_env(after, index)
        told = dict(told.get("final_info", told))
        observed = self._observed(_one(last))
        return {**told, "terminal_observation": _of_env(observed, 0), "TimeLimit.truncated": not ends[index]}

    def update(self, minibatches: Minibatches = (), advantages: Any = None, returns: Any = None) -> None:
        """End a window: check it, and write it with the parameters that collected it.

        Args:
            minibatches: for each epoch its minibatches, each an array of the transitions that it used, counted in the
                order in which they were recorded (step * n_envs + env). Empty: not known; the adjoint of the
                normalisation is then that of the whole window.
            advantages: [steps] or [steps, n_envs]; None: generalised advantage estimation (Schulman et al. 2016,
                arXiv:1506.02438) of the values given, with V of the policy after time limits and the last step.
            returns: what the values are regressed on, of the same shape; None: advantages + values.

        Raises:
            InputError: see the class.
        """
        if not self._actions:
            raise InputError("update() was called without a step since the last update()")
        recorder, steps = self._recorder, len(self._actions)
        buffer = recorder.rollout(self._observations, self._actions, self._gamma, self._gae_lambda)
        buffer.log_probs = np.stack(self._log_probs)
        self._check(buffer)
        unknown = self._learn(buffer, advantages, returns)
        membership = [_members(epoch, steps, self._n_envs) for epoch in minibatches]
        parameters = {name: value.detach().clone() for name, value in self._collecting.state_dict().items()}
        recorder.close_window(buffer, self._last, parameters, membership, unknown)
        self._clear()

    def _check(self, buffer: RolloutBuffer) -> None:
        rows = (self._recorder._observations(buffer), self._recorder._actions(buffer))
        where = f"window {self._recorder.windows} (rows are env * n_steps + step)"
        require_agreement(_flat(buffer.log_probs), log_probs(self._collecting, *rows), where, _CAUSES)

    def _learn(self, buffer: RolloutBuffer, advantages: Any, returns: Any) -> list[str]:
        """Fill in values, advantages and returns; return the names of columns that are not known."""
        known = [found for found in self._values if found is not None]
        if len(known) == len(self._actions):
            buffer.values = np.stack(known)
        elif known or advantages is None:
            raise InputError(
                f"{len(known)} of {counted(len(self._actions), 'step')} of a window were given a value; "
                "expected one with every "
                "step, or with none and update(advantages=...)"
            )
        if advantages is None and not (_says(self._policy, "value") or isinstance(self._policy, ActorCriticPolicy)):
            raise InputError(
                f"update() was called without advantages, but {type(self._policy).__name__} has no method "
                f"value(observations) -> [N], by which they are estimated; expected one of both. {_HOW}"
            )
        if advantages is None:
            self._estimate(buffer)
        else:
            shape = buffer.rewards.shape
            buffer.advantages = _array(advantages).astype(np.float32).reshape(shape)
            given = buffer.advantages + buffer.values if returns is None else _array(returns).reshape(shape)
            buffer.returns = given.astype(np.float32)
        return [] if known else ["value", *(["return"] if returns is None else [])]

    def _estimate(self, buffer: RolloutBuffer) -> None:
        """Compute advantages as Stable-Baselines3 does: V(terminal observation) is added at time limits."""
        limits = self._recorder.time_limits
        if limits:
            after = values(self._collecting, _stacked(list(limits.values())))
            for (step, env), value in zip(limits, after, strict=True):
                buffer.rewards[step, env] += self._gamma * value
        last = values(self._collecting, _packed(self._last))
        buffer.compute_returns_and_advantage(torch.as_tensor(last, dtype=torch.float32), self._recorder.ended)


def _says(policy: nn.Module, method: str) -> bool:
    return callable(getattr(policy, method, None))


def _array(value: Any) -> Array:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _one(value: Any) -> Any:
    """Return the value of one environment as that of a vector of one."""
    if isinstance(value, Mapping):
        return {key: _one(part) for key, part in value.items()}
    return _array(value)[None]


def _of_env(value: Any, index: int) -> Any:
    if isinstance(value, Mapping):
        return {key: part[index] for key, part in value.items()}
    return value[index]


def _packed(observed: Any) -> Array:
    return pack(observed) if isinstance(observed, dict) else observed


def _stacked(observed: Sequence[Any]) -> Array:
    first = observed[0]
    if isinstance(first, dict):
        return pack({key: np.stack([o[key] for o in observed]) for key in first})
    return np.stack(observed)


def _members(epoch: Sequence[Any], steps: int, n_envs: int) -> NDArray[np.int32]:
    """Return the minibatch of each row in one epoch, int32 [N], row = env * n_steps + step.

    Raises:
        InputError: a transition that is not there, or is in two minibatches.
    """
    found = np.full(steps * n_envs, UNUSED_ROW, dtype=np.int32)
    for number, chosen in enumerate(epoch):
        rows = _array(chosen).reshape(-1)
        if not np.issubdtype(rows.dtype, np.integer) or ((rows < 0) | (rows >= len(found))).any():
            raise InputError(
                f"update: minibatch {number} was given {chosen}, expected transitions of the window, from 0 to "
                f"{len(found) - 1}"
            )
        if (found[rows] != UNUSED_ROW).any() or len(np.unique(rows)) != len(rows):
            raise InputError(
                f"update: minibatch {number} uses a transition that an earlier one of the same epoch used, or uses it "
                "twice; expected each at most once an epoch"
            )
        found[rows] = number
    return _flat(found.reshape(steps, n_envs))
