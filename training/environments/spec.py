"""Making environments from what a task names, and probing that they keep the contract."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import gymnasium as gym
import numpy as np

from ...datasets.arrays import flat_numbers
from ...datasets.errors import EnvironmentError_
from .actions import allowed_action
from .contract import InfoReader
from .hooks import HookedEnv
from .spaces import (
    ObservationForm,
    Space,
    choices,
    env_action,
    named_action,
    policy_observation_space,
    require_action_space,
)

Env = gym.Env[Any, Any]
DRAWING: tuple[Literal["rgb_array", "ansi"], ...] = ("rgb_array", "ansi")  # a state as a picture, else as text
_PROBE_EPISODES = 3
_REPEATED_STEPS = 100
_PROBE_STEPS = 20_000


@dataclass(frozen=True)
class EnvSpec:
    """An environment as a task names it: `id` and keyword arguments.

    Attributes:
        id: a Gymnasium id (`aitia/ArrowMaze-v0`), or `module:name`: a callable that returns an
            environment if the module has that attribute, else Gymnasium's own `module:id`.
        kwargs: keyword arguments.
        hooks: `module:callable` that tells what the environment's infos do not; None: nothing.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    hooks: str | None = None

    def make(self, render: bool = False) -> Env:
        """Make the environment; with `render` in mode `rgb_array`, else `ansi`, if it has one.

        Raises:
            EnvironmentError_: it does not exist, or does not take the arguments.
        """
        if not render:
            return self._make(dict(self.kwargs))
        plain = self._make(dict(self.kwargs))
        try:
            modes = plain.metadata.get("render_modes") or []
            mode = next((mode for mode in DRAWING if mode in modes), None)
            return plain if mode is None else self._make({**self.kwargs, "render_mode": mode})
        except EnvironmentError_:  # it names the mode, but its maker takes no render_mode
            return plain

    def _make(self, arguments: dict[str, Any]) -> Env:
        factory = self._factory()
        try:
            if factory is not None:
                env = factory(**arguments)
            else:
                env = gym.make(self.id, disable_env_checker=True, **arguments)
        except EnvironmentError_:
            raise
        except (gym.error.Error, ImportError) as error:
            raise EnvironmentError_(
                f"environment `{self.id}` cannot be made: {str(error).rstrip('.')}; expected a Gymnasium id or "
                "module:name"
            ) from error
        except TypeError as error:
            raise EnvironmentError_(
                f"environment `{self.id}` does not take the arguments {arguments}: {error}"
            ) from error
        if not isinstance(env, gym.Env):
            raise EnvironmentError_(f"`{self.id}` returned {type(env).__name__}, expected a gymnasium.Env")
        return env if self.hooks is None else HookedEnv(env, self.hooks)

    def _factory(self) -> Callable[..., Env] | None:
        """Return the callable that `module:name` names, or None for a Gymnasium id."""
        module_name, _, name = self.id.partition(":")
        if not name:
            return None
        try:
            module = importlib.import_module(module_name)
        except (ImportError, TypeError, ValueError) as error:
            raise EnvironmentError_(
                f"environment `{self.id}`: module `{module_name}` cannot be imported ({error}). Modules are "
                "looked for beside the task file, in PYTHONPATH and among installed packages"
            ) from error
        factory = getattr(module, name, None)
        return factory if callable(factory) else None


class EnvFacts(NamedTuple):
    """What an environment says of itself without being played.

    Attributes:
        observation_space: as a policy sees it: images with channels first.
        action_space: its action space.
        form: how its observations are kept.
        action_names: `metadata["action_names"]`, for captions; empty if it has none.
    """

    observation_space: Space
    action_space: Space
    form: ObservationForm
    action_names: tuple[str, ...]

    def action_name(self, text: str) -> str:
        """Return the name of an action written as text (`action_text`), or the text."""
        return named_action(text, self.action_names)


def describe(spec: EnvSpec) -> EnvFacts:
    """Return the facts of an environment, which is made once a process.

    Raises:
        EnvironmentError_: it cannot be made, or its spaces are not supported.
    """
    return _describe(spec.id, json.dumps(dict(spec.kwargs), sort_keys=True), spec.hooks)


