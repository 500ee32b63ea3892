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
from ..gradients.kernel import DEFAULT_LAMBDA, LINEAR_LAMBDA, WindowGradients
from ..targets.steps import Targets
from .window import Window

Solve = Callable[[float], Scores]
_CHUNK = 512  # failures whose [N, F] arrays are held at once


def chunks(failures: int) -> Iterator[slice]:
    """Yield the failures in parts."""
    for start in range(0, failures, _CHUNK):
        yield slice(start, min(start + _CHUNK, failures))


EVERYTHING = frozenset(["raw", "value"])  # that can be computed in addition to the effect itself


class Influence(NamedTuple):
    """What an estimator says of the N transitions of a window and F failures; each [N, F].

    Attributes:
        scores: s, effect of one unit of (normalised) advantage; of a baseline, its blame.
        tau: effect of one unit of reward, with the adjoint of advantage normalisation: for small changes.
        tau_raw: without it; None: not computed (`Prepared.further`).
        tau_value: effect of one unit of reward through the value loss: a second channel, zero where the value
            loss moves no parameter that the failure's target depends on; None: not computed.
    """

    scores: Scores
    tau: Scores
    tau_raw: Scores | None
    tau_value: Scores | None


class Effects(NamedTuple):
    """Effects of G changes of the rewards of a window on F failures, [G, F] each.

    Attributes:
        effect: through the policy loss.
        raw: without the normalisation of advantages, to first order; None: not computed (`Prepared.further`).
        value: through the value loss; None: not computed.
    """

    effect: Scores
    raw: Scores | None
    value: Scores | None


