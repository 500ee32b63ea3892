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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.linalg import get_blas_funcs
from torch import Tensor

_BLOCK_BYTES = 2**28  # of materialised gradients at once
_UNFOLDED_BYTES = 2**26  # of unfolded inputs at once
_CACHED_BYTES = 2**22  # of inner products at once, so that they stay in the cache from one layer to the next


@dataclass(frozen=True)
class LinearFactors:
    """A linear layer, used once a row: inputs [N, I] (a column of ones for a bias), derivatives [N, O]."""

    inputs: Tensor
    derivatives: Tensor

    def rows_of(self, chosen: Tensor) -> LinearFactors:
        """Return the factors of some of the rows."""
        return LinearFactors(self.inputs[chosen], self.derivatives[chosen])


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

    def rows_of(self, chosen: Tensor) -> PlacesFactors:
        """Return the factors of some of the rows."""
        return PlacesFactors(self.inputs[chosen], self.derivatives[chosen], self.unfold, self.bias)

    def products(self, others: Sequence[PlacesFactors]) -> list[Tensor]:
        """Return the inner products with the gradients of each of `others` (also itself), [N, M] each.

        Of rows with themselves only the lower triangle is computed.
        """
        channels, places = self.derivatives.shape[1:]
        width = self.unfold(self.inputs[:1]).shape[2]
        few = places**2 * (channels + width) < channels * width  # fewer products between places than by gradients
        totals = self._by_places(others) if few else self._by_gradients(others, width)
        if self.bias:
            for total, other in zip(totals, others, strict=True):
                total.addmm_(self.derivatives.sum(2), other.derivatives.sum(2).T)
        return totals

    def _by_gradients(self, others: Sequence[PlacesFactors], width: int) -> list[Tensor]:
        """Form the gradients of a block of output channels at a time."""
        channels, size = self.derivatives.shape[1], self.derivatives.element_size()
        totals = [self.derivatives.new_zeros(len(self.inputs), len(other.inputs)) for other in others]
        rows = max(len(part.inputs) for part in (self, *others))
        step = max(1, _BLOCK_BYTES // max(rows * width * size, 1))
        for start in range(0, channels, step):
            block = slice(start, min(start + step, channels))
            mine = self.gradients(block)
            for total, other in zip(totals, others, strict=True):
                if other is self:
                    _add_lower_triangle(total, mine)
                else:
                    total.addmm_(mine, other.gradients(block).T)
        for total, other in zip(totals, others, strict=True):
            if other is self:
                total.copy_(torch.tril(total) + torch.tril(total, -1).T)
        return totals

    def _by_places(self, others: Sequence[PlacesFactors]) -> list[Tensor]:
        """Add, for every pair of places, the product of the inputs' and the derivatives' inner products."""
        mine, totals = self._place_by_place(), []
        for other in others:
            theirs = mine if other is self else other._place_by_place()
            same, different, left, right = self.derivatives.new_zeros(4, len(self.inputs), len(other.inputs))
            for one, (inputs, derivatives) in enumerate(mine):
                for two, (other_inputs, other_derivatives) in enumerate(theirs):
                    if other is self and one > two:
                        continue  # the transpose of what two and one give
                    torch.mm(inputs, other_inputs.T, out=left)
                    torch.mm(derivatives, other_derivatives.T, out=right)
                    (same if one == two or other is not self else different).addcmul_(left, right)
            totals.append(same.add_(different).add_(different.T) if other is self else same)
        return totals

    def _place_by_place(self) -> list[tuple[Tensor, Tensor]]:
        """Return the inputs [N, I] and derivatives [N, O] of each place."""
        inputs = self.unfold(self.inputs).transpose(0, 1).contiguous()
        return list(zip(inputs, self.derivatives.permute(2, 0, 1).contiguous(), strict=True))

    def gradients(self, channels: slice) -> Tensor:
        """Return the gradients by the weights of some output channels, [N, o * I]."""
        derivatives = self.derivatives[:, channels]
        sample = self.unfold(self.inputs[:1])
        outer = sample.new_empty(len(self.inputs), derivatives.shape[1], sample.shape[2])
        step = max(1, _UNFOLDED_BYTES // max(sample.numel() * sample.element_size(), 1))
        for i in range(0, len(self.inputs), step):
            torch.bmm(derivatives[i : i + step], self.unfold(self.inputs[i : i + step]), out=outer[i : i + step])
        return outer.flatten(1)


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
        layers = {name: layer.rows_of(chosen) for name, layer in self.layers.items()}
        return Factors(len(chosen), layers)

    def shares_layers(self, other: Factors) -> bool:
        """Return whether some layer is in both; else all inner products are zero."""
        return not self.layers.keys().isdisjoint(other.layers)

    def gram_and_products(self, other: Factors, owner: Tensor | None = None, owners: int = 0) -> tuple[Tensor, Tensor]:
        """Return the inner products with each other [N, N] and with `other` [N, M]; gradients are formed once.

        Args:
            other: M gradients.
            owner: int64 [M], of F `owners`: the products with gradients of the same owner are summed, [N, F].
        """
        like = next(iter(self.layers.values())).derivatives
        gram = like.new_zeros(self.rows, self.rows)
        products = like.new_zeros(self.rows, other.rows if owner is None else owners)
        own: list[tuple[LinearFactors, LinearFactors]] = []
        shared: list[tuple[LinearFactors, LinearFactors]] = []
        for name, mine in self.layers.items():
            theirs = other.layers.get(name)
            if isinstance(mine, LinearFactors):
                own.append((mine, mine))
                if isinstance(theirs, LinearFactors):
                    shared.append((mine, theirs))
                continue
            with_self, *with_other = mine.products([mine, *([theirs] if isinstance(theirs, PlacesFactors) else [])])
            gram.add_(with_self)
            for part in with_other:
                products.add_(part) if owner is None else products.index_add_(1, owner, part)
        _add_linear_products(gram, own)
        _add_linear_products(products, shared, owner)
        return gram, products


def _add_linear_products(
    total: Tensor, layers: Sequence[tuple[LinearFactors, LinearFactors]], owner: Tensor | None = None
) -> None:
    """Add inner products of gradients, summed over layers, and over columns of the same owner, to [N, M] or [N, F]."""
    if not layers:
        return
    others = [(other.inputs.T.contiguous(), other.derivatives.T.contiguous()) for _, other in layers]
    width = others[0][0].shape[1]
    rows = max(16, _CACHED_BYTES // max(width * total.element_size(), 1))
    left, right, products = total.new_empty(3, min(rows, len(total)), width)
    for start in range(0, len(total), rows):
        part = total[start : start + rows]
        count = len(part)
        block = part if owner is None else products[:count].zero_()
        for (mine, _), (inputs, derivatives) in zip(layers, others, strict=True):
            torch.mm(mine.inputs[start : start + rows], inputs, out=left[:count])
            torch.mm(mine.derivatives[start : start + rows], derivatives, out=right[:count])
            block.addcmul_(left[:count], right[:count])
        if owner is not None:
            part.index_add_(1, owner, block)


def _add_lower_triangle(total: Tensor, rows: Tensor) -> None:
    """Add the lower triangle of `rows @ rows.T`, half the work of the whole product."""
    # the same memory, read column by column, is what LAPACK takes without a copy: its upper triangle is our lower
    syrk = get_blas_funcs("syrk", [total.numpy()])
    syrk(1.0, rows.numpy().T, beta=1.0, c=total.numpy().T, trans=1, lower=0, overwrite_c=1)
