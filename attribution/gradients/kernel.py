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

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from torch import Tensor

from ...datasets.errors import NonFiniteError
from ..actors.outputs import Actor
from ..targets.steps import Targets
from .factors import Factors
from .layers import Functional, gradient_factors
from .rows import WindowRows

DEFAULT_LAMBDA = 1e-3
LINEAR_LAMBDA = 1e-2  # of estimators that take a correction for a small change: what was measured of them in 0.1
LAMBDAS = (1e-3, 1e-2, 1e-1)
LARGEST_ERROR = 1e-4  # of float32 scores, relative to those of the window; else they are computed in float64
_CHECKED_ROWS, _CHECKED_FAILURES = 64, 16
Factor = tuple[NDArray[np.floating], bool]  # scipy's Cholesky factor: the array, and whether it is the lower triangle


@dataclass(frozen=True)
class WindowGradients:
    """Inner products of a window's gradients at its own checkpoint.

    Attributes:
        gram: K [U, U], inner products of the distinct rows' gradients of log pi(a|s).
        targets: Phi q [U, F], inner products with the gradients of the failures' targets.
        rows: the distinct rows.
        double: the same in float64, if these are in float32: for dampings at which these are too inexact.
    """

    gram: Tensor
    targets: Tensor
    rows: WindowRows
    double: DoubleGradients | None = None

    def trak(self, lam: float) -> NDArray[np.float64]:
        r"""Return TRAK scores s of the distinct rows [U, F]: :math:`g \cdot (\hat F + \lambda I)^{-1} \nabla f`.

        Args:
            lam: damping, absolute, in the unit of the Fisher matrix.
        """
        used, factor = self._factorised(lam)
        root = used.root()
        return np.asarray(solve(factor, root * used.targets) / root.numpy(), dtype=np.float64)

    def summed_trak(self, lam: float, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return sums of TRAK scores, weights^T s [G, F], by G solves instead of F.

        Args:
            lam: damping.
            weights: of each distinct row, [U, G].
        """
        used, factor = self._factorised(lam)
        root = used.root()
        solved = solve(factor, torch.as_tensor(weights, dtype=root.dtype) / root)
        return np.asarray((torch.from_numpy(solved) * root).T @ used.targets, dtype=np.float64)

    def root(self) -> Tensor:
        """Return the roots of the counts of the distinct rows, [U, 1]."""
        return torch.as_tensor(self.rows.counts, dtype=self.gram.dtype).sqrt()[:, None]

    def _factorised(self, lam: float) -> tuple[WindowGradients, Factor]:
        """Return the factor of the system at a damping, and whose it is: these gradients', or the float64 ones'."""
        if self.double is None:
            return self, self._factor(lam)
        if lam > self.double.refused:  # a smaller damping is the more inexact
            try:
                factor = self._factor(lam)
            except LinAlgError:  # in float32 not even positive definite
                pass
            else:
                if self.double.error(self, factor, lam) <= LARGEST_ERROR:
                    return self, factor
            self.double.refused = lam
        return self.double.whole, self.double.whole._factor(lam)

    def _factor(self, lam: float) -> Factor:
        """Factorise the symmetric system of the distinct rows, scaled by the roots of their counts."""
        root = self.root()
        system = (self.gram * root).mul_(root.T / int(self.rows.counts.sum()))
        system.diagonal().add_(lam)
        # scipy's factorisation: measured a quarter faster than torch's on one core; the matrix is symmetric, so its
        # transpose is the column-major array that LAPACK overwrites without a copy
        factor: Factor = cho_factor(system.numpy().T, lower=True, overwrite_a=True, check_finite=False)
        return factor

    def gradient_product(self) -> NDArray[np.float64]:
        r"""Return TracIn-style scores of the distinct rows [U, F]: :math:`g \cdot \nabla f`."""
        products: NDArray[np.float64] = self.targets.double().numpy()
        return products


def solve(factor: Factor, right: Tensor) -> NDArray[np.floating]:
    """Solve the system of a factor for [U, M]; `right` is overwritten."""
    solved: NDArray[np.floating] = cho_solve(factor, right.numpy(), overwrite_b=True, check_finite=False)
    return solved


class _Sample(NamedTuple):
    """Some rows and failures of a window in float64.

    Attributes:
        rows: int64 [R], distinct rows.
        failures: int64 [M].
        gram: inner products of these rows' gradients with those of all rows, [R, U].
        targets: with the gradients of these failures' targets, [R, M].
    """

    rows: NDArray[np.int64]
    failures: NDArray[np.int64]
    gram: NDArray[np.float64]
    targets: NDArray[np.float64]


class DoubleGradients:
    """The inner products of a window in float64: of a few rows, to check those in float32 by; of all where they fail.

    Args:
        actor: the policy; its parameters are kept, for it may go on to others.
        functional: whose gradients the window's are.
        rows, targets, where: see `channels.policy_gradients`.

    Attributes:
        refused: the largest damping at which float32 was too inexact; 0: none so far.
    """

    def __init__(
        self, actor: Actor, functional: Functional, rows: WindowRows, targets: Targets, where: str
    ) -> None:  # fmt: skip
        self._actor, self._parameters, self._functional = actor, _parameters(actor), functional
        self._rows, self._targets, self._where = rows, targets, where
        self.refused = 0.0

    def error(self, single: WindowGradients, factor: Factor, lam: float) -> float:
        r"""Return how far scores in float32 are from those in float64, at most: the largest of some failures.

        With :math:`y = C^{1/2}s` and the residual :math:`\rho` of its system in float64,
        :math:`|y - y^*| \le |\rho|/\lambda`, for no eigenvalue is below lambda. The bound is relative to |y|; |rho| is
        estimated from some rows.
        """
        sample, root = self._sample, single.root().double().numpy()
        scaled = solve(factor, single.root() * single.targets[:, sample.failures]).astype(np.float64)
        expected = sample.targets - sample.gram @ (root * scaled) / int(self._rows.counts.sum())
        residual = root[sample.rows] * expected - lam * scaled[sample.rows]
        missed = np.linalg.norm(residual, axis=0) * np.sqrt(len(root) / len(sample.rows))
        size = lam * np.linalg.norm(scaled, axis=0)
        return float(np.where(missed == 0.0, 0.0, missed / np.maximum(size, np.finfo(np.float64).tiny)).max())

    @cached_property
    def whole(self) -> WindowGradients:
        """All of them."""
        return inner_products(*self._factors(self._targets), self._rows, self._targets, self._where)

    @cached_property
    def _sample(self) -> _Sample:
        rows, failures = (
            np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))
            for count, most in ((len(self._rows.counts), _CHECKED_ROWS), (self._targets.failures, _CHECKED_FAILURES))
        )
        targets = self._targets.of(failures)
        window, steps = self._factors(targets)
        some = window.rows_of(torch.as_tensor(rows))
        _, gram = some.gram_and_products(window)
        _, products = some.gram_and_products(*_used(steps, targets))
        return _Sample(rows, failures, gram.numpy(), products.numpy())

    def _factors(self, targets: Targets) -> tuple[Factors, Factors]:
        """Return the factored gradients of the window's rows and of some targets' steps."""
        module, rows = self._actor.module, self._rows
        now, precision = _parameters(self._actor), next(module.parameters()).dtype
        module.double().load_state_dict(self._parameters)
        window = gradient_factors(self._actor, rows.observations, self._functional, rows.inputs)
        steps = gradient_factors(self._actor, targets.observations, targets.functional(), targets.inputs)
        module.to(precision).load_state_dict(now)
        return window, steps


def _parameters(actor: Actor) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in actor.module.state_dict().items()}


def inner_products(window: Factors, steps: Factors, rows: WindowRows, targets: Targets, where: str) -> WindowGradients:
    """Return the inner products of a window's gradients with each other and with those of the targets.

    Args:
        window: gradients of the distinct rows, [U].
        steps: gradients of the targets' steps, [T].
        rows, targets, where: see `channels.policy_gradients`.

    Raises:
        NonFiniteError: a gradient is NaN or infinite; names window and row, or the failure.
    """
    gram, cross = window.gram_and_products(*_used(steps, targets))
    _require_finite(gram.diagonal(), rows, where)
    if not torch.isfinite(cross).all():
        failure = int((~torch.isfinite(cross)).any(dim=0).nonzero()[0])
        raise NonFiniteError(f"{where}: the gradient of the target of failure {targets.ids[failure]} is not finite")
    return WindowGradients(gram, cross, rows)


def _used(steps: Factors, targets: Targets) -> tuple[Factors, Tensor, int]:
    """Return the factors of the steps that count, the failure of each, and F: what `gram_and_products` takes."""
    used = torch.arange(steps.rows)
    if targets.user is None:  # the gradients of all other steps are zero
        used = used[torch.as_tensor(targets.step_weights() > 0.0)]
    return steps.rows_of(used), torch.as_tensor(targets.failure)[used], targets.failures


def _require_finite(norms: Tensor, rows: WindowRows, where: str) -> None:
    bad = (~torch.isfinite(norms)).nonzero()
    if len(bad):
        row = int(np.flatnonzero(rows.row == int(bad[0]))[0])
        raise NonFiniteError(
            f"{where}, row {row}: its gradient is not finite. The training diverged at this window, "
            "or an observation is not finite; nothing is repaired silently"
        )
