r"""Per-sample gradients of a policy in factored form: no gradient is ever materialised.

For a linear layer the gradient of a per-sample scalar is an outer product: `D_t a_t^T` for the weight
and `D_t` for the bias, with `a_t` the layer's input and `D_t` the scalar's derivative by its output. So
inner products of gradients are sums over layers of products of two small Gram matrices:

.. math:: \langle g_t, g_u \rangle = \sum_{layers} (a_t \cdot a_u + 1[bias]) (D_t \cdot D_u).

Source: the factored form is the one of Goodfellow 2015 (arXiv:1510.01799); docs/method.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn

from ..datasets.errors import InputError

Functional = Callable[[Tensor], Tensor]


class LayerFactors(NamedTuple):
    """Factors of one linear layer: inputs [N, I] (a column of ones appended for a bias), derivatives [N, O]."""

    inputs: Tensor
    derivatives: Tensor


@dataclass(frozen=True)
class Factors:
    """Factored per-sample gradients of N scalars: one entry a linear layer from observation to actions."""

    layers: tuple[LayerFactors, ...]

    def inner(self, other: Factors) -> Tensor:
        """Return the inner products of gradients, [N, M], N rows here and M rows there."""
        total: Tensor | None = None
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            product = (mine.inputs @ theirs.inputs.T).mul_(mine.derivatives @ theirs.derivatives.T)
            total = product if total is None else total.add_(product)
        assert total is not None
        return total


def features(policy: ActorCriticPolicy, observations: Tensor) -> Tensor:
    """Return the latent features of the actor, the input of its last layer, [N, H]."""
    dtype = next(policy.parameters()).dtype
    prepared = preprocess_obs(observations, policy.observation_space, policy.normalize_images)
    assert isinstance(prepared, Tensor)
    return policy.mlp_extractor.forward_actor(policy.pi_features_extractor(prepared.to(dtype)))


def log_probabilities(policy: ActorCriticPolicy, observations: Tensor) -> Tensor:
    """Return log pi(.|s), [N, A], differentiable, in the dtype of the policy's parameters."""
    logits: Tensor = policy.action_net(features(policy, observations))
    return torch.log_softmax(logits, dim=1)


def gradient_factors(policy: ActorCriticPolicy, observations: Tensor, functional: Functional) -> Factors:
    """Return the factors of the gradients of N scalars by the policy's parameters.

    Args:
        policy: an SB3 actor-critic policy with discrete actions.
        observations: [N, ...], as the policy saw them.
        functional: maps log pi(.|s) [N, A] to a scalar: the sum of N scalars of which the n-th depends on
            row n only, or any function whose derivative by row n is wanted as row n's share.

    Raises:
        InputError: some parameter on the way is not of a linear layer used once, so that the factored
            form would not be exact.
    """
    require_factored(policy)
    with _recorded_layers(policy) as seen:
        total = functional(log_probabilities(policy, observations))
        derivatives = torch.autograd.grad(total, [output for _, _, output in seen])
    layers = tuple(
        LayerFactors(_with_bias(inputs.detach(), layer), derivative)
        for (layer, inputs, _), derivative in zip(seen, derivatives, strict=True)
    )
    return Factors(layers)


def _with_bias(inputs: Tensor, layer: nn.Linear) -> Tensor:
    """Append a column of ones where the layer has a bias: its gradient is that of a weight on 1."""
    if layer.bias is None:
        return inputs
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], dim=1)


def require_factored(policy: ActorCriticPolicy) -> None:
    """Check that every parameter between observation and action probabilities is of a linear layer.

    Raises:
        InputError: it is not; names the layer.
    """
    if not isinstance(policy.action_space, spaces.Discrete):
        raise InputError(f"attribution needs discrete actions so far, the policy has {policy.action_space}")
    modules = (policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net)
    for module in modules:
        for name, part in module.named_modules():
            own = list(part.parameters(recurse=False))
            if own and not isinstance(part, nn.Linear):
                raise InputError(
                    f"attribution in exact form needs linear layers so far: `{name}` of the policy is a "
                    f"{type(part).__name__}. Use MlpPolicy (image policies come with later work)"
                )


class _recorded_layers:
    """Collects (layer, input, output) of every linear layer that a forward pass uses."""

    def __init__(self, policy: nn.Module) -> None:
        self.policy = policy
        self.seen: list[tuple[nn.Linear, Tensor, Tensor]] = []

    def __enter__(self) -> list[tuple[nn.Linear, Tensor, Tensor]]:
        self.handles = [
            module.register_forward_hook(self._record)
            for module in self.policy.modules()
            if isinstance(module, nn.Linear)
        ]
        return self.seen

    def _record(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Linear)
        if any(module is layer for layer, _, _ in self.seen):
            raise InputError("attribution in exact form needs every linear layer to be used once a forward pass")
        self.seen.append((module, inputs[0], output))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
