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
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from ...datasets.arrays import Array
from ...datasets.errors import InputError
from ...datasets.files.store import RunFolder
from ...datasets.words import counted
from ..agents.advantages import generalised_advantages
from ..agents.threads import hint_at_threads
from .agent_block import AgentBlock, loop_block
from .agreement import ADAPTER, log_probs, require_agreement, values
from .buffers import UNUSED_ROW
from .provenance import EarlierTraining
from .recorder import learner_metadata
from .task_file import write_task
from .window import Collected, Learned, Step, as_rows, at, each, packed, stacked
from .writer import WindowWriter, parameters_of

log = logging.getLogger("aitia")
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
        self, out: str | Path | RunFolder, seed: int = 0, *, policy: nn.Module, gamma: float = 0.99,
        gae_lambda: float = 0.95, n_envs: int = 1, normalize_advantage: bool = True, vf_coef: float = 0.5,
        algorithm: str = "loop", first_timestep: int = 0,
    ) -> None:  # fmt: skip
        if not isinstance(policy, nn.Module) or not _has(policy, "log_prob"):
            raise InputError(
                f"policy: {type(policy).__name__} was given, expected a torch.nn.Module with the methods "
                f"log_prob(observations, actions) -> [N] and value(observations) -> [N]. {_HOW}"
            )
        self._writer = WindowWriter(out, seed)
        self._policy, self._n_envs, self._gamma, self._gae_lambda = policy, n_envs, gamma, gae_lambda
        self._normalize_advantage, self._vf_coef, self._algorithm = normalize_advantage, vf_coef, algorithm
        self._earlier, self._collected = first_timestep, 0  # environment steps
        self._collecting: nn.Module | None = None
        self._clear()

    def _clear(self) -> None:
        self._steps: list[Step] = []
        self._observations: list[Any] = []
        self._actions: list[Array] = []
        self._log_probs: list[Array] = []
        self._values: list[Array | None] = []

    @property
    def published(self) -> bool:
        """Whether the files are at their places."""
        return self._writer.published

    def __enter__(self) -> LoopRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self._writer.discard()
        elif not self._writer.windows:
            self._writer.discard()
            raise InputError("nothing was recorded: expected recorder.update() after every round of updates")
        else:
            if self._steps:
                log.warning("not recorded, for no update() followed: the last %s", counted(len(self._steps), "step"))
            self._writer.publish(parameters_of(self._policy), {"algorithm": self._algorithm})
            write_task(self._writer, self._agent, None)

    def _agent(self) -> AgentBlock | None:
        """Return the `agent` block of a task that trains like this; None where no task can."""
        if self._algorithm not in (PPO.__name__, A2C.__name__) or not isinstance(self._policy, ActorCriticPolicy):
            return None
        known = {
            "vf_coef": self._vf_coef, "normalize_advantage": self._normalize_advantage, "n_steps": self._n_steps,
            "gamma": float(self._gamma), "gae_lambda": float(self._gae_lambda), **self._minibatching,
            "total_timesteps": self._earlier + self._collected,
        }  # fmt: skip
        return loop_block(self._algorithm, self._policy, self._n_envs, known)

    def step(
        self, observation: Any, action: Any, reward: Any, terminated: Any, truncated: Any, info: Any,
        next_observation: Any, *, log_prob: Any, value: Any = None, reward_scale: Any = 1.0,
    ) -> None:  # fmt: skip
        """Record one step.

        Args:
            observation: as the policy got it.
            action: as the policy drew it, before any clipping.
            reward: as the environment paid it, before any scaling.
            terminated, truncated: as the environment reported.
            info: of this transition: a dict; of several environments a list of dicts, or the dict of a Gymnasium
                vector environment (one with autoreset_mode=SAME_STEP, whose `final_obs` and `final_info` are read).
            next_observation: what the environment showed then; of an ended episode its last observation.
            log_prob: log pi(action|observation); the record is checked by it.
            value: V(observation); None: the advantages are passed to `update`.
            reward_scale: what the reward was multiplied with before it was learned from.
        """
        if np.ndim(_array(reward)) == 0:
            observation, next_observation = _one(observation), _one(next_observation)
            action, reward, log_prob = _one(action), _one(reward), _one(log_prob)
            terminated, truncated, info = _one(terminated), _one(truncated), [info]
        paid = _array(reward).astype(np.float32)  # as it is learned from, and as SB3's environments pay
        terminal, cut = _array(terminated).astype(bool), _array(truncated).astype(bool)
        log_prob = _array(log_prob).astype(np.float32)
        numbers = {"reward": paid, "terminated": terminal, "truncated": cut, "log_prob": log_prob}
        for name, of_envs in numbers.items():
            if of_envs.shape != (self._n_envs,):
                raise InputError(
                    f"step: {name} of shape {of_envs.shape} was given, expected n_envs={self._n_envs} numbers"
                )
        if not self._steps:
            self._begin_window()
        ended, infos, last = terminal | cut, [], {}
        for env in range(self._n_envs):
            own = env_info(info, env) if isinstance(info, Mapping) else dict(info[env])
            if ended[env]:
                shown = own["final_obs"] if "final_obs" in own else at(next_observation, env)
                last[env] = at(self._observed(_one(shown)), 0)
                own = dict(own.get("final_info", own))
            infos.append(own)
        reported = self._writer.read(len(self._steps), infos, paid.astype(np.float64), ended)
        scale = np.broadcast_to(np.array(reward_scale, dtype=np.float64), paid.shape)
        self._steps.append(Step(paid, ended, cut & ~terminal, reported, last, scale))
        self._observations.append(self._observed(observation))
        self._actions.append(_array(action))
        self._log_probs.append(log_prob)
        self._values.append(None if value is None else _array(value).astype(np.float32).reshape(self._n_envs))
        self._last = self._observed(next_observation)

    def _begin_window(self) -> None:
        if self._collecting is None:
            self._writer.begin(self._n_envs, EarlierTraining(self._earlier))
            hint_at_threads(self._policy)
        self._collecting = copy.deepcopy(self._policy)  # the parameters that collect this window

    def _observed(self, observation: Any) -> Any:
        """Return observations [n_envs, ...]; floats in the precision of the policy's parameters."""
        parameter = next(self._policy.parameters(), torch.empty(0))
        precision = torch.empty(0, dtype=parameter.dtype).numpy().dtype

        def kept(part: Any) -> Array:
            values = _array(part)
            if np.issubdtype(values.dtype, np.floating):
                return values.astype(precision)
            return values.astype(np.int8) if values.dtype == bool else values

        return each(kept, observation)

    def update(self, minibatches: Minibatches = (), advantages: Any = None, returns: Any = None) -> None:
        """End a window: check it, and write it with the parameters that collected it.

        Args:
            minibatches: for each epoch its minibatches, each an array of the transitions that it used, counted in the
                order in which they were recorded (step * n_envs + env). Empty: not known; the adjoint of the
                normalisation is then that of the whole window.
            advantages: [steps] or [steps, n_envs]; None: generalised advantage estimation (Schulman et al. 2016,
                arXiv:1506.02438) of the values passed to `step`, with V of the policy after time limits and the last
                step.
            returns: what the values are regressed on, of the same shape; None: advantages + values.

        Raises:
            InputError: see the class.
        """
        if not self._steps or self._collecting is None:
            raise InputError("update() was called without a step since the last update()")
        window = Collected(
            self._steps, stacked(self._observations), np.stack(self._actions), self._last,
            learner_metadata(self._gamma, self._gae_lambda, self._vf_coef, self._normalize_advantage),
        )  # fmt: skip
        log_prob = np.stack(self._log_probs)
        where = f"window {self._writer.windows} (rows are env * n_steps + step)"
        agreed = log_probs(self._collecting, window.observed, window.acted)
        require_agreement(as_rows(log_prob), agreed, where, _CAUSES)
        value = self._known_values(advantages)
        if advantages is None:
            advantage = self._estimated(window, self._collecting, value)
        else:
            advantage = _per_step("advantages", advantages, window.shape)
        if returns is not None:
            returns = _per_step("returns", returns, window.shape)
        elif value is not None:
            returns = advantage + value
        members = [_members(epoch, *window.shape) for epoch in minibatches]
        learned = Learned(value, log_prob, advantage, returns, members)
        self._writer.write(window, learned, parameters_of(self._collecting))
        self._collected, self._n_steps = self._collected + len(window.acted), len(self._steps)
        self._minibatching = _minibatching(members)
        self._clear()

    def _known_values(self, advantages: Any) -> NDArray[np.float32] | None:
        """Return V as passed to `step`, [T, E]; None where it was not."""
        known = [value for value in self._values if value is not None]
        if 0 < len(known) < len(self._steps) or (not known and advantages is None):
            raise InputError(
                f"{len(known)} of {counted(len(self._steps), 'step')} of a window were given a value; expected one "
                "with every step, or with none and update(advantages=...)"
            )
        return np.stack(known) if known else None

    def _estimated(self, window: Collected, policy: nn.Module, value: Any) -> NDArray[np.float32]:
        """Return advantages as Stable-Baselines3 has them: V(last observation) is added at time limits."""
        if not _has(policy, "value"):
            raise InputError(
                f"update() was called without advantages, but {type(policy).__name__} has no method "
                f"value(observations) -> [N], by which they are estimated; expected one of both. {_HOW}"
            )
        rewards = np.stack([step.reward * step.scale for step in window.steps]).astype(np.float32)
        limits = [(t, env) for t, step in enumerate(window.steps) for env in np.flatnonzero(step.truncated).tolist()]
        if limits:
            after = values(policy, packed(stacked([window.steps[t].last[env] for t, env in limits])))
            for place, value_after in zip(limits, after, strict=True):
                rewards[place] += self._gamma * value_after
        following = values(policy, packed(self._last)).astype(np.float32)
        ended = np.stack([step.ended for step in window.steps])
        return generalised_advantages(rewards, value, ended, following, self._gamma, self._gae_lambda)


