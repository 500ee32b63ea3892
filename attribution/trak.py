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

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from ..datasets.arrays import Array, row_bytes
from ..datasets.errors import NonFiniteError
from ..training.spaces import as_tensors
from .factors import Factors, Functional, gradient_factors
from .given import NOTHING_BESIDE, Given
from .targets import TargetSteps

DEFAULT_LAMBDA = 1e-2
LAMBDAS = (1e-2, 1e-1, 1e-3)
DOUBLE_ROWS = 1024


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
    """

    gram: Tensor
    targets: Tensor
    rows: WindowRows

    def trak(self, lam: float) -> NDArray[np.float64]:
        r"""Return TRAK scores s of the distinct rows [U, F]: :math:`g \cdot (\hat F + \lambda I)^{-1} \nabla f`.

        Args:
            lam: damping, absolute, in the unit of the Fisher matrix.
        """
        root = self._root()
        solved = self._solve(lam, root * self.targets)
        return np.asarray(solved / root.numpy(), dtype=np.float64)

    def summed_trak(self, lam: float, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return sums of TRAK scores, weights^T s [G, F], by G solves instead of F.

        Args:
            lam: damping.
            weights: of each distinct row, [U, G].
        """
        root = self._root()
        solved = self._solve(lam, torch.as_tensor(weights, dtype=self.gram.dtype) / root)
        return np.asarray((torch.from_numpy(solved) * root).T @ self.targets, dtype=np.float64)

    def _root(self) -> Tensor:
        return torch.as_tensor(self.rows.counts, dtype=self.gram.dtype).sqrt()[:, None]

    def _solve(self, lam: float, right: Tensor) -> NDArray[np.floating]:
        """Solve the symmetric system of the distinct rows, scaled by the roots of their counts, for [U, M]."""
        root = self._root()
        system = (self.gram * root).mul_(root.T / int(self.rows.counts.sum()))
        system.diagonal().add_(lam)
        # scipy's factorisation: measured a quarter faster than torch's on one core; the matrix is symmetric, so its
        # transpose is the column-major array that LAPACK overwrites without a copy
        factor = cho_factor(system.numpy().T, lower=True, overwrite_a=True, check_finite=False)
        solved: NDArray[np.floating] = cho_solve(factor, right.numpy(), overwrite_b=True, check_finite=False)
        return solved

    def gradient_product(self) -> NDArray[np.float64]:
        r"""Return TracIn-style scores of the distinct rows [U, F]: :math:`g \cdot \nabla f`."""
        products: NDArray[np.float64] = self.targets.double().numpy()
        return products


def target_factors(policy: ActorCriticPolicy, rows: WindowRows, targets: TargetSteps) -> Factors:
    """Return the factored gradients of the targets' steps, which both channels of a window are multiplied with."""
    _set_precision(policy, rows)
    return gradient_factors(policy, as_tensors(targets.observations), targets.functional(), targets.given)


def policy_gradients(
    policy: ActorCriticPolicy, rows: WindowRows, targets: TargetSteps, where: str, steps: Factors | None = None
) -> WindowGradients:
    """Compute the inner products of the policy channel: gradients of log pi(a|s) of a window's distinct rows.

    In float64 up to `DOUBLE_ROWS` distinct rows, beyond in float32: half the time, and at the dampings in use a
    relative error of scores under 1e-4 (measured by `benchmarks/attribution.py`).

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
    window = _window_factors(policy, rows, lambda outputs: outputs.distribution.log_prob(actions).sum())
    return _inner_products(window, steps or target_factors(policy, rows, targets), rows, targets, where)


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
    window = _window_factors(policy, rows, lambda outputs: scale * outputs.values.sum())
    steps = steps or target_factors(policy, rows, targets)
    return _inner_products(window, steps, rows, targets, where) if window.shares_layers(steps) else None


def q_gradients(policy: ActorCriticPolicy, rows: WindowRows, targets: TargetSteps, where: str) -> WindowGradients:
    """Compute the inner products of a Q-network: gradients of Q(s, a) of the distinct rows that updates drew.

    Args:
        policy: a network of `q_networks`.
        rows, targets, where: see `policy_gradients`; actions are zeros where the network gives one value a row.
    """
    actions = torch.as_tensor(rows.actions)[:, None]
    window = _window_factors(policy, rows, lambda outputs: outputs.distribution.head.gather(1, actions).sum())
    return _inner_products(window, target_factors(policy, rows, targets), rows, targets, where)


def _window_factors(policy: ActorCriticPolicy, rows: WindowRows, functional: Functional) -> Factors:
    """Return the factored gradients of the window's rows."""
    _set_precision(policy, rows)
    return gradient_factors(policy, as_tensors(rows.observations), functional, rows.given)


def _set_precision(policy: ActorCriticPolicy, rows: WindowRows) -> None:
    policy.to(torch.float64 if len(rows.counts) <= DOUBLE_ROWS else torch.float32)


def _inner_products(
    window: Factors, steps: Factors, rows: WindowRows, targets: TargetSteps, where: str
) -> WindowGradients:
    used = torch.arange(steps.rows)
    if targets.user is None:  # the gradients of all other steps are zero
        used = used[torch.as_tensor(targets.step_weights() > 0.0)]
    owner = torch.as_tensor(targets.failure)[used]
    gram, cross = window.gram_and_products(steps.rows_of(used), owner, targets.failures)
    _require_finite(gram.diagonal(), rows, where)
    if not torch.isfinite(cross).all():
        failure = int((~torch.isfinite(cross)).any(dim=0).nonzero()[0])
        raise NonFiniteError(f"{where}: the gradient of the target of failure {targets.ids[failure]} is not finite")
    return WindowGradients(gram, cross, rows)


def _require_finite(norms: Tensor, rows: WindowRows, where: str) -> None:
    bad = (~torch.isfinite(norms)).nonzero()
    if len(bad):
        row = int(np.flatnonzero(rows.row == int(bad[0]))[0])
        raise NonFiniteError(
            f"{where}, row {row}: its gradient is not finite. The training diverged at this window, "
            "or an observation is not finite; nothing is repaired silently"
        )
