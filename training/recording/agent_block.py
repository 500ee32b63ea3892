"""The `agent` block of a task, from a model that a script trained: what a task needs to train the same agent."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor, VecNormalize, VecTransposeImage

from ..agents.spec import ALGORITHMS, NOT_HYPERPARAMETERS, PPO_DEFAULTS, SCHEDULED, AgentSpec, algorithm_class
from .provenance import comparable

FILL_IN = "FILL_IN"  # stands in a written task file where only a person knows the value
_NOT_PLAIN = object()
_AS_NEEDED = ("rollout_buffer_class", "rollout_buffer_kwargs")  # set by the algorithm itself
_ONLY_THE_LOOP_KNOWS = ("learning_rate", "batch_size", "n_epochs", "ent_coef", "clip_range", "max_grad_norm")
_NOT_OF_A_LOOP = ("observation_space", "action_space", "lr_schedule", "optimizer_class", "optimizer_kwargs")
_LOOKED_AT = (1.0, 0.75, 0.5, 0.25, 0.1, 0.0)  # remaining share of the training at which a schedule is looked at
_AS_RECORDED = (VecMonitor, VecTransposeImage)  # change neither observations as the policy gets them nor rewards


class AgentBlock(NamedTuple):
    """What a task says of an agent.

    Attributes:
        values: the keys of the block; `FILL_IN` where a task cannot say what the script did.
        unsaid: what a task cannot say, each in words. As long as there is any, the recording fits no task.
    """

    values: dict[str, Any]
    unsaid: list[str]


def agent_block(model: OnPolicyAlgorithm, total_timesteps: int) -> AgentBlock:
    """Return the `agent` block of a model: its own values, where they are not Stable-Baselines3's.

    Hyperparameters for which a task has other defaults than Stable-Baselines3 are always there.

    Args:
        model: the trained model.
        total_timesteps: what it was trained for, with the steps before the recording.
    """
    algorithm, unsaid = type(model).__name__, _vec_env_remarks(model.get_env())
    if algorithm not in ALGORITHMS:
        unsaid.append(f"the algorithm {algorithm}: a task has {', '.join(ALGORITHMS)}")
    policy = _alias(model.policy, model.policy_aliases, unsaid)
    hyperparameters: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(model).__init__).parameters.items():
        if name in (*NOT_HYPERPARAMETERS, *_AS_NEEDED, "policy_kwargs") or not hasattr(model, name):
            continue
        value = _said(name, getattr(model, name))
        if value is _NOT_PLAIN:
            unsaid.append(f"{name}: {_in_words(name, getattr(model, name))}")
            value = FILL_IN
        if value != _said(name, parameter.default) or (name in PPO_DEFAULTS and algorithm != "A2C"):
            hyperparameters[name] = value
    optimiser, policy_kwargs = _optimiser(algorithm, model.policy_kwargs)
    hyperparameters |= {**optimiser, **_policy_kwargs(policy_kwargs, unsaid)}
    values = {"algorithm": algorithm, "policy": policy, "total_timesteps": total_timesteps, "n_envs": model.n_envs}
    return AgentBlock({**values, "hyperparameters": hyperparameters}, unsaid)


def loop_block(algorithm: str, policy: ActorCriticPolicy, n_envs: int, known: Mapping[str, Any]) -> AgentBlock:
    """Return the `agent` block of a training loop of one's own: what its recording shows, and what is to be filled in.

    Args:
        algorithm: what the loop implements, PPO or A2C.
        policy: its policy.
        n_envs: environments stepped together.
        known: `total_timesteps`, and hyperparameters.
    """
    unsaid: list[str] = []
    parameters = AgentSpec(algorithm=algorithm).parameters
    defaults = inspect.signature(type(policy).__init__).parameters
    own = {
        name: value
        for name, value in policy._get_constructor_parameters().items()
        if name not in _NOT_OF_A_LOOP and name in defaults and value != defaults[name].default
    }
    hyperparameters = {
        **{name: FILL_IN for name in _ONLY_THE_LOOP_KNOWS if name in parameters},
        **{name: value for name, value in known.items() if name in parameters},
        **_policy_kwargs(own, unsaid),
    }
    values = {
        "algorithm": algorithm, "policy": _alias(policy, algorithm_class(algorithm).policy_aliases, unsaid),
        "total_timesteps": known["total_timesteps"], "n_envs": n_envs,
    }  # fmt: skip
    return AgentBlock({**values, "hyperparameters": hyperparameters}, unsaid)


def _policy_kwargs(kwargs: Mapping[str, Any], unsaid: list[str]) -> dict[str, Any]:
    """Return the hyperparameter `policy_kwargs`, if there are any; notes those that a task cannot say."""
    unsaid += [f"policy_kwargs.{name}: {value}" for name, value in kwargs.items() if not is_plain(value)]
    kept = {name: plain(value) for name, value in kwargs.items() if is_plain(value)}
    return {"policy_kwargs": kept} if kept else {}


def _alias(policy: Any, aliases: Mapping[str, type], unsaid: list[str]) -> str:
    """Return the name that a task has for the class of a policy; notes where it has none."""
    for name, kind in aliases.items():
        if kind is type(policy):
            return name
    unsaid.append(f"the policy class {type(policy).__qualname__}: a task has {', '.join(aliases)}")
    return FILL_IN


def plain(value: Any) -> Any:
    """Return a value as YAML and JSON can say it; `_NOT_PLAIN` where they cannot (a class, a function)."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        parts = {str(name): plain(part) for name, part in value.items()}
        return _NOT_PLAIN if any(part is _NOT_PLAIN for part in parts.values()) else parts
    if isinstance(value, Sequence):
        items = [plain(part) for part in value]
        return _NOT_PLAIN if any(part is _NOT_PLAIN for part in items) else items
    return _NOT_PLAIN


