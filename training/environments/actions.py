"""Choosing actions, and which of them are allowed.

Actions are chosen on common random numbers: two agents that agree on the probabilities act alike. Every number of an
action is the inverse CDF of the policy at the next number of a play's own generator.

Masks of allowed actions are as MaskablePPO takes them (Huang and Ontañón 2022, arXiv:2006.14171): bool [A], one entry a
category; of MultiDiscrete the parts are joined, a MultiBinary number has two.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray
from scipy.special import ndtri
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Bernoulli, Categorical, Normal

from ...datasets.errors import EnvironmentError_, InputError
from ...datasets.words import counted
from .spaces import Space

Numbers = NDArray[np.float64]
_METHOD = "action_masks"  # sb3-contrib's name
_SMALLEST = float(np.finfo(float).tiny)


class Choice(NamedTuple):
    """An action (an integer, or an array [K]) and log pi of it."""

    action: Any
    log_prob: float


class Choices(Protocol):
    """What a policy says of a batch of states."""

    def choose(self, row: int, generator: np.random.Generator, greedy: bool) -> Choice:
        """Return the action of one state: drawn, or the most probable one."""
        ...

    def probabilities(self, row: int) -> list[float] | None:
        """Return the probability of every action of one state; None where an action is not one category."""
        ...


class Categories:
    """Independent categorical numbers: Discrete (one), MultiDiscrete, MultiBinary (two categories each).

    Args:
        probabilities: [B, A] each.
        single: whether an action is the one integer itself.
    """

    def __init__(self, probabilities: list[Numbers], single: bool) -> None:
        self._probabilities, self._single = probabilities, single

    def choose(self, row: int, generator: np.random.Generator, greedy: bool) -> Choice:
        """Return the action of one state."""
        drawn = [_inverse_cdf(part[row], generator, greedy) for part in self._probabilities]
        log_prob = sum(
            float(np.log(max(part[row][a], _SMALLEST))) for part, a in zip(self._probabilities, drawn, strict=True)
        )
        return Choice(drawn[0] if self._single else np.array(drawn, dtype=np.int64), log_prob)

    def probabilities(self, row: int) -> list[float] | None:
        """Return the probability of every action of one state; None where an action is several numbers."""
        return self._probabilities[0][row].tolist() if self._single else None


def _inverse_cdf(probabilities: Numbers, generator: np.random.Generator, greedy: bool) -> int:
    if greedy:
        return int(np.argmax(probabilities))
    cumulative = np.cumsum(probabilities)
    draw = generator.random() * cumulative[-1]
    return min(int(np.searchsorted(cumulative, draw, side="right")), len(probabilities) - 1)


class Gaussians:
    """Independent normal numbers: Box. The action is kept unclipped, as it was drawn.

    Args:
        mean, spread: [B, K].
    """

    def __init__(self, mean: Numbers, spread: Numbers) -> None:
        self._mean, self._spread = mean, spread

    def choose(self, row: int, generator: np.random.Generator, greedy: bool) -> Choice:
        """Return the action of one state."""
        mean, spread = self._mean[row], self._spread[row]
        deviation = np.zeros_like(mean) if greedy else ndtri(generator.uniform(_SMALLEST, 1.0, len(mean)))
        log_prob = float(np.sum(-0.5 * deviation**2 - np.log(spread) - 0.5 * np.log(2 * np.pi)))
        return Choice((mean + spread * deviation).astype(np.float32), log_prob)

    def probabilities(self, row: int) -> None:
        """Return None: there are densities only."""


class Uniforms:
    """A random policy's Box actions: uniform where the space is bounded, standard normal elsewhere."""

    def __init__(self, space: spaces.Box) -> None:
        self._low, self._high = (np.asarray(x, np.float64).reshape(-1) for x in (space.low, space.high))
        self._bounded = np.isfinite(self._low) & np.isfinite(self._high)

    def choose(self, row: int, generator: np.random.Generator, greedy: bool) -> Choice:
        """Return a random action."""
        draw = generator.uniform(_SMALLEST, 1.0, len(self._low))
        low, width = np.where(self._bounded, self._low, 0.0), np.where(self._bounded, self._high - self._low, 1.0)
        action = np.where(self._bounded, low + draw * width, ndtri(draw))
        log_prob = np.where(self._bounded, -np.log(width), -0.5 * ndtri(draw) ** 2 - 0.5 * np.log(2 * np.pi))
        return Choice(action.astype(np.float32), float(log_prob.sum()))

    def probabilities(self, row: int) -> None:
        """Return None: there are densities only."""


