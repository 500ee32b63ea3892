r"""The system of a window's rows, :math:`A + \lambda I` with :math:`A = C^{1/2} K C^{1/2} / n`, and its solution.

K are the inner products of the rows' gradients, C their counts, n the sum of these. Three forms, the cheapest that is
exact enough first:

- Gradients of a trained policy are many and alike: A is, up to 1e-6 of the smallest damping, L L^T with some hundred
  columns (measured: 105 to 130 of 2,048 rows). A partial Cholesky factorisation with pivots finds L from the columns of
  its pivots alone (Harbrecht, Peters and Schneider 2012), in float64. By Woodbury's identity a solve then costs 4 U r.
- Else the whole matrix in float32 and its Cholesky factor, where rounding is small beside the damping (of convolutions
  only the products are in float32, sums and the factor in float64),
- or in float64.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.linalg.lapack import dpstrf
from torch import Tensor

from .factors import Factors

LARGEST_ERROR = 1e-4  # of scores, relative to the norm of those of a failure
_REMAINDER = 1e-9  # trace of what a partial factorisation leaves: 1e-6 of the damping 1e-3
_PROBED = 64  # rows whose inner products with all rows decide which form is taken; of convolutions a quarter
_PIVOTS = 128  # of one block
_MOST_COLUMNS = 8  # the U-th part of the rows; with more columns the whole matrix is cheaper
_SINGLE = 2.0**-24
_SUMMED = 2.0**-8  # of the rounding of float32 that is left where sums and the solution are in float64 (measured)


class Dense:
    """The whole matrix; only the Cholesky factor of the latest damping is kept, which stands in its place.

    Args:
        gradients: of the distinct rows, scaled: their inner products are A. In float32 or float64.
    """

    def __init__(self, gradients: Factors) -> None:
        self._gradients = gradients
        self._latest: tuple[float, Tensor] | None = None

    def solve(self, lam: float, right: Tensor) -> Tensor:
        """Return the solution for [U, M], in the precision of the matrix.

        Raises:
            LinAlgError: rounding has made the matrix not even positive definite (scipy's, or torch's off the CPU).
        """
        if self._latest is None or self._latest[0] != lam:
            self._latest = None  # not two factors at once
            self._latest = (lam, self._factor(lam))
        factor = self._latest[1]
        given = right.to(factor.dtype)
        if not factor.is_cpu:
            return torch.cholesky_solve(given, factor, upper=True)
        solved: NDArray[np.floating] = cho_solve((factor.numpy().T, True), given.numpy(), check_finite=False)
        return torch.from_numpy(solved)

    def _factor(self, lam: float) -> Tensor:
        system = self._gradients.gram()
        system.diagonal().add_(lam)
        if not system.is_cpu:
            upper: Tensor = torch.linalg.cholesky(system, upper=True)
            return upper
        # scipy's factorisation: measured a quarter faster than torch's on one core; the transpose is the column-major
        # array that LAPACK overwrites without a copy, its lower triangle our upper one
        cho_factor(system.numpy().T, lower=True, overwrite_a=True, check_finite=False)
        return system


class LowRank:
    """A as L L^T.

    Args:
        columns: L [U, r], float64.
        remainder: trace of A - L L^T, which bounds its norm.
    """

    def __init__(self, columns: Tensor, remainder: float) -> None:
        self.columns, self.remainder = columns, remainder
        self._inner = columns.T @ columns

    def solve(self, lam: float, right: Tensor) -> Tensor:
        r"""Return :math:`(b - L (L^T L + \lambda I)^{-1} L^T b) / \lambda`.

        The relative error of a column is at most that of A divided by lambda.
        """
        inner = self._inner.clone()
        inner.diagonal().add_(lam)
        inside = torch.cholesky_solve(self.columns.T @ right, torch.linalg.cholesky(inner))
        return (right - self.columns @ inside) / lam


class Probe(NamedTuple):
    """Some rows of A in float64: which form it is given is decided by them, and solutions in float32 are checked.

    Attributes:
        rows: int64 [R].
        matrix: A of these rows, [R, U].
        trace: of A, estimated from these rows.
    """

    rows: Tensor
    matrix: Tensor
    trace: float

    @staticmethod
    def of(gradients: Factors) -> Probe:
        """Compute the rows.

        Args:
            gradients: of the distinct rows, scaled: their inner products are A.
        """
        rows = evenly(gradients.rows, _PROBED // 4 if gradients.at_places else _PROBED).to(gradients.device)
        some = gradients.rows_of(rows)
        return Probe(rows, some.products(gradients), float(some.norms.mean() * gradients.rows))

    def single_error(self, lam: float, summed: bool) -> float:
        """Return the error that float32 is expected to have: rounding of the largest eigenvalue, beside the damping.

        Args:
            lam: damping.
            summed: whether only products are in float32, sums and the solution in float64.
        """
        largest = float(torch.linalg.eigvalsh(self.matrix[:, self.rows])[-1]) * self.matrix.shape[1] / len(self.rows)
        return _SINGLE * (_SUMMED if summed else 1.0) * min(largest, self.trace) / lam

    def error(self, lam: float, right: Tensor, solved: Tensor) -> float:
        r"""Return how far a solution [U, M] is off, at most: the largest of its columns.

        With the residual :math:`\rho` of the system in float64, :math:`|y - y^*| \le |\rho|/\lambda`, for no eigenvalue
        is below lambda. The bound is relative to |y|; |rho| is estimated from these rows.

        Args:
            lam: damping.
            right: of these rows, [R, M].
            solved: [U, M].
        """
        residual = right - self.matrix @ solved - lam * solved[self.rows]
        missed = residual.norm(dim=0) * (len(solved) / len(self.rows)) ** 0.5
        size = lam * solved.norm(dim=0)
        return float(torch.where(missed == 0.0, 0.0, missed / size.clamp_min(torch.finfo(torch.float64).tiny)).max())


def evenly(count: int, most: int) -> Tensor:
    """Return some of the numbers below `count`, ascending: all, or `most` of them."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).long()