def _minibatching(members: Sequence[NDArray[np.int32]]) -> dict[str, int]:
    """Return what the minibatches of a window show of hyperparameters."""
    if not members:
        return {}
    used = members[0][members[0] != UNUSED_ROW]
    return {"batch_size": int(np.bincount(used).max(initial=1)), "n_epochs": len(members)}


def env_info(infos: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return what the info of a Gymnasium vector environment says of one of its environments."""
    own: dict[str, Any] = {}
    for key, value in infos.items():
        mask = infos.get(f"_{key}")
        if (key.startswith("_") and key[1:] in infos) or (mask is not None and not mask[index]):
            continue
        own[key] = env_info(value, index) if isinstance(value, Mapping) else value[index]
    return own


def _per_step(name: str, passed: Any, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Return numbers [T] or [T, E], or one after the other [T * E], as float32 [T, E]."""
    numbers = _array(passed).astype(np.float32)
    if numbers.size != shape[0] * shape[1] or (numbers.ndim > 1 and numbers.shape[:2] != shape):
        raise InputError(f"update: {name} of shape {list(numbers.shape)} were given, expected {list(shape)}")
    return numbers.reshape(shape)


def _has(policy: nn.Module, method: str) -> bool:
    return isinstance(policy, ActorCriticPolicy) or callable(getattr(policy, method, None))


def _array(value: Any) -> Array:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _one(value: Any) -> Any:
    """Return the value of one environment as that of a vector of one."""
    return each(lambda part: _array(part)[None], value)


def _members(epoch: Sequence[Any], steps: int, n_envs: int) -> NDArray[np.int32]:
    """Return the minibatch of each row in one epoch, int32 [N], row = env * n_steps + step.

    Raises:
        InputError: a transition that is not there, or is in two minibatches.
    """
    member = np.full(steps * n_envs, UNUSED_ROW, dtype=np.int32)
    for number, chosen in enumerate(epoch):
        rows = _array(chosen).reshape(-1)
        if not np.issubdtype(rows.dtype, np.integer) or ((rows < 0) | (rows >= len(member))).any():
            raise InputError(
                f"update: minibatch {number} was given {chosen}, expected transitions of the window, from 0 to "
                f"{len(member) - 1}"
            )
        if (member[rows] != UNUSED_ROW).any() or len(np.unique(rows)) != len(rows):
            raise InputError(
                f"update: minibatch {number} uses a transition that an earlier one of the same epoch used, or uses it "
                "twice; expected each at most once an epoch"
            )
        member[rows] = number
    return as_rows(member.reshape(steps, n_envs))
