"""Estimators of reward influence behind one small interface: exact TRAK, and gradient products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from stable_baselines3.common.policies import ActorCriticPolicy

from .adjoint import Scores, reward_influence, value_influence
from .targets import TargetSteps
from .trak import WindowGradients, policy_gradients, value_gradients
from .window import Window

Solve = Callable[[float], Scores]


class Influence(NamedTuple):
    """What an estimator says of the N transitions of a window and F failures; each [N, F].

    Attributes:
        scores: s, effect of one unit of (normalised) advantage; of a baseline, its blame.
        tau: effect of one unit of reward, with the adjoint of advantage normalisation.
        tau_raw: without it.
        tau_value: effect of one unit of reward through the value loss: a second channel, zero where the value
            loss moves no parameter that the failure's target depends on.
    """

    scores: Scores
    tau: Scores
    tau_raw: Scores
    tau_value: Scores


class Prepared(Protocol):
    """A window that an estimator has looked at once, for all failures and every damping."""

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping, so that [N, F] is never held whole."""
        ...


class Estimator(ABC):
    """A way to estimate how much each training reward drove each failure.

    Attributes:
        name: by which it is chosen.
        summary: one line for a list of estimators.
        needs_updates: whether `window.updates` has to be there: the training is replayed, seed by seed.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_updates: ClassVar[bool] = False

    @abstractmethod
    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Look at a window once.

        Args:
            window: its transitions.
            policy: the policy with the parameters that collected it.
            targets: the targets of F failures.
        """


class ScoredWindow:
    """Influence by scores of advantages, taken to rewards by the adjoint of GAE.

    Args:
        window: the window.
        solve: maps a damping to scores of the window's distinct rows, [U, F].
        solve_value: the same for one unit of return; None: the value channel is zero.
    """

    def __init__(self, window: Window, solve: Solve, solve_value: Solve | None = None) -> None:
        self._window, self._solve, self._solve_value = window, solve, solve_value
        self._solved: tuple[float, Scores, Scores | None] | None = None

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping."""
        if self._solved is None or self._solved[0] != lam:
            self._solved = (lam, self._solve(lam), self._solve_value(lam) if self._solve_value else None)
        _, policy, value = self._solved
        rows, advantages = self._window.rows.row, self._window.advantages
        scores = policy[:, failures][rows]
        by_value = np.broadcast_to(0.0, scores.shape)
        if value is not None:
            by_value = value_influence(value[:, failures][rows], advantages)
        return Influence(scores, *reward_influence(scores, advantages), by_value)


def _channels(
    window: Window, policy: ActorCriticPolicy, targets: TargetSteps, score: Callable[[WindowGradients, float], Scores]
) -> ScoredWindow:
    """Return a window scored in both channels by one way to turn inner products into scores."""
    gradients = policy_gradients(policy, window.rows, targets, window.name)
    scale = float(np.sqrt(2.0 * window.vf_coef))  # the value loss is vf_coef (R - V)^2: its curvature is scale^2 v v^T
    value = value_gradients(policy, window.rows, targets, window.name, scale)
    if value is None:
        return ScoredWindow(window, lambda lam: score(gradients, lam))
    return ScoredWindow(window, lambda lam: score(gradients, lam), lambda lam: scale * score(value, lam))


class Trak(Estimator):
    """TRAK at the window's own checkpoint, exact (dual form)."""

    name = "trak"
    summary = "TRAK at every window's own checkpoint, exact, without projection"

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Compute the Gram matrix of the window once; each damping is a solve."""
        return _channels(window, policy, targets, WindowGradients.trak)


class TracIn(Estimator):
    """Gradient products, after TracIn (Pruthi et al. 2020, arXiv:2002.08484), each window at its own checkpoint."""

    name = "tracin"
    summary = "gradient products, nothing preconditioned"

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Compute the products once; they know no damping."""
        return _channels(window, policy, targets, lambda gradients, _: gradients.gradient_product())