@lru_cache(maxsize=64)
def _describe(env_id: str, kwargs: str, hooks: str | None) -> EnvFacts:
    spec = EnvSpec(env_id, json.loads(kwargs), hooks)
    env = spec.make()
    try:
        return _facts_of(env, spec)
    finally:
        env.close()


def _facts_of(env: Env, spec: EnvSpec) -> EnvFacts:
    where = f"environment `{spec.id}`"
    observation_space = policy_observation_space(env.observation_space, where)
    action_space = require_action_space(env.action_space, where)
    form = ObservationForm(env.observation_space)
    return EnvFacts(observation_space, action_space, form, tuple(env.metadata.get("action_names", ())))


class EnvProfile(NamedTuple):
    """What a probe of an environment showed.

    Attributes:
        observation_space, action_space: its spaces.
        keys: the step keys its infos carry.
        renders: whether it can draw itself (`rgb_array`).
        repeats: whether an episode repeats itself from its seed and actions.
    """

    observation_space: Space
    action_space: Space
    keys: frozenset[str]
    renders: bool
    repeats: bool


def probe(spec: EnvSpec, masked: bool = False) -> EnvProfile:
    """Play a few episodes with random actions and check everything the contract asks for.

    Args:
        spec: the environment.
        masked: whether agents draw only actions that the environment allows.

    Raises:
        EnvironmentError_: spaces that are not supported, an info that breaks the contract, or no masks.
    """
    env = spec.make()
    try:
        where = f"environment `{spec.id}`"
        observation_space, action_space, form, _ = _facts_of(env, spec)
        reader = InfoReader(choices(action_space), where)
        draw = random_actions(env, masked, where)
        env.reset(seed=0)
        episodes = 0
        for _ in range(_PROBE_STEPS):
            observation, reward, terminated, truncated, info = env.step(env_action(action_space, draw()))
            reader.read(info, float(reward), terminated or truncated)
            if not np.isfinite(flat_numbers(form.batch([observation]))).all():
                raise EnvironmentError_(f"environment `{spec.id}` observed {observation}: expected finite numbers")
            if terminated or truncated:
                episodes += 1
                if episodes == _PROBE_EPISODES:
                    break
                env.reset()
        if not episodes:
            raise EnvironmentError_(
                f"environment `{spec.id}`: no episode ended within {_PROBE_STEPS} random steps; expected a step limit, "
                "for instance max_episode_steps or gymnasium.wrappers.TimeLimit"
            )
        keys = reader.keys or frozenset()
        return EnvProfile(observation_space, action_space, keys, can_render(spec), _repeats(env, form, masked))
    finally:
        env.close()


def random_actions(env: Env, masked: bool, where: str) -> Callable[[], Any]:
    """Return what draws random actions, the same ones every time."""
    if not masked:
        env.action_space.seed(0)
        return env.action_space.sample
    generator = np.random.default_rng(0)
    return lambda: allowed_action(env, generator, where)


def _repeats(env: Env, form: ObservationForm, masked: bool) -> bool:
    """Return whether the same seed and actions give the same observations and rewards."""
    heard: list[list[Any]] = [[], []]
    for seen in heard:
        draw = random_actions(env, masked, "the environment")
        observation, _ = env.reset(seed=1)
        seen.append(flat_numbers(form.batch([observation])))
        for _ in range(_REPEATED_STEPS):
            action = env_action(env.action_space, draw())
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append(np.append(flat_numbers(form.batch([observation])), float(reward)))
            if terminated or truncated:
                break
    return len(heard[0]) == len(heard[1]) and all(map(np.array_equal, *heard))


def can_render(spec: EnvSpec) -> bool:
    """Return whether the environment draws itself as `rgb_array`."""
    return way_of_drawing(spec) == "rgb_array"


def way_of_drawing(spec: EnvSpec) -> Literal["rgb_array", "ansi"] | None:
    """Return how the environment shows its states; None: not at all."""
    env = spec.make(render=True)
    try:
        return next((mode for mode in DRAWING if mode == env.render_mode), None)
    finally:
        env.close()