class Prepared(ABC):
    """A window that an estimator has looked at once, for all failures and every damping.

    Attributes:
        further: which of `EVERYTHING` is computed in addition, where the estimator can.
    """

    further: frozenset[str] = EVERYTHING

    @abstractmethod
    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping, so that [N, F] is never held whole."""

    def effects(self, lam: float, change: Scores, failures: int) -> Effects:
        """Return the effects of changed rewards on all failures at one damping; here to first order, sums of tau.

        Args:
            lam: damping.
            change: of each reward as paid in each of G changes, [N, G].
            failures: F.
        """
        rows = np.flatnonzero(change.any(axis=1))
        parts = []
        for part in chunks(failures):
            _, *channels = self.influence(lam, part)
            parts.append([None if tau is None else change[rows].T @ tau[rows] for tau in channels])
        effect, *further = (
            None if kind[0] is None else np.concatenate(kind, axis=1) for kind in zip(*parts, strict=True)
        )
        assert effect is not None
        return Effects(effect, *further)


class Estimator(ABC):
    """A way to estimate how much each training reward drove each failure; its parameters are its fields.

    Attributes:
        name: by which it is chosen.
        summary: one line for a list of estimators.
        needs_updates: whether `window.updates` has to be there: the training is replayed, seed by seed.
        finite_difference: whether the effect of changed rewards is an exact finite difference, and a run's windows
            count the same (`attribution.effects`); else it is a sum of tau, to first order.
        damping: lambda, in the unit of the Fisher matrix; nothing to an estimator without one.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    needs_updates: ClassVar[bool] = False
    finite_difference: ClassVar[bool] = False
    damping: float = LINEAR_LAMBDA

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
    """Influence by scores of advantages, taken to rewards by the adjoint of GAE, or by its finite difference.

    Args:
        window: the window.
        solve: maps a damping to scores of the window's distinct rows, [U, F].
        finite: whether effects of changed rewards are finite differences of the normalised advantages; else they are
            sums of tau, to first order.
    """

    def __init__(self, window: Window, solve: Solve, finite: bool = False) -> None:
        self._window, self._solve, self._finite = window, solve, finite
        self._kept: dict[str, tuple[float, Scores]] = {}
        self._weighed: tuple[Scores, Scores] | None = None

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping."""
        scores = self._scores(lam)[:, failures][self._window.rows.row]
        tau, raw = self._window.signal.reward_influence(scores)
        return Influence(scores, tau, raw if "raw" in self.further else None, self._by_value(lam, failures))

    def effects(self, lam: float, change: Scores, failures: int) -> Effects:
        """Return the effects of changed rewards on all failures at one damping."""
        if not self._finite:
            return super().effects(lam, change, failures)
        signal = self._window.signal
        effect = self._summed(lam, self.weights(change))
        raw = self._summed(lam, signal.summed_reward_influence(change).tau_raw) if "raw" in self.further else None
        return Effects(effect, raw, self._summed_by_value(lam, change))

    def weights(self, change: Scores) -> Scores:
        """Return what scores are summed with for the effects of changed rewards, [N, G]; the latest are kept."""
        if self._weighed is None or self._weighed[0] is not change:
            signal = self._window.signal
            self._weighed = (change, signal.weights_of(signal.raw_change(change)))
        return self._weighed[1]

    def _scores(self, lam: float) -> Scores:
        """Return the scores of the distinct rows, [U, F]."""
        return self._keep("policy", lam, self._solve)

    def _keep(self, channel: str, lam: float, solve: Solve) -> Scores:
        """Return what `solve` says, [U, F]; of each channel the latest damping is kept."""
        if not self._has(channel, lam):
            self._kept[channel] = (lam, solve(lam))
        return self._kept[channel][1]

    def _has(self, channel: str, lam: float) -> bool:
        return channel in self._kept and self._kept[channel][0] == lam

    def _summed(self, lam: float, weights: Scores) -> Scores:
        """Return sums of scores [G, F] by weights of transitions [N, G]."""
        return self._of_distinct(weights).T @ self._scores(lam)

    def _of_distinct(self, weights: Scores) -> Scores:
        """Return the weights of distinct rows [U, G], sums of those of their transitions [N, G]."""
        rows = self._window.rows
        total = torch.zeros(len(rows.counts), weights.shape[1], dtype=torch.float64)
        return total.index_add_(0, torch.from_numpy(rows.row), torch.from_numpy(weights)).numpy()

    def _by_value(self, lam: float, failures: slice) -> Scores | None:
        """Return the influence through the value loss on some failures, [N, F]; None: not computed."""
        return None

    def _summed_by_value(self, lam: float, change: Scores) -> Scores | None:
        """Return the effects of changed rewards through the value loss, [G, F]; None: not computed."""
        return None


class _ExactWindow(ScoredWindow):
    """TRAK in its dual form (or plain gradient products), whose sums need a solve a failure or a solve a sum.

    Args:
        window: the window.
        channels: its inner products.
        finite: see `ScoredWindow`.
        product: scores are gradient products, TracIn's, which know no damping.
    """

    def __init__(self, window: Window, channels: Channels, finite: bool = False, product: bool = False) -> None:
        super().__init__(window, lambda lam: self._solved_by(channels.policy, lam), finite)
        self._channels, self._product = channels, product

    def _solved_by(self, gradients: WindowGradients, lam: float) -> Scores:
        return gradients.gradient_product() if self._product else gradients.trak(lam)

    def _summed(self, lam: float, weights: Scores) -> Scores:
        """Return sums of scores by weights of transitions [N, G]: the fewer solves of F and G, if none is done."""
        if self._has("policy", lam) or self._product or weights.shape[1] >= self._failures:
            return super()._summed(lam, weights)
        return self._channels.policy.summed_trak(lam, self._of_distinct(weights))

    def _by_value(self, lam: float, failures: slice) -> Scores | None:
        if "value" not in self.further or not self._channels.value_known:
            return None
        value, rows = self._channels.value, self._window.rows.row
        if value is None:
            return np.broadcast_to(0.0, (len(rows), len(range(*failures.indices(self._failures)))))
        scores = self._keep("value", lam, lambda lam: self._channels.scale * self._solved_by(value, lam))
        return self._window.signal.value_influence(scores[:, failures][rows])

    def _summed_by_value(self, lam: float, change: Scores) -> Scores | None:
        if "value" not in self.further or not self._channels.value_known:
            return None
        value = self._channels.value
        if value is None:
            return np.broadcast_to(0.0, (change.shape[1], self._failures))
        weights = self._of_distinct(self._window.signal.summed_value_influence(change))
        summed: Scores = self._channels.scale * value.summed_trak(lam, weights)
        return summed

    @property
    def _failures(self) -> int:
        return self._channels.policy.failures


@dataclass(frozen=True)
class Trak(Estimator):
    """TRAK at the window's own checkpoint, exact (dual form); a correction is a finite difference, not a small change.

    Summed over windows, each window has the same mass: docs/influence.md says why.
    """

    name = "trak"
    summary = "TRAK at every window's own checkpoint, exact, without projection; corrections as finite differences"
    finite_difference = True
    damping: float = DEFAULT_LAMBDA

    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Compute the Gram matrix of the window once; each damping is a solve."""
        channels = Channels(actor, window.rows, targets, window.name, window.vf_coef)
        return _ExactWindow(window, channels, finite=True)


@dataclass(frozen=True)
class TrakLinear(Estimator):
    """TRAK at the window's own checkpoint, exact; effects of corrections to first order, sums of dr * tau.

    The default of version 0.1: right for single small changes, and for comparison.
    """

    name = "trak-linear"
    summary = "TRAK as `trak`, corrections taken for small changes"
    damping: float = LINEAR_LAMBDA

    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Compute the Gram matrix of the window once; each damping is a solve."""
        return _ExactWindow(window, Channels(actor, window.rows, targets, window.name, window.vf_coef))


@dataclass(frozen=True)
class TracIn(Estimator):
    """Gradient products, after TracIn (Pruthi et al. 2020, arXiv:2002.08484), each window at its own checkpoint."""

    name = "tracin"
    summary = "gradient products, nothing preconditioned"

    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Compute the products once; they know no damping."""
        channels = Channels(actor, window.rows, targets, window.name, window.vf_coef)
        return _ExactWindow(window, channels, product=True)