def low_rank(gradients: Factors, probe: Probe) -> LowRank | None:
    """Return A as L L^T; None where that takes too many columns, which mostly the first ones show.

    Args:
        gradients: of the distinct rows in float64, scaled: their inner products are A.
        probe: its rows are the first pivots.
    """
    if probe.trace * 2.0**-49 > _REMAINDER:
        return None  # below what float64 tells from zero
    most = gradients.rows // _MOST_COLUMNS
    columns = _with_pivots(probe.matrix.new_zeros(gradients.rows, 0), probe.rows, probe.matrix.T)
    others = (probe.rows[1:] + probe.rows[:-1]) // 2
    if len(others) and not _will_do(
        columns[others], gradients.rows_of(others).norms, probe.trace, most, gradients.rows
    ):
        return None  # as some rows say, before all norms are computed
    norms = gradients.norms
    while True:
        left = (norms - columns.square().sum(1)).clamp_min(0.0)
        remainder, count = float(left.sum()), columns.shape[1]
        if remainder <= _REMAINDER:
            return LowRank(columns, remainder)
        if count >= most or not _will_do(columns, norms, float(norms.sum()), most, gradients.rows):
            return None
        rows = left.topk(min(_PIVOTS, len(left))).indices
        columns = _with_pivots(columns, rows, gradients.products(gradients.rows_of(rows)))


def _will_do(columns: Tensor, norms: Tensor, trace: float, most: int, rows: int) -> bool:
    """Return whether `most` columns will leave little enough, if the remainder falls on as geometrically as so far."""
    left = float((norms - columns.square().sum(1)).clamp_min(0.0).mean()) * rows
    if left <= _REMAINDER or columns.shape[1] >= most:
        return left <= _REMAINDER
    return float(np.log(_REMAINDER / trace)) >= float(np.log(left / trace)) / columns.shape[1] * most


def _with_pivots(columns: Tensor, rows: Tensor, block: Tensor) -> Tensor:
    """Add columns to a partial Cholesky factor.

    Args:
        columns: so far, [U, r].
        rows: int64 [B], candidates for pivots.
        block: A of all rows and these, [U, B].
    """
    left = block - columns @ columns[rows].T
    inner: NDArray[np.float64] = left[rows].cpu().numpy()
    factor, pivots, rank, _ = dpstrf(inner, tol=_REMAINDER / len(columns) / 16, lower=1)
    chosen = torch.as_tensor(pivots[:rank] - 1, device=columns.device)
    lower = torch.as_tensor(np.tril(factor[:rank, :rank]), device=columns.device)
    added = torch.linalg.solve_triangular(lower, left[:, chosen].T, upper=False).T
    return torch.cat([columns, added], dim=1)
