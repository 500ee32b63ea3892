"""Estimators of reward influence behind one small interface: exact TRAK, and gradient products."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from ..actors.outputs import Actor
from ..adjoints.signal import Scores
from ..gradients.channels import Channels
from ..gradients.kernel import DEFAULT_LAMBDA
from ..targets.steps import Targets
from .window import Window

Solve = Callable[[float], Scores]
_CHUNK = 512  # failures whose [N, F] arrays are held at once


def chunks(failures: int) -> Iterator[slice]:
    """Yield the failures in parts."""
    for start in range(0, failures, _CHUNK):
        yield slice(start, min(start + _CHUNK, failures))


class Influence(NamedTuple):
    """What an estimator says of the N transitions of a window and F failures; each [N, F].

    Attributes:
        scores: s, effect of one unit of (normalised) advantage; of a baseline, its blame.
        tau: effect of one unit of reward, with the adjoint of advantage normalisation.
        tau_raw: without it.
        tau_value: effect of one unit of reward through the value loss: a second channel, zero where the value
            loss moves no parameter that the failure's target depends on; None: the estimator does not compute it.
    """

    scores: Scores
    tau: Scores
    tau_raw: Scores
    tau_value: Scores | None


class InfluenceSums(NamedTuple):
    """Weighted sums of influence over transitions, [G, F] each; see `Influence`."""

    tau: Scores
    tau_raw: Scores
    tau_value: Scores | None


class Prepared(ABC):
    """A window that an estimator has looked at once, for all failures and every damping."""

    @abstractmethod
    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping, so that [N, F] is never held whole."""

    def sums(self, lam: float, weights: Scores, failures: int) -> InfluenceSums:
        """Return sums of the influence on all failures at one damping.

        Args:
            lam: damping.
            weights: of each transition in each of G sums, [N, G].
            failures: F.
        """
        rows = np.flatnonzero(weights.any(axis=1))
        parts = []
        for part in chunks(failures):
            influence = self.influence(lam, part)
            channels = [tau for tau in (influence.tau, influence.tau_raw, influence.tau_value) if tau is not None]
            parts.append([weights[rows].T @ tau[rows] for tau in channels])
        tau, tau_raw, *value = (np.concatenate(kind, axis=1) for kind in zip(*parts, strict=True))
        return InfluenceSums(tau, tau_raw, value[0] if value else None)


class Estimator(ABC):
    """A way to estimate how much each training reward drove each failure; its parameters are its fields.

    Attributes:
        name: by which it is chosen.
        summary: one line for a list of estimators.
        needs_updates: whether `window.updates` has to be there: the training is replayed, seed by seed.
        damping: lambda of `influence`, in the unit of the Fisher matrix; nothing to an estimator without one. Stage
            attribute writes its tables at several dampings (`LAMBDAS`).
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_updates: ClassVar[bool] = False
    damping: float = DEFAULT_LAMBDA

    @property
    def label(self) -> str:
        """The name, and the parameters that are not the default ones: what tables call its rows."""
        parameters: tuple[Field[Any], ...] = fields(self) if is_dataclass(self) else ()
        values = [(field, getattr(self, field.name)) for field in parameters]
        changed = [f"{field.name}={value!r}" for field, value in values if value != field.default]
        return f"{self.name}({', '.join(changed)})" if changed else self.name

    @abstractmethod
    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Look at a window once.

        Args:
            window: its transitions.
            actor: the policy with the parameters that collected it; its precision and parameters may be changed.
            targets: the targets of F failures.
        """


class ScoredWindow(Prepared):
    """Influence by scores of advantages, taken to rewards by the adjoint of GAE.

    Args:
        window: the window.
        solve: maps a damping to scores of the window's distinct rows, [U, F].
        solve_value: the same for one unit of return; None: the value channel is zero.
        value_known: whether the estimator computes the value channel at all.
    """

    def __init__(
        self, window: Window, solve: Solve, solve_value: Solve | None = None, value_known: bool = True
    ) -> None:
        self._window, self._solve, self._solve_value = window, solve, solve_value
        self._value_known = value_known
        self._solved: tuple[float, Scores, Scores | None] | None = None

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping."""
        if self._solved is None or self._solved[0] != lam:
            self._solved = (lam, self._solve(lam), self._solve_value(lam) if self._solve_value else None)
        _, policy, value = self._solved
        rows, signal = self._window.rows.row, self._window.signal
        scores = policy[:, failures][rows]
        by_value = np.broadcast_to(0.0, scores.shape) if self._value_known else None
        if value is not None:
            by_value = signal.value_influence(value[:, failures][rows])
        return Influence(scores, *signal.reward_influence(scores), by_value)


class _ExactWindow(ScoredWindow):
    """TRAK in its dual form, whose sums need a solve for each sum and not for each failure.

    Args:
        window: the window.
        channels: its inner products.
    """

    def __init__(self, window: Window, channels: Channels) -> None:
        value, scale = channels.value, channels.scale
        by_value = None if value is None else lambda lam: scale * value.trak(lam)
        super().__init__(window, channels.policy.trak, by_value, channels.value_known)
        self._channels = channels

    def sums(self, lam: float, weights: Scores, failures: int) -> InfluenceSums:
        """Return sums of the influence on all failures at one damping: weights go through the adjoint backwards."""
        signal, count, channels = self._window.signal, weights.shape[1], self._channels
        by_reward = signal.summed_reward_influence(weights)
        both = channels.policy.summed_trak(lam, self._of_distinct(np.concatenate(by_reward, axis=1)))
        by_value = np.broadcast_to(0.0, (count, failures)) if channels.value_known else None
        if channels.value is not None:
            by_return = self._of_distinct(signal.summed_value_influence(weights))
            by_value = channels.scale * channels.value.summed_trak(lam, by_return)
        return InfluenceSums(both[:count], both[count:], by_value)

    def _of_distinct(self, weights: Scores) -> Scores:
        """Return the weights of distinct rows [U, G], sums of those of their transitions [N, G]."""
        rows = self._window.rows
        total = torch.zeros(len(rows.counts), weights.shape[1], dtype=torch.float64)
        return total.index_add_(0, torch.from_numpy(rows.row), torch.from_numpy(weights)).numpy()


@dataclass(frozen=True)
class Trak(Estimator):
    """TRAK at the window's own checkpoint, exact (dual form)."""

    name = "trak"
    summary = "TRAK at every window's own checkpoint, exact, without projection"
    damping: float = DEFAULT_LAMBDA

    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Compute the Gram matrix of the window once; each damping is a solve."""
        return _ExactWindow(window, Channels.of(actor, window.rows, targets, window.name, window.vf_coef))


@dataclass(frozen=True)
class TracIn(Estimator):
    """Gradient products, after TracIn (Pruthi et al. 2020, arXiv:2002.08484), each window at its own checkpoint."""

    name = "tracin"
    summary = "gradient products, nothing preconditioned"

    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Compute the products once; they know no damping."""
        policy, value, scale, known = Channels.of(actor, window.rows, targets, window.name, window.vf_coef)
        by_value = None if value is None else lambda _: scale * value.gradient_product()
        return ScoredWindow(window, lambda _: policy.gradient_product(), by_value, known)
