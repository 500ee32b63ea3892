r"""Per-sample gradients of a policy in factored form: those of linear layers are never materialised.

For a linear layer the gradient of a per-sample scalar is an outer product: `D_t a_t^T` for the weight
and `D_t` for the bias, with `a_t` the layer's input and `D_t` the scalar's derivative by its output. So
inner products of gradients are sums over layers of products of two small Gram matrices:

.. math:: \langle g_t, g_u \rangle = \sum_{layers} (a_t \cdot a_u + 1[bias]) (D_t \cdot D_u).

A convolution applies its weight at L places, an embedding at L indices: the gradient is the sum of L outer
products. It is formed for a block of output channels at a time, and only the inner products are kept. One step of an
LSTM is linear up to its gates: a linear layer of what comes in and the hidden state.

Source: the factored form is the one of Goodfellow 2015 (arXiv:1510.01799); docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.linalg import get_blas_funcs
from torch import Tensor

_BLOCK_BYTES = 2**25  # of materialised gradients at once: what malloc uses again, and sums in float32 stay short
_UNFOLDED_BYTES = 2**28  # of unfolded inputs at once
_FORMING = 10  # times as long as an operation of a product of matrices takes one of forming a gradient (measured)
_UPPER_ROWS = 256  # of a block on and right of the diagonal
_CACHED_BYTES = 2**20  # of inner products at once, so that they stay in the cache from one layer to the next


@dataclass(frozen=True)
class LinearFactors:
    """A linear layer, used once a row: inputs [N, I] (a column of ones for a bias), derivatives [N, O]."""

    inputs: Tensor
    derivatives: Tensor


@dataclass(frozen=True)
class PlacesFactors:
    """A layer that is used at L places of a row: a convolution, an embedding, a linear layer on a sequence.

    Attributes:
        inputs: as the layer took them, [N, ...].
        derivatives: of the scalars by the layer's output, [N, O, L].
        unfold: maps rows of inputs to [n, L, I], what the weight is multiplied with at each place.
        bias: whether the layer has one.
    """

    inputs: Tensor
    derivatives: Tensor
    unfold: Callable[[Tensor], Tensor]
    bias: bool

    def products(self, other: PlacesFactors) -> Tensor:
        """Return the inner products with the gradients of `other`, [N, M], float64.

        Of rows with themselves only the upper triangle is meant, in half the work. Of factors in float32 the products
        are, too, but they are summed in float64.
        """
        channels, places = self.derivatives.shape[1:]
        width, pairs = self._unfolded(slice(1)).shape[2], len(self.inputs) * len(other.inputs)
        by_places = pairs * places**2 * (channels + width)
        formed = 0 if other is self else _FORMING * (len(self.inputs) + len(other.inputs)) * places
        total = self.derivatives.new_zeros(len(self.inputs), len(other.inputs), dtype=torch.float64)
        if by_places >= (pairs + formed) * channels * width:
            self._by_gradients(other, total)
        elif other is self:
            self._by_pairs_of_places(total)
        else:
            self._by_places(other, total)
        if self.bias:
            total.addmm_(self.derivatives.sum(2).double(), other.derivatives.sum(2).double().T)
        return total

    def _by_gradients(self, other: PlacesFactors, total: Tensor) -> None:
        """Form the gradients of a block of output channels at a time."""
        most = max(total.shape)
        if other is self:
            for mine in self._gradients(most):
                _add_upper_triangle(total, mine)
            return
        for mine, theirs in zip(self._gradients(most), other._gradients(most), strict=True):
            if mine.dtype == total.dtype:
                total.addmm_(mine, theirs.T)
            else:
                total.add_(_single_product(mine, theirs))

    def _by_pairs_of_places(self, total: Tensor) -> None:
        """Add, for every pair of places, the product of the inputs' and the derivatives' inner products."""
        unfolded = self._unfolded(slice(None)).transpose(0, 1).contiguous()
        places = list(zip(unfolded, self.derivatives.permute(2, 0, 1).contiguous(), strict=True))
        different = torch.zeros_like(total)
        for one, (inputs, derivatives) in enumerate(places):
            for two, (other_inputs, other_derivatives) in enumerate(places[: one + 1]):
                part = _single_product(inputs, other_inputs).mul_(_single_product(derivatives, other_derivatives))
                (total if one == two else different).add_(part)  # two and one give the transpose of one and two
        total.add_(different).add_(different.T)

    def _by_places(self, other: PlacesFactors, total: Tensor) -> None:
        """Do the same with `other`, all places of some rows at once."""
        places = self.derivatives.shape[2]
        mine, slopes = self._unfolded(slice(None)).flatten(0, 1), self.derivatives.mT.flatten(0, 1)
        step = max(1, _BLOCK_BYTES // (len(mine) * places * total.element_size()))
        for i in range(0, len(other.inputs), step):
            rows = slice(i, i + step)
            part = _single_product(other._unfolded(rows).flatten(0, 1), mine)
            part.mul_(_single_product(other.derivatives[rows].mT.flatten(0, 1), slopes))
            total[:, rows] += part.view(-1, places, len(self.inputs), places).sum((1, 3), dtype=total.dtype).T

    def norms(self) -> Tensor:
        """Return the squared norm of each gradient, [N]."""
        total = self.derivatives.sum(2).square().sum(1) if self.bias else self.derivatives.new_zeros(len(self.inputs))
        for gradients in self._gradients(len(self.inputs)):
            total += torch.linalg.vecdot(gradients, gradients)
        return total

    def _unfolded(self, rows: slice) -> Tensor:
        """Return what the weight is multiplied with at each place of some rows, [n, L, I]."""
        return self.unfold(self.inputs[rows]).to(self.derivatives.dtype)

    def _gradients(self, most: int) -> Iterator[Tensor]:
        """Yield the gradients by the weights of some output channels, [N, o * I].

        Args:
            most: rows of which the block of output channels is chosen.
        """
        count, channels = self.derivatives.shape[:2]
        sample = self._unfolded(slice(1))
        size = max(sample.numel() * sample.element_size(), 1)
        kept = self._unfolded(slice(None)) if count * size <= _UNFOLDED_BYTES else None
        block = max(1, _BLOCK_BYTES // max(most * sample.shape[2] * sample.element_size(), 1))
        step = max(1, _UNFOLDED_BYTES // 4 // size)
        for start in range(0, channels, block):
            derivatives = self.derivatives[:, start : start + block]
            outer = sample.new_empty(count, derivatives.shape[1], sample.shape[2])
            if kept is not None:
                torch.bmm(derivatives, kept, out=outer)
            else:
                for i in range(0, count, step):
                    torch.bmm(derivatives[i : i + step], self._unfolded(slice(i, i + step)), out=outer[i : i + step])
            yield outer.flatten(1)


@dataclass(frozen=True)
class Factors:
    """Factored per-sample gradients of N scalars: one entry a layer between observations and scalars.

    Attributes:
        rows: N.
        layers: by the layer's name in the policy.
    """

    rows: int
    layers: Mapping[str, LinearFactors | PlacesFactors]

    def rows_of(self, chosen: Tensor) -> Factors:
        """Return the factors of some of the rows; `chosen`: int64 [n]."""
        return self._map(len(chosen), lambda values: values[chosen])

    def to(self, dtype: torch.dtype) -> Factors:
        """Return the factors in another precision."""
        return self._map(self.rows, lambda values: values.to(dtype) if values.is_floating_point() else values)

    def single(self) -> Factors:
        """Return the factors in float32; with layers that are used at many places, where time goes, only of these."""
        chosen = {name: layer for name, layer in self.layers.items() if isinstance(layer, PlacesFactors)}
        changed = Factors(self.rows, chosen or self.layers).to(torch.float32)
        return Factors(self.rows, {**self.layers, **changed.layers})

    def scaled(self, by: Tensor) -> Factors:
        """Return the factors of gradients that are multiplied with a number each, [N]."""
        layers = {
            name: replace(layer, derivatives=layer.derivatives * by.reshape(-1, *[1] * (layer.derivatives.ndim - 1)))
            for name, layer in self.layers.items()
        }
        return Factors(self.rows, layers)

    def _map(self, rows: int, change: Callable[[Tensor], Tensor]) -> Factors:
        layers = {
            name: replace(layer, inputs=change(layer.inputs), derivatives=change(layer.derivatives))
            for name, layer in self.layers.items()
        }
        return Factors(rows, layers)

    @property
    def device(self) -> torch.device:
        """Where they are."""
        return self._like.device

    @property
    def _like(self) -> Tensor:
        return next(iter(self.layers.values())).derivatives

    @property
    def at_places(self) -> bool:
        """Whether some layer is used at many places of a row: then products are summed in float64."""
        return any(isinstance(layer, PlacesFactors) for layer in self.layers.values())

    @property
    def _precision(self) -> torch.dtype:
        return torch.float64 if self.at_places else self._like.dtype

    def shares_layers(self, other: Factors) -> bool:
        """Return whether some layer is in both; else all inner products are zero."""
        return not self.layers.keys().isdisjoint(other.layers)

    def finite(self) -> Tensor:
        """Return of which gradients all factors are finite, bool [N]."""
        parts = [part for layer in self.layers.values() for part in (layer.inputs, layer.derivatives)]
        return torch.stack([torch.isfinite(part.flatten(1)).all(dim=1) for part in parts]).all(dim=0)

    @cached_property
    def norms(self) -> Tensor:
        """The squared norm of each gradient, [N]."""
        total = self._like.new_zeros(self.rows)
        for layer in self.layers.values():
            if isinstance(layer, LinearFactors):
                total += layer.inputs.square().sum(1) * layer.derivatives.square().sum(1)
            else:
                total += layer.norms()
        return total

    def gram(self) -> Tensor:
        """Return the inner products with each other, [N, N], of which only the upper triangle is meant."""
        total = self._like.new_zeros(self.rows, self.rows, dtype=self._precision)
        linear = []
        for layer in self.layers.values():
            if isinstance(layer, LinearFactors):
                linear.append((layer, layer))
            else:
                total += layer.products(layer)
        _add_linear_products(total, linear, upper=True)
        return total

    def products(self, other: Factors, pairs: Pairs | None = None) -> Tensor:
        """Return the inner products with `other`, [N, M], or with sums of them, [N, F].

        Args:
            other: M gradients.
            pairs: which of them are summed; None: none.
        """
        sums = other.rows if pairs is None else pairs.sums
        total = self._like.new_zeros(sums, self.rows, dtype=self._precision)
        linear: list[tuple[LinearFactors, LinearFactors]] = []
        for name, mine in self.layers.items():
            theirs = other.layers.get(name)
            if isinstance(mine, LinearFactors) and isinstance(theirs, LinearFactors):
                linear.append((theirs, mine))
            elif isinstance(mine, PlacesFactors) and isinstance(theirs, PlacesFactors):
                part = mine.products(replace(theirs)).T  # a copy: all of it also where other is self
                total = total.add_(part) if pairs is None else pairs.add(total, part, 0)
        _add_linear_products(total, linear, pairs)
        return total.T  # column by column, as LAPACK takes right-hand sides


class Pairs(NamedTuple):
    """Which of M gradients is in which of F sums, and how much of it; n pairs.

    Attributes:
        row: int64 [n], ascending.
        sum: int64 [n].
        weight: [n].
        sums: F.
    """

    row: Tensor
    sum: Tensor
    weight: Tensor
    sums: int

    def of(self, chosen: Tensor) -> tuple[Tensor, Pairs]:
        """Return the rows that are in some of the sums (int64, ascending), and the pairs of these."""
        used = torch.isin(self.sum, chosen)
        rows, row = self.row[used].unique(return_inverse=True)
        return rows, Pairs(row, torch.searchsorted(chosen, self.sum[used]), self.weight[used], len(chosen))

    def add(self, total: Tensor, part: Tensor, start: int) -> Tensor:
        """Add rows of M from `start` on, [m, N], to the sums [F, N] in place; return these."""
        ends = torch.tensor([start, start + len(part)], device=part.device)
        first, last = torch.searchsorted(self.row, ends).tolist()
        weight = self.weight[first:last, None].to(part.dtype)
        return total.index_add_(0, self.sum[first:last], part[self.row[first:last] - start].mul_(weight))


def _add_linear_products(
    total: Tensor,
    layers: Sequence[tuple[LinearFactors, LinearFactors]],
    pairs: Pairs | None = None,
    upper: bool = False,
) -> None:
    """Add inner products of gradients, summed over layers, to [M, N], or sums of their rows to [F, N].

    Args:
        total: what they are added to.
        layers: the factors of each layer, of M and of N gradients.
        pairs: see `Factors.products`.
        upper: whether only blocks on and above the diagonal are computed.
    """
    if not layers:
        return
    others = [(other.inputs.T.contiguous(), other.derivatives.T.contiguous()) for _, other in layers]
    count, width = len(layers[0][0].inputs), total.shape[1]
    rows = max(16, min(count, _CACHED_BYTES // max(width * total.element_size(), 1)))
    buffers = total.new_empty(3, rows * width)
    for start in range(0, count, rows):
        first, size = start if upper else 0, min(rows, count - start)
        left, right, products = (buffer[: size * (width - first)].view(size, -1) for buffer in buffers)
        block = total[start : start + size, first:] if pairs is None else products.zero_()
        for (mine, _), (inputs, derivatives) in zip(layers, others, strict=True):
            _product(mine.inputs[start : start + size], inputs[:, first:], left)
            _product(mine.derivatives[start : start + size], derivatives[:, first:], right)
            block.addcmul_(left, right)
        if pairs is not None:
            pairs.add(total, block, start)


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """Write `left @ right`; of CPU tensors by numpy's BLAS, measured a quarter faster than torch's."""
    if out.is_cpu:
        np.matmul(left.numpy(), right.numpy(), out=out.numpy())
    else:
        torch.mm(left, right, out=out)


def _add_upper_triangle(total: Tensor, rows: Tensor) -> None:
    """Add the upper triangle of `rows @ rows.T` (of CPU tensors in half the work), or more of it."""
    if rows.dtype != total.dtype:
        for start in range(0, len(rows), _UPPER_ROWS):
            end = start + _UPPER_ROWS
            total[start:end, start:].add_(_single_product(rows[start:end], rows[start:]))
    elif total.is_cpu:
        # the same memory, read column by column, is what LAPACK takes without a copy: its lower triangle is our upper
        syrk = get_blas_funcs("syrk", [total.numpy()])
        syrk(1.0, rows.numpy().T, beta=1.0, c=total.numpy().T, trans=1, lower=1, overwrite_c=1)
    else:
        total.addmm_(rows, rows.T)


def _single_product(left: Tensor, right: Tensor) -> Tensor:
    """Return `left @ right.T`; in float32 on the CPU by oneDNN, which takes very long where rows are not contiguous.

    Its kernels were measured twice as fast as those of torch.mm (MKL) and numpy (OpenBLAS) on an AMD CPU.
    """
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    if linear is None or left.dtype != torch.float32 or not left.is_cpu:
        return left @ right.T
    product: Tensor = linear(left.contiguous(), right.contiguous(), None, "none", [], "")
    return product