def is_plain(value: Any) -> bool:
    """Return whether YAML and JSON can say a value."""
    return plain(value) is not _NOT_PLAIN


def _said(name: str, value: Any) -> Any:
    """Return a hyperparameter as a task says it; `_NOT_PLAIN` where it cannot."""
    if name in SCHEDULED and callable(value):
        said = said_schedule(_LOOKED_AT, [float(value(left)) for left in _LOOKED_AT])
        return _NOT_PLAIN if said is None else said
    return plain(value)


def said_schedule(left: Sequence[float], values: Sequence[float]) -> float | str | None:
    """Return how a task says a schedule: a number, or `lin_START`; None where it cannot.

    Args:
        left: remaining shares of the training, the first 1.
        values: the schedule's there.
    """
    start = float(values[0])
    if len(set(values)) == 1:
        return start
    pairs = zip(left, values, strict=True)
    linear = start > 0.0 and all(
        math.isclose(value, start * share, rel_tol=1e-9, abs_tol=1e-15) for share, value in pairs
    )
    return f"lin_{start!r}" if linear else None


def _in_words(name: str, value: Any) -> str:
    recorded = comparable(name, value)
    if name in SCHEDULED and isinstance(recorded, list):
        return f"a schedule from {recorded[0]:g} over {recorded[1]:g} to {recorded[2]:g}; a task has numbers, lin_START"
    return str(value)


def _optimiser(algorithm: str, policy_kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return A2C's hyperparameters of its optimiser, which it keeps in `policy_kwargs`, and what is left of these."""
    left = dict(policy_kwargs)
    if algorithm != "A2C":
        return {}, left
    if "optimizer_class" not in left:
        return {"use_rms_prop": False}, left
    passed = left.get("optimizer_kwargs") or {}
    usual = {name: parameter.default for name, parameter in inspect.signature(torch.optim.RMSprop).parameters.items()}
    same = all(name == "eps" or (name in usual and usual[name] == value) for name, value in passed.items())
    if left["optimizer_class"] is torch.optim.RMSprop and same:
        own = {name: value for name, value in left.items() if name not in ("optimizer_class", "optimizer_kwargs")}
        eps = passed.get("eps", usual["eps"])
        return ({} if eps == 1e-5 else {"rms_prop_eps": eps}), own
    return {}, left


def _vec_env_remarks(env: VecEnv | None) -> list[str]:
    """Return what stands around a model's environments that a task cannot say."""
    remarks = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            settings = ("norm_obs", "norm_reward", "clip_obs", "clip_reward", "gamma", "epsilon")
            remarks.append(f"VecNormalize({', '.join(f'{name}={getattr(env, name)!r}' for name in settings)})")
        elif not isinstance(env, _AS_RECORDED):
            remarks.append(f"the wrapper {type(env).__name__} around all environments")
        env = env.venv
    return remarks
