"""Estimators of reward influence behind one small interface: exact TRAK, and gradient products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, NamedTuple, Protocol

from stable_baselines3.common.policies import ActorCriticPolicy

from .adjoint import Scores, reward_influence
from .targets import TargetSteps
from .trak import window_gradients
from .window import Window


class Influence(NamedTuple):
    """What an estimator says of the N transitions of a window and F failures; each [N, F].

    Attributes:
        scores: s, effect of one unit of (normalised) advantage; of a baseline, its blame.
        tau: effect of one unit of reward, with the adjoint of advantage normalisation.
        tau_raw: without it.
    """

    scores: Scores
    tau: Scores
    tau_raw: Scores


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
    """

    name: ClassVar[str]
    summary: ClassVar[str]

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
    """

    def __init__(self, window: Window, solve: Callable[[float], Scores]) -> None:
        self._window, self._solve = window, solve
        self._solved: tuple[float, Scores] | None = None

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping."""
        if self._solved is None or self._solved[0] != lam:
            self._solved = (lam, self._solve(lam))
        scores = self._solved[1][:, failures][self._window.rows.row]
        return Influence(scores, *reward_influence(scores, self._window.advantages))


class Trak(Estimator):
    """TRAK at the window's own checkpoint, exact (dual form)."""

    name = "trak"
    summary = "TRAK at every window's own checkpoint, exact, without projection"

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Compute the Gram matrix of the window once; each damping is a solve."""
        return ScoredWindow(window, window_gradients(policy, window.rows, targets, window.name).trak)


class TracIn(Estimator):
    """Gradient products, after TracIn (Pruthi et al. 2020, arXiv:2002.08484), each window at its own checkpoint."""

    name = "tracin"
    summary = "gradient products, nothing preconditioned"

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Compute the products once; they know no damping."""
        products = window_gradients(policy, window.rows, targets, window.name).gradient_product()
        return ScoredWindow(window, lambda _: products)
