"""A world as a Gymnasium environment: one copy of it, or several stepped at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.wrappers import OrderEnforcing
from numpy.typing import NDArray

from ...datasets.errors import EnvironmentError_
from .base import State, World, parameters_of
from .families import world_class

Step = tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]  # as Gymnasium has it


class WorldEnv(gym.Env[NDArray[np.float32], Any]):
    """One copy of a world (Gymnasium ids `aitia/CoinRun-v0` and so on).

    Args:
        family: which world: one of the catalogue, or a class of one's own.
        tell_intended: whether `info` tells the intended reward.
        render_mode: None or `rgb_array`.
        parameters: of the family, see its `parameters`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 4}  # noqa: RUF012 (Gymnasium's own form)

    def __init__(
        self,
        family: str | type[World],
        tell_intended: bool = True,
        render_mode: str | None = None,
        **parameters: Any,
    ) -> None:
        world = world_class(family) if isinstance(family, str) else family
        if render_mode not in (None, "rgb_array"):
            raise EnvironmentError_(
                f"{world.family}: render_mode={render_mode!r} was given, expected None or 'rgb_array'"
            )
        self.world = world(parameters_of(world, parameters))
        self.tell_intended, self.render_mode = tell_intended, render_mode
        self.metadata = {**self.metadata, "action_names": self.world.action_names, "outcomes": self.world.outcomes}
        self.reference_goals = self.world.goals
        self.observation_space: gym.spaces.Space[Any] = self.world.observation_space
        self.action_space: gym.spaces.Space[Any] = self.world.action_space
        self.state: State | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode on a level drawn from the set; `options={"level": i}` names one."""
        super().reset(seed=seed)
        number = int(self.np_random.integers(self.world.planted.levels))
        if options and "level" in options:
            number = int(options["level"])
        self.state = self.world.begin(np.array([number]))
        return self.world.observe(self.state)[0], {"context": number}

    def step(self, action: Any) -> Step:
        """Take one action."""
        return step_copies([self], [action])[0]

    def solve(self, goal: str) -> Any:
        """Return the action of a reference solver with a goal (one of `reference_goals`)."""
        return self.world.solve(self.begun, goal)[0]

    def render(self) -> NDArray[np.uint8] | None:
        """Return a picture, uint8 [height, width, 3], or None without a render mode."""
        return self.world.picture(self.begun) if self.render_mode == "rgb_array" else None

    @property
    def begun(self) -> State:
        """The state of an episode that has begun."""
        if self.state is None:
            raise EnvironmentError_(f"{self.world.family}: call reset() before step() or render()")
        return self.state


def bare_world(env: gym.Env[Any, Any]) -> WorldEnv | None:
    """Return the environment of a world if nothing wraps it that could change what it does, else None."""
    inner = env.env if type(env) is OrderEnforcing else env  # which `gym.make` puts around every environment
    if not isinstance(inner, WorldEnv):
        return None
    methods = (getattr(method, "__func__", None) for method in (inner.step, inner.reset))  # None: put there instead
    return inner if tuple(methods) == (WorldEnv.step, WorldEnv.reset) else None


def bare_worlds(envs: Sequence[gym.Env[Any, Any]]) -> list[WorldEnv] | None:
    """Return several environments as copies of one world; None where they are not, or a factory made them different."""
    worlds = [world for env in envs if (world := bare_world(env)) is not None]
    alike = len(worlds) == len(envs) and all(other.world.table is worlds[0].world.table for other in worlds)
    return worlds if alike else None


def step_copies(envs: Sequence[WorldEnv], actions: Sequence[Any] | NDArray[Any]) -> list[Step]:
    """Step copies of one world, which takes little longer than one of them; each gives what it would give alone."""
    world, states = envs[0].world, [env.begun for env in envs]
    state = states[0]
    if len(states) > 1:
        state = {name: np.concatenate([one[name] for one in states]) for name in state}
    labels = world.labels(state)
    moved, terminated, truncated = world.step(state, np.asarray(actions))
    observations, rewards = world.observe(state), moved.reward
    steps: list[Step] = []
    for copy, env in enumerate(envs):
        env.state = {name: values[copy : copy + 1] for name, values in state.items()}
        reward = float(rewards[copy])
        info: dict[str, Any] = {
            "context": int(state["level"][copy]),
            "untampered_reward": reward - float(moved.tampered[copy]),
            **world.told_components(moved, copy),
        }
        if env.tell_intended:
            info["intended_reward"] = float(moved.intended[copy])
        if labels is not None:
            info["action_labels"] = labels[copy].tolist()
        ends, stops = bool(terminated[copy]), bool(truncated[copy])
        if ends or stops:
            info["outcome"] = world.outcomes[moved.outcome[copy]]
        steps.append((observations[copy], reward, ends, stops, info))
    return steps
