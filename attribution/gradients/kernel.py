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

from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from ...datasets.arrays import Array, row_bytes
from ...datasets.errors import NonFiniteError
from ...training.environments.spaces import as_tensors
from ..targets.given import NOTHING_BESIDE, Given
from ..targets.outputs import Outputs
from ..targets.steps import TargetSteps
from .factors import Factors, Functional, gradient_factors

DEFAULT_LAMBDA = 1e-2
LAMBDAS = (1e-2, 1e-1, 1e-3)
DOUBLE_ROWS = 1024
LARGEST_ERROR = 1e-4  # of float32 scores, relative to those of the window; else they are computed in float64
_CHECKED_ROWS, _CHECKED_FAILURES = 64, 16
Factor = tuple[NDArray[np.floating], bool]  # scipy's Cholesky factor: the array, and whether it is the lower triangle


@dataclass(frozen=True)
class WindowRows:
    """What scores need of a window: its distinct (observation, action) rows.

    Attributes:
        observations: [U, ...] distinct rows.
        actions: [U] or [U, K].
        counts: [U], how often each occurs.
        row: int64 [N], the distinct row of each transition.
        given: what the policy was given beside the observations.
    """

    observations: Array
    actions: Array
    counts: NDArray[np.int64]
    row: NDArray[np.int64]
    given: Given = NOTHING_BESIDE

    @staticmethod
    def of(observations: Array, actions: Array, given: Given = NOTHING_BESIDE) -> WindowRows:
        """Collapse the transitions of a window, observations [N, ...] and actions [N] or [N, K].

        With a history no two transitions are the same, and none is left out.
        """
        if given.history is not None:
            every = np.arange(len(actions))
            return WindowRows(observations, actions, np.ones_like(every), every, given)
        parts = [observations, actions, *([] if given.mask is None else [given.mask])]
        keys = np.concatenate([row_bytes(part) for part in parts], axis=1)
        whole = keys.view(f"V{keys.shape[1]}")[:, 0]  # compared as one value: 100 times faster than by column
        _, first, row, counts = np.unique(whole, return_index=True, return_inverse=True, return_counts=True)
        return WindowRows(observations[first], actions[first], counts, row.reshape(-1), given.rows(first))


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
        policy: its parameters are kept, for it may go on to others.
        functional: whose gradients the window's are.
        rows, targets, where: see `policy_gradients`.

    Attributes:
        refused: the largest damping at which float32 was too inexact; 0: none so far.
    """

    def __init__(
        self, policy: ActorCriticPolicy, functional: Functional, rows: WindowRows, targets: TargetSteps, where: str
    ) -> None:
        self._policy, self._parameters, self._functional = policy, _parameters(policy), functional
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
        return _inner_products(*self._factors(self._targets), self._rows, self._targets, self._where)

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

    def _factors(self, targets: TargetSteps) -> tuple[Factors, Factors]:
        """Return the factored gradients of the window's rows and of some targets' steps."""
        policy, rows = self._policy, self._rows
        now, precision = _parameters(policy), next(policy.parameters()).dtype
        policy.double().load_state_dict(self._parameters)
        window = gradient_factors(policy, as_tensors(rows.observations), self._functional, rows.given)
        steps = gradient_factors(policy, as_tensors(targets.observations), targets.functional(), targets.given)
        policy.to(precision).load_state_dict(now)
        return window, steps


def _parameters(policy: ActorCriticPolicy) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in policy.state_dict().items()}


def target_factors(policy: ActorCriticPolicy, rows: WindowRows, targets: TargetSteps) -> Factors:
    """Return the factored gradients of the targets' steps, which both channels of a window are multiplied with."""
    _set_precision(policy, rows)
    return gradient_factors(policy, as_tensors(targets.observations), targets.functional(), targets.given)


