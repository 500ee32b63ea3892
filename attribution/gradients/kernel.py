r"""TRAK at a window's own checkpoint, exact and without projection (the dual form).

With :math:`\Phi` [n, P] the gradients of log pi of the window's n transitions and q [P, F] the gradients
of the failures' targets,

.. math:: s = \Phi (\Phi^T\Phi/n + \lambda I)^{-1} q = (\Phi\Phi^T/n + \lambda I)^{-1} (\Phi q),

so only the n x n Gram matrix is needed. Transitions with the same observation and action have the same
gradient; they are kept once, with their count c as weight, which is exact:
:math:`C^{1/2}s = (C^{1/2} K C^{1/2}/n + \lambda I)^{-1} C^{1/2} (\Phi q)` on the distinct rows.

Source: Park et al. 2023 (arXiv:2303.14186), eq. 13-17, with the empirical Fisher as the kernel and the
push-through identity in place of the random projection; docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError
from torch import Tensor

from ...datasets.errors import NonFiniteError
from ...training.agents.memory import is_recurrent
from ..actors.outputs import Actor
from ..targets.steps import Targets
from .factors import Factors, Pairs
from .layers import gradient_factors
from .rows import WindowRows
from .systems import LARGEST_ERROR, Dense, LowRank, Probe, evenly, low_rank

DEFAULT_LAMBDA = 1e-3
LINEAR_LAMBDA = 1e-2  # of estimators that take a correction for a small change: what was measured of them in 0.1
LAMBDAS = (1e-3, 1e-2, 1e-1)
DOUBLE_ROWS = 1024
_CHECKED_FAILURES = 16
Scores = NDArray[np.float64]


class WindowGradients:
    """Inner products of a window's gradients at its own checkpoint, computed when they are asked for.

    In float64 up to `DOUBLE_ROWS` distinct rows; beyond, in the cheapest form that is exact enough (`systems`).

    Args:
        window: gradients of the distinct rows, [U], float64.
        steps: gradients of the targets' distinct steps, float64.
        pairs: which steps are summed in the target of which of the F failures.
        rows: the distinct rows.
    """

    def __init__(self, window: Factors, steps: Factors, pairs: Pairs, rows: WindowRows) -> None:
        self.rows, self._steps, self._pairs = rows, steps, pairs
        counts = torch.as_tensor(rows.counts, dtype=torch.float64, device=steps.device)
        self._root = (counts / counts.sum()).sqrt()[:, None]  # C^1/2 / n^1/2
        self._scaled = window.scaled(self._root)
        self._accepted = np.inf  # the smallest damping at which float32 was checked and exact enough

    @property
    def failures(self) -> int:
        """F."""
        return self._pairs.sums

    @cached_property
    def targets(self) -> Tensor:
        """Phi q [U, F], inner products with the gradients of the failures' targets."""
        return self._products / self._root

    def trak(self, lam: float) -> Scores:
        r"""Return TRAK scores s of the distinct rows [U, F]: :math:`g \cdot (\hat F + \lambda I)^{-1} \nabla f`.

        Args:
            lam: damping, absolute, in the unit of the Fisher matrix.
        """
        solved, _ = self._solved(lam, lambda products: products)
        return _numpy(solved / self._root)

    def summed_trak(self, lam: float, weights: Scores) -> Scores:
        """Return sums of TRAK scores, weights^T s [G, F], by G solves instead of F.

        Args:
            lam: damping.
            weights: of each distinct row, [U, G].
        """
        right = torch.as_tensor(weights, device=self._root.device) / self._root
        solved, products = self._solved(lam, lambda _: right)
        return _numpy(solved.T.to(products.dtype) @ products)

    def gradient_product(self) -> Scores:
        r"""Return TracIn-style scores of the distinct rows [U, F]: :math:`g \cdot \nabla f`."""
        return _numpy(self.targets)

    def _solved(self, lam: float, right: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Return the solution of the system for what `right` makes of the products with the targets, and these."""
        if self._probe is None:
            return self._whole.solve(lam, right(self._products)), self._products
        low_rank = self._low_rank
        if low_rank is not None and low_rank.remainder <= LARGEST_ERROR * lam:
            return low_rank.solve(lam, right(self._products)), self._products
        if self._single_suffices(lam):
            return self._single.solve(lam, right(self._single_products)), self._single_products
        return self._whole.solve(lam, right(self._products)), self._products

    def _single_suffices(self, lam: float) -> bool:
        """Return whether float32 is exact enough at a damping: expected to be, and checked to be on some rows."""
        assert self._probe is not None
        if lam >= self._accepted:  # a smaller damping is the more inexact
            return True
        if "_whole" in vars(self) or self._probe.single_error(lam, self._scaled.at_places) > LARGEST_ERROR / 2:
            return False
        some = evenly(self._pairs.sums, _CHECKED_FAILURES).to(self._root.device)
        chosen, pairs = self._pairs.of(some)
        exact = self._scaled.rows_of(self._probe.rows).products(self._steps.rows_of(chosen), pairs)
        try:
            solved = self._single.solve(lam, self._single_products[:, some])
        except (LinAlgError, torch.linalg.LinAlgError):  # type: ignore[attr-defined]  # not positive definite
            return False
        if not self._probe.error(lam, exact, solved.double()) <= LARGEST_ERROR:
            return False
        self._accepted = lam
        return True

    @cached_property
    def _probe(self) -> Probe | None:
        return None if self._scaled.rows <= DOUBLE_ROWS else Probe.of(self._scaled)

    @cached_property
    def _low_rank(self) -> LowRank | None:
        assert self._probe is not None
        return low_rank(self._scaled, self._probe)

    @cached_property
    def _single(self) -> Dense:
        return Dense(self._scaled.single())

    @cached_property
    def _whole(self) -> Dense:
        return Dense(self._scaled)

    @cached_property
    def _products(self) -> Tensor:
        """Products of the scaled gradients with those of the targets, [U, F]."""
        return self._scaled.products(self._steps, self._pairs)

    @cached_property
    def _single_products(self) -> Tensor:
        if "_products" in vars(self):
            return self._products
        return self._scaled.single().products(self._steps.single(), self._pairs)


def _numpy(values: Tensor) -> Scores:
    return values.double().cpu().numpy()


class TargetSteps(NamedTuple):
    """Gradients of the targets' distinct steps, and which are summed in which target."""

    factors: Factors
    pairs: Pairs

    @staticmethod
    def of(actor: Actor, targets: Targets) -> TargetSteps:
        """Compute them: of steps that count, equal ones once."""
        remembers = is_recurrent(actor.module)
        distinct = targets.distinct(remembers)
        steps = distinct.steps
        inputs = steps.inputs if remembers else replace(steps.inputs, history=None)
        factors = gradient_factors(actor, steps.observations, steps.functional(), inputs)
        chosen = np.unique(distinct.step)
        if len(chosen) < len(steps.failure):
            factors = factors.rows_of(torch.as_tensor(chosen, device=factors.device))
        device, row = factors.device, np.searchsorted(chosen, distinct.step)
        used, owner, weight = (torch.as_tensor(x, device=device) for x in (row, distinct.failure, distinct.weight))
        return TargetSteps(factors, Pairs(used, owner, weight, targets.failures))


def inner_products(
    window: Factors, steps: TargetSteps, rows: WindowRows, targets: Targets, where: str
) -> WindowGradients:
    """Return the inner products of a window's gradients with each other and with those of the targets.

    Args:
        window: gradients of the distinct rows, [U].
        steps: gradients of the targets' steps.
        rows, targets, where: see `channels.policy_gradients`.

    Raises:
        NonFiniteError: a gradient is NaN or infinite; names window and row, or the failure.
    """
    _require_finite(window.finite(), rows, where)
    bad = (~steps.factors.finite())[steps.pairs.row].nonzero()
    if len(bad):
        failure = int(steps.pairs.sum[bad].min())
        raise NonFiniteError(f"{where}: the gradient of the target of failure {targets.ids[failure]} is not finite")
    return WindowGradients(window, steps.factors, steps.pairs, rows)


def _require_finite(finite: Tensor, rows: WindowRows, where: str) -> None:
    bad = (~finite).nonzero()
    if len(bad):
        row = int(np.flatnonzero(rows.row == int(bad[0]))[0])
        raise NonFiniteError(
            f"{where}, row {row}: its gradient is not finite. The training diverged at this window, "
            "or an observation is not finite; nothing is repaired silently"
        )