def random_choices(space: Space, batch: int, masks: NDArray[np.bool_] | None = None) -> Choices:
    """Return what a uniformly random policy says of a batch of states.

    Args:
        space: the action space.
        batch: number of states, B.
        masks: allowed actions, [B, A]; None: all are.
    """
    if isinstance(space, spaces.Box):
        return Uniforms(space)
    sizes = category_sizes(space)
    allowed = np.ones((batch, sum(sizes)), np.bool_) if masks is None else masks
    parts = np.split(allowed.astype(np.float64), np.cumsum(sizes)[:-1], axis=1)
    return Categories([part / part.sum(axis=1, keepdims=True) for part in parts], isinstance(space, spaces.Discrete))


def policy_choices(policy: ActorCriticPolicy, said: Distribution) -> Choices:
    """Return what a policy says of a batch of states.

    Args:
        policy: the policy.
        said: its distribution of actions in these states.

    Raises:
        InputError: a distribution that is not supported, such as state-dependent exploration.
    """
    acts: Any = getattr(said, "distributions", None) or said.distribution  # several where MaskablePPO draws several
    single = isinstance(policy.action_space, spaces.Discrete)
    if isinstance(acts, Categorical):
        return Categories([acts.probs.double().numpy()], single)
    if isinstance(acts, list) and all(isinstance(part, Categorical) for part in acts):
        return Categories([part.probs.double().numpy() for part in acts], single)
    if isinstance(acts, Bernoulli):
        ones = acts.probs.double().numpy()
        return Categories([np.stack([1.0 - p, p], axis=1) for p in ones.T], single)
    if isinstance(acts, Normal) and not policy.use_sde:
        return Gaussians(acts.mean.double().numpy(), acts.stddev.double().numpy())
    raise InputError(
        f"the policy acts by {type(acts).__name__}, expected categorical, Bernoulli or Gaussian actions without use_sde"
    )


def category_sizes(space: Space) -> list[int]:
    """Return the number of categories of each number of an action that is not a Box's."""
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete):
        return [int(n) for n in space.nvec]
    assert isinstance(space, spaces.MultiBinary) and isinstance(space.n, int)
    return [2] * space.n


def takes_masks(policy: ActorCriticPolicy) -> bool:
    """Return whether a policy draws only allowed actions."""
    return hasattr(getattr(policy, "action_dist", None), "apply_masking")  # a Q-network has no distribution


def action_mask(env: gym.Env[Any, Any], where: str) -> NDArray[np.bool_]:
    """Return which actions an environment allows in its present state, bool [A], by sb3-contrib's own rule.

    Raises:
        EnvironmentError_: it has no method `action_masks`, or the mask is of another length or allows nothing.
    """
    sizes = category_sizes(env.action_space)
    expected = f"expected {sum(sizes)} booleans, true where an action is allowed"
    try:
        method = env.get_wrapper_attr(_METHOD)
    except AttributeError as error:
        raise EnvironmentError_(
            f"{where} has no method `{_METHOD}`, which MaskablePPO needs: {expected}. Add it to the environment, or "
            "wrap it with sb3_contrib.common.wrappers.ActionMasker"
        ) from error
    mask = np.asarray(method(), dtype=bool).reshape(-1)
    if len(mask) != sum(sizes):
        raise EnvironmentError_(f"{where}: `{_METHOD}` returned {counted(len(mask), 'value')}, {expected}")
    if not all(part.any() for part in np.split(mask, np.cumsum(sizes)[:-1])):
        raise EnvironmentError_(f"{where}: `{_METHOD}` returned {mask.tolist()}, which allows no action")
    return mask


def allowed_action(env: gym.Env[Any, Any], generator: np.random.Generator, where: str) -> Any:
    """Return a uniformly random action of those that an environment allows.

    Raises:
        EnvironmentError_: see `action_mask`.
    """
    masks = action_mask(env, where)[None]
    return random_choices(env.action_space, 1, masks).choose(0, generator, greedy=False).action
