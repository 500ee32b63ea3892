"""From a policy's forward pass to the factors of its gradients, layer by layer; and which layers have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...datasets.arrays import Array
from ...datasets.errors import InputError
from ..actors.inputs import OBSERVATION_ALONE, PolicyInputs
from ..actors.outputs import Actor, Outputs
from .factors import Factors, LinearFactors, PlacesFactors

Functional = Callable[[Outputs], Tensor]
_KINDS = (nn.Linear, nn.Conv2d, nn.Embedding)


class _Use(NamedTuple):
    """One use of parameters in a forward pass: by a layer, or (None) as a weight on the inputs outside of one."""

    layer: nn.Module | None
    inputs: Tensor
    output: Tensor


def gradient_factors(
    actor: Actor, observations: Array, functional: Functional, inputs: PolicyInputs = OBSERVATION_ALONE
) -> Factors:
    """Return the factors of the gradients of N scalars by the policy's parameters.

    Args:
        actor: the policy.
        observations: [N, ...], as the policy saw them.
        functional: maps what the policy says of N states to a scalar: the sum of N scalars of which the n-th
            depends on row n only, or any function whose derivative by row n is wanted as row n's share.
        inputs: what the policy takes in addition to the observations.

    Raises:
        InputError: some parameter on the way is not of a layer with a factored gradient, used once, so that the
            factored form would not be exact.
    """
    require_factored(actor)
    outputs = actor.outputs(observations, inputs)
    with _recorded_layers(actor.module, len(observations)) as uses:
        total = functional(outputs)
    uses |= {name: _Use(None, *use) for name, use in outputs.linear_uses.items() if use.output.requires_grad}
    if not uses:
        raise InputError("no layer of the policy was used that training moves: all of its parameters are frozen")
    derivatives = torch.autograd.grad(total, [use.output for use in uses.values()], allow_unused=True)
    used = {
        name: (use, derivative)
        for (name, use), derivative in zip(uses.items(), derivatives, strict=True)
        if derivative is not None
    }
    _require_all_recorded(actor.module, total, [use for use, _ in used.values()])
    layers = {name: _layer_factors(use.layer, use.inputs.detach(), slope) for name, (use, slope) in used.items()}
    return Factors(len(observations), layers)


def _require_all_recorded(policy: nn.Module, total: Tensor, uses: Sequence[_Use]) -> None:
    """Check that the recorded uses are the only ways from a scalar to the policy's parameters.

    Raises:
        InputError: names a parameter that is used elsewhere, such as a layer's weight in a product of the module's own.
    """
    names = {parameter: name for name, parameter in policy.named_parameters()}
    seen = {use.output.grad_fn for use in uses}
    ahead = [total.grad_fn, *(use.inputs.grad_fn for use in uses)]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        parameter = getattr(node, "variable", None)  # of the last node of a way
        if parameter is not None and parameter in names:
            raise InputError(
                f"exact attribution needs every parameter to be used by its layer alone, `{names[parameter]}` of the "
                "policy is also used elsewhere. Use --estimator trak-projected"
            )
        ahead += [following for following, _ in node.next_functions]


def _layer_factors(layer: nn.Module | None, inputs: Tensor, derivative: Tensor) -> LinearFactors | PlacesFactors:
    if layer is None:
        return LinearFactors(inputs, derivative)
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
    chosen = nn.functional.one_hot(rows.long(), layer.num_embeddings).to(like.dtype)
    if layer.padding_idx is not None:
        chosen[..., layer.padding_idx] = 0.0  # torch gives this row of the table no gradient
    return chosen


def why_not_factored(actor: Actor) -> str | None:
    """Return why the gradients of a policy have no factored form; None where they have."""
    if reason := actor.why_not_factored():
        return reason
    for name, module in actor.module.named_modules():
        own = [key for key, value in module.named_parameters(prefix=name, recurse=False) if value.requires_grad]
        if own and not _is_factored(module) and not actor.linear_parameters.issuperset(own):
            kind = type(module if name else getattr(module, own[0]))
            unusual = " with unusual settings (groups, padding, max_norm, partly frozen, ...)" if kind in _KINDS else ""
            return f"`{name or own[0]}` of the policy is a {kind.__name__}{unusual}"
    return _tied_parameters(actor.module)


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
    """Return whether a layer is one whose gradient has factors, and learns by all of its parameters, or none."""
    parameters = dict(module.named_parameters(recurse=False))
    if not parameters.keys() <= {"weight", "bias"}:  # torch.nn.utils.weight_norm, spectral_norm
        return False
    if len({parameter.requires_grad for parameter in parameters.values()}) > 1:
        return False
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq
    if type(module) is nn.Conv2d:
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) is nn.Linear


def require_factored(actor: Actor) -> None:
    """Check that every trainable parameter is of a layer with a factored gradient.

    Raises:
        InputError: it is not; names the layer.
    """
    reason = why_not_factored(actor)
    if reason is not None:
        raise InputError(
            f"exact attribution needs linear, convolution or embedding layers, but {reason}. Use --estimator auto or "
            "trak-projected"
        )


@contextmanager
def _recorded_layers(policy: nn.Module, rows: int) -> Iterator[dict[str, _Use]]:
    """Collect, by name, every layer that a forward pass of some rows uses."""
    uses: dict[str, _Use] = {}

    def record(name: str, module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Tensor) -> Tensor:
        inputs = args[0] if args else named["input"]
        if name in uses:
            raise InputError(
                f"exact attribution needs every layer to be used once a forward pass, `{name}` is used more than once. "
                "Use --estimator trak-projected"
            )
        if not output.requires_grad:
            raise InputError(
                f"`{name}` of the policy is used under torch.no_grad, but is not frozen: freeze it "
                "(requires_grad_(False)) where training does not move it"
            )
        if len(output) != rows:
            raise InputError(
                f"exact attribution needs every layer to keep rows apart: `{name}` of the policy was used on "
                f"{tuple(inputs.shape)}, expected {rows} as its first size. Use --estimator trak-projected"
            )
        uses[name] = _Use(module, inputs, output)
        return output.clone()  # an activation that works in place must not change what was recorded

    handles = [  # before hooks of the module's own, which may change what the layer returned
        module.register_forward_hook(partial(record, name), prepend=True, with_kwargs=True)
        for name, module in policy.named_modules()
        if _is_factored(module) and any(parameter.requires_grad for parameter in module.parameters())
    ]
    try:
        yield uses
    except RuntimeError as error:
        if "dtype" in str(error):
            error.add_note(
                "gradients are computed in float64: cast to the dtype of the module's parameters, not float()"
            )
        raise
    finally:
        for handle in handles:
            handle.remove()