def policy_gradients(
    policy: ActorCriticPolicy, rows: WindowRows, targets: TargetSteps, where: str, steps: Factors | None = None
) -> WindowGradients:
    """Compute the inner products of the policy channel: gradients of log pi(a|s) of a window's distinct rows.

    In float64 up to `DOUBLE_ROWS` distinct rows, beyond in float32: half the time. At each damping scores in float32
    are checked by some rows in float64; where they may be off by more than `LARGEST_ERROR`, all are done in float64.

    Args:
        policy: the policy with the parameters that collected the window; its dtype is changed.
        rows: the window's distinct rows.
        targets: the failures' target steps.
        where: names the window in messages.
        steps: the gradients of the targets (`target_factors`); None: they are computed.

    Raises:
        NonFiniteError: a gradient is NaN or infinite; names window and row.
        InputError: the policy's gradients have no factored form.
    """
    actions = torch.as_tensor(rows.actions)
    return _gradients(policy, lambda said: said.distribution.log_prob(actions).sum(), rows, targets, where, steps)


def value_gradients(
    policy: ActorCriticPolicy,
    rows: WindowRows,
    targets: TargetSteps,
    where: str,
    scale: float,
    steps: Factors | None = None,
) -> WindowGradients | None:
    """Compute the inner products of the value channel: gradients of `scale` V(s) of a window's distinct rows.

    Args:
        policy, rows, targets, where, steps: see `policy_gradients`.
        scale: factor of V(s), such that the mean of the products is the Gauss-Newton matrix of the value loss.

    Returns:
        None where the value loss moves no parameter that a target depends on: all effects are zero.
    """
    steps = steps or target_factors(policy, rows, targets)

    def functional(said: Outputs) -> Tensor:
        return scale * said.values.sum()

    window = _window_factors(policy, rows, functional)
    return _gradients(policy, functional, rows, targets, where, steps, window) if window.shares_layers(steps) else None


def q_gradients(policy: ActorCriticPolicy, rows: WindowRows, targets: TargetSteps, where: str) -> WindowGradients:
    """Compute the inner products of a Q-network: gradients of Q(s, a) of the distinct rows that updates drew.

    Args:
        policy: a network of `q_networks`.
        rows, targets, where: see `policy_gradients`; actions are zeros where the network gives one value a row.
    """
    actions = torch.as_tensor(rows.actions)[:, None]
    return _gradients(policy, lambda said: said.distribution.head.gather(1, actions).sum(), rows, targets, where)


def _gradients(
    policy: ActorCriticPolicy,
    functional: Functional,
    rows: WindowRows,
    targets: TargetSteps,
    where: str,
    steps: Factors | None = None,
    window: Factors | None = None,
) -> WindowGradients:
    """Return the inner products of the gradients of a functional of the window's rows (`window`, if they are there)."""
    found = _inner_products(
        window or _window_factors(policy, rows, functional), steps or target_factors(policy, rows, targets),
        rows, targets, where,
    )  # fmt: skip
    if found.gram.dtype == torch.float64:
        return found
    return replace(found, double=DoubleGradients(policy, functional, rows, targets, where))


def _window_factors(policy: ActorCriticPolicy, rows: WindowRows, functional: Functional) -> Factors:
    """Return the factored gradients of the window's rows."""
    _set_precision(policy, rows)
    return gradient_factors(policy, as_tensors(rows.observations), functional, rows.given)


def _set_precision(policy: ActorCriticPolicy, rows: WindowRows) -> None:
    policy.to(torch.float64 if len(rows.counts) <= DOUBLE_ROWS else torch.float32)


def _inner_products(
    window: Factors, steps: Factors, rows: WindowRows, targets: TargetSteps, where: str
) -> WindowGradients:
    gram, cross = window.gram_and_products(*_used(steps, targets))
    _require_finite(gram.diagonal(), rows, where)
    if not torch.isfinite(cross).all():
        failure = int((~torch.isfinite(cross)).any(dim=0).nonzero()[0])
        raise NonFiniteError(f"{where}: the gradient of the target of failure {targets.ids[failure]} is not finite")
    return WindowGradients(gram, cross, rows)


def _used(steps: Factors, targets: TargetSteps) -> tuple[Factors, Tensor, int]:
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
