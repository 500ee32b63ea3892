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
from typing import Any

import torch
from gymnasium import spaces
from scipy.linalg import get_blas_funcs
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from ...datasets.errors import InputError
from ..targets.given import NOTHING_BESIDE, Given
from ..targets.outputs import Inputs, Outputs

Functional = Callable[[Outputs], Tensor]
SPREAD = "log_std"
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
        found = sample.new_empty(len(self.inputs), derivatives.shape[1], sample.shape[2])
        step = max(1, _UNFOLDED_BYTES // max(sample.numel() * sample.element_size(), 1))
        for i in range(0, len(self.inputs), step):
            torch.bmm(derivatives[i : i + step], self.unfold(self.inputs[i : i + step]), out=found[i : i + step])
        return found.flatten(1)


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
            found = mine.products([mine, *([theirs] if isinstance(theirs, PlacesFactors) else [])])
            gram.add_(found[0])
            for part in found[1:]:
                products.add_(part) if owner is None else products.index_add_(1, owner, part)
        _add_linear_products(gram, own)
        _add_linear_products(products, shared, owner)
        return gram, products


def gradient_factors(
    policy: ActorCriticPolicy, observations: Inputs, functional: Functional, given: Given = NOTHING_BESIDE
) -> Factors:
    """Return the factors of the gradients of N scalars by the policy's parameters.

    Args:
        policy: an SB3 actor-critic policy.
        observations: [N, ...], as the policy saw them.
        functional: maps what the policy says of N states to a scalar: the sum of N scalars of which the n-th
            depends on row n only, or any function whose derivative by row n is wanted as row n's share.
        given: what the policy is given beside the observations.

    Raises:
        InputError: some parameter on the way is not of a layer with a factored gradient, used once, so that the
            factored form would not be exact.
    """
    require_factored(policy)
    outputs = Outputs(policy, observations, given)
    with _recorded_layers(policy) as seen:
        total = functional(outputs)
    results = [output for _, _, output in seen.values()] + [step.gates for step in outputs.gates.values()]
    spread = outputs.__dict__["distribution"].log_std if "distribution" in outputs.__dict__ else None
    if spread is not None:
        results.append(spread)
    derivatives = torch.autograd.grad(total, results, allow_unused=True)
    layers: dict[str, LinearFactors | PlacesFactors] = {}
    for (name, (layer, inputs, _)), derivative in zip(seen.items(), derivatives, strict=False):
        if derivative is not None:
            layers[name] = _layer_factors(layer, inputs.detach(), derivative)
    for (name, step), derivative in zip(outputs.gates.items(), derivatives[len(seen) :], strict=False):
        if derivative is not None:
            layers[name] = LinearFactors(step.inputs.detach(), derivative)
    if spread is not None and derivatives[-1] is not None:
        layers[SPREAD] = LinearFactors(spread.new_ones(len(spread), 1), derivatives[-1])
    rows = len(next(iter(observations.values())) if isinstance(observations, dict) else observations)
    return Factors(rows, layers)


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


def _layer_factors(layer: nn.Module, inputs: Tensor, derivative: Tensor) -> LinearFactors | PlacesFactors:
    if isinstance(layer, nn.Linear):
        ones = layer.bias is not None
        if inputs.ndim == 2:
            return LinearFactors(_with_ones(inputs, ones), derivative)
        return PlacesFactors(inputs.flatten(1, -2), derivative.flatten(1, -2).mT, lambda rows: rows, ones)
    if isinstance(layer, nn.Embedding):
        places = derivative.reshape(len(derivative), -1, layer.embedding_dim).mT
        return PlacesFactors(
            inputs.reshape(len(inputs), -1), places, lambda rows: _one_hot(layer, rows, derivative), False
        )
    assert isinstance(layer, nn.Conv2d)

    def unfold(rows: Tensor) -> Tensor:
        return nn.functional.unfold(rows, layer.kernel_size, layer.dilation, layer.padding, layer.stride).mT  # type: ignore[arg-type]

    return PlacesFactors(inputs, derivative.flatten(2), unfold, layer.bias is not None)


def _with_ones(inputs: Tensor, ones: bool) -> Tensor:
    """Append a column of ones where the layer has a bias: its gradient is that of a weight on 1."""
    return torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], dim=-1) if ones else inputs


def _one_hot(layer: nn.Embedding, rows: Tensor, like: Tensor) -> Tensor:
    found = nn.functional.one_hot(rows.long(), layer.num_embeddings).to(like.dtype)
    if layer.padding_idx is not None:
        found[..., layer.padding_idx] = 0.0  # torch gives this row of the table no gradient
    return found


def why_not_factored(policy: ActorCriticPolicy) -> str | None:
    """Return why the gradients of a policy have no factored form; None where they have."""
    if getattr(policy, "use_sde", False):
        return "its exploration depends on the state (use_sde)"
    if not isinstance(
        policy.action_space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box
    ):  # fmt: skip
        return f"its actions are {policy.action_space}"
    for name, module in policy.named_modules():
        own = [key for key, _ in module.named_parameters(recurse=False)]
        if name in ("lstm_actor", "lstm_critic") and type(module) is nn.LSTM:
            if module.proj_size or module.bidirectional:
                return f"`{name}` of the policy projects its hidden state, or reads backwards"
        elif own and not _is_factored(module) and not (module is policy and own == [SPREAD]):
            return f"`{name}` of the policy is a {type(module).__name__}"
    return _tied_parameters(policy)


def _tied_parameters(policy: nn.Module) -> str | None:
    """Return which two layers use the same parameter: its gradient is a sum over both, and so has no factored form."""
    owner: dict[nn.Parameter, str] = {}
    for layer, module in policy.named_modules():  # each module once
        for key, parameter in module.named_parameters(prefix=layer, recurse=False, remove_duplicate=False):
            if parameter in owner:
                return f"`{key}` and `{owner[parameter]}` of the policy are one parameter (tied weights)"
            owner[parameter] = key
    return None


def _is_factored(module: nn.Module) -> bool:
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def require_factored(policy: ActorCriticPolicy) -> None:
    """Check that every trainable parameter is of a layer with a factored gradient.

    Raises:
        InputError: it is not; names the layer.
    """
    reason = why_not_factored(policy)
    if reason is not None:
        raise InputError(
            f"exact attribution needs linear, convolution or embedding layers, but {reason}. Use --estimator auto or "
            "trak-projected"
        )


class _recorded_layers:
    """Collects, by name, (layer, input, output) of every layer that a forward pass uses."""

    def __init__(self, policy: nn.Module) -> None:
        self.names = {
            module: name
            for name, module in policy.named_modules()
            if _is_factored(module) and any(parameter.requires_grad for parameter in module.parameters())
        }
        self.seen: dict[str, tuple[nn.Module, Tensor, Tensor]] = {}

    def __enter__(self) -> dict[str, tuple[nn.Module, Tensor, Tensor]]:
        self.handles = [module.register_forward_hook(self._record) for module in self.names]
        return self.seen

    def _record(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        name = self.names[module]
        if name in self.seen:
            raise InputError(
                f"exact attribution needs every layer to be used once a forward pass, `{name}` is used more than once. "
                "Use --estimator trak-projected"
            )
        self.seen[name] = (module, inputs[0], output)
        return output.clone()  # an activation that works in place must not change what was recorded

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
