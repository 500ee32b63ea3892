r"""PPO for many agents at once: the weights of K small networks stacked, every layer one batched product.

The same algorithm as Stable-Baselines3's PPO, loss for loss (tests/training/test_stacked.py gives both the same rollout
and minibatch order): only the networks of K agents are computed together. An agent does not depend on its companions:
it has its own generator, and stacks always have `STACK` slots, for other sizes take other kernels.

Source: Schulman et al. 2017, arXiv:1707.06347, as in stable_baselines3/ppo/ppo.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.utils import FloatSchedule
from torch import Tensor, nn

from ...datasets.errors import InputError
from ..agents.spec import AgentSpec
from ..environments.spaces import Space

STACK = 8
_ADAM = (0.9, 0.999, 1e-5)  # beta_1, beta_2 and epsilon of Stable-Baselines3's PPO
_LOG_2PI = 1.8378770664093453


def why_not_stackable(agent: AgentSpec, policy: ActorCriticPolicy) -> str | None:
    """Return why agents of a task cannot be trained as a stack; None where they can."""
    if agent.algorithm != "PPO":
        return f"the algorithm is {agent.algorithm}"
    if not isinstance(policy.action_space, spaces.Discrete | spaces.Box):
        return f"the actions are {policy.action_space}"
    if not _is_flat(policy.observation_space) or list(policy.features_extractor.parameters()):
        return f"the observations are {policy.observation_space} ({agent.policy})"
    for net in (policy.mlp_extractor.policy_net, policy.mlp_extractor.value_net):
        other = [m for m in net if not isinstance(m, nn.Linear) and list(m.parameters())]
        if other:
            return f"a layer is a {type(other[0]).__name__}"
    extra = set(agent.hyperparameters) - set(PPOSettings._fields) - {"policy_kwargs", "use_sde", "stats_window_size"}
    return f"hyperparameters {', '.join(sorted(extra))} are given" if extra else None


def _is_flat(space: Space) -> bool:
    """Return whether an MLP gets the observations as numbers, or one-hot."""
    if isinstance(space, spaces.MultiDiscrete):
        return space.nvec.ndim == 1
    return isinstance(space, spaces.Discrete | spaces.MultiBinary) or (
        isinstance(space, spaces.Box) and not is_image_space(space)
    )


def _one_hot_starts(space: Space) -> Tensor | None:
    """Return at which input each number of a Discrete or MultiDiscrete observation begins one-hot, int64 [D].

    Stable-Baselines3 multiplies such rows with the first layer; here its weights are looked up. None: no categories.
    """
    if isinstance(space, spaces.Discrete):
        return torch.zeros(1, dtype=torch.int64)
    if isinstance(space, spaces.MultiDiscrete):
        return torch.from_numpy(np.cumsum([0, *space.nvec[:-1]]))
    return None


class PPOSettings(NamedTuple):
    """The hyperparameters of Stable-Baselines3's PPO; see there."""

    n_steps: int
    batch_size: int
    n_epochs: int
    learning_rate: Any
    gamma: float
    gae_lambda: float
    clip_range: Any
    clip_range_vf: Any
    normalize_advantage: bool
    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    target_kl: float | None

    @staticmethod
    def of(agent: AgentSpec) -> PPOSettings:
        """Return the hyperparameters that a task gives, schedules as functions of the progress that remains."""
        values = {name: agent.hyperparameter(name) for name in PPOSettings._fields}
        for name in ("learning_rate", "clip_range"):
            values[name] = FloatSchedule(values[name])
        if values["clip_range_vf"] is not None:
            values["clip_range_vf"] = FloatSchedule(values["clip_range_vf"])
        return PPOSettings(**values)


class StackedPolicy:
    """K MLP actor-critics of one architecture.

    Args:
        policies: K of them; their weights are copied.
    """

    def __init__(self, policies: Sequence[ActorCriticPolicy]) -> None:
        first = policies[0]
        self.space: Space = first.action_space
        self._starts = _one_hot_starts(first.observation_space)
        self._actor = _layers(first.mlp_extractor.policy_net, "mlp_extractor.policy_net", "action_net")
        self._critic = _layers(first.mlp_extractor.value_net, "mlp_extractor.value_net", "value_net")
        states = [policy.state_dict() for policy in policies]
        self.parameters: dict[str, Tensor] = {}
        for name in states[0]:
            stacked = torch.stack([state[name] for state in states])
            if name.endswith(".weight"):
                stacked = stacked.mT.contiguous()  # [K, I, O]
            elif stacked.ndim == 2:
                stacked = stacked[:, None]  # [K, 1, O]
            self.parameters[name] = stacked.requires_grad_()

    def state_dict(self, agent: int) -> dict[str, Tensor]:
        """Return the weights of one agent as its own policy has them."""
        weights = {}
        for name, values in self.parameters.items():
            own = values[agent].detach()
            weights[name] = (own.mT if name.endswith(".weight") else own[0]).clone().contiguous()
        return weights

    def head(self, observations: Tensor) -> Tensor:
        """Return logits or means [K, B, O] of observations [K, B, D], categories as numbers."""
        return self._forward(self._actor, observations)

    def values(self, observations: Tensor) -> Tensor:
        """Return V(s), [K, B]."""
        return self._forward(self._critic, observations)[..., 0]

    def _forward(self, layers: Sequence[tuple[str, nn.Module | None]], x: Tensor) -> Tensor:
        for number, (name, activation) in enumerate(layers):
            bias, weight = self.parameters[f"{name}.bias"], self.parameters[f"{name}.weight"]
            if number == 0 and self._starts is not None:
                rows = x.long() + self._starts
                x = bias + weight[torch.arange(len(x))[:, None, None], rows].sum(2)
            else:
                x = torch.baddbmm(bias, x, weight)
            if activation is not None:
                x = activation(x)
        return x

    def log_prob_and_entropy(self, head: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Return log pi(a|s) and the entropy of pi(.|s), [K, B] each, of actions [K, B] or [K, B, A]."""
        if isinstance(self.space, spaces.Discrete):
            log_probs = torch.log_softmax(head, dim=-1)
            return log_probs.gather(-1, actions[..., None])[..., 0], -(log_probs.exp() * log_probs).sum(-1)
        log_std = self.parameters["log_std"]
        deviation = (actions - head) * torch.exp(-log_std)
        log_prob = (-0.5 * deviation**2 - log_std - 0.5 * _LOG_2PI).sum(-1)
        entropy = (0.5 + 0.5 * _LOG_2PI + log_std).sum(-1).expand_as(log_prob)
        return log_prob, entropy


def _layers(net: nn.Module, prefix: str, last: str) -> list[tuple[str, nn.Module | None]]:
    """Return the names of a network's linear layers, each with the activation that follows it."""
    layers: list[tuple[str, nn.Module | None]] = []
    for name, module in net.named_children():
        if isinstance(module, nn.Linear):
            layers.append((f"{prefix}.{name}", None))
        else:
            layers[-1] = (layers[-1][0], module)
    return [*layers, (last, None)]


@dataclass
class Rollout:
    """What K agents collected: [K, N, ...], row = env * n_steps + step as Stable-Baselines3 has it."""

    observations: Tensor
    actions: Tensor
    values: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor


class StackedPPO:
    """The updates of PPO for K agents.

    Args:
        policy: the stacked policies; changed in place.
        settings: hyperparameters.
    """

    def __init__(self, policy: StackedPolicy, settings: PPOSettings) -> None:
        self.policy, self.settings = policy, settings
        values = list(policy.parameters.values())
        self._mean, self._square = ([torch.zeros_like(v) for v in values] for _ in range(2))
        self._updates = torch.zeros(len(values[0]), dtype=torch.int64)

    def update(self, rollout: Rollout, order: Tensor, progress: float) -> None:
        """Make all updates of one rollout.

        Args:
            rollout: what was collected.
            order: int64 [epochs, K, N], the order in which each agent takes its rows.
            progress: share of the training that remains, 1 to 0, for schedules.
        """
        settings = self.settings
        agents, rows = order.shape[1:]
        going = torch.ones(agents, dtype=torch.bool)
        rate, clip = settings.learning_rate(progress), settings.clip_range(progress)
        value_clip = None if settings.clip_range_vf is None else settings.clip_range_vf(progress)
        for epoch in order:
            for start in range(0, rows, settings.batch_size):
                chosen = epoch[:, start : start + settings.batch_size]
                loss, divergence = self._loss(_taken(rollout, chosen), clip, value_clip)
                if settings.target_kl is not None:
                    going &= ~(divergence > 1.5 * settings.target_kl)
                gradients = torch.autograd.grad(loss.sum(), list(self.policy.parameters.values()))
                self._step(gradients, rate, going)
            if not going.any():
                break

    def _loss(self, batch: Rollout, clip: float, value_clip: float | None) -> tuple[Tensor, Tensor]:
        """Return the loss of each agent and its approximate KL divergence from the old policy, [K] each."""
        settings = self.settings
        log_prob, entropy = self.policy.log_prob_and_entropy(self.policy.head(batch.observations), batch.actions)
        values = self.policy.values(batch.observations)
        advantages = batch.advantages
        if settings.normalize_advantage and advantages.shape[1] > 1:
            centred = advantages - advantages.mean(1, keepdim=True)
            advantages = centred / (advantages.std(1, keepdim=True) + 1e-8)
        log_ratio = log_prob - batch.log_probs
        ratio = torch.exp(log_ratio)
        surrogate = torch.min(advantages * ratio, advantages * torch.clamp(ratio, 1 - clip, 1 + clip)).mean(1)
        if value_clip is not None:
            values = batch.values + torch.clamp(values - batch.values, -value_clip, value_clip)
        value_loss = ((batch.returns - values) ** 2).mean(1)
        loss = -surrogate - settings.ent_coef * entropy.mean(1) + settings.vf_coef * value_loss
        with torch.no_grad():
            divergence = (torch.exp(log_ratio) - 1 - log_ratio).mean(1)
        return loss, divergence

    @torch.no_grad()
    def _step(self, gradients: Sequence[Tensor], rate: float, going: Tensor) -> None:
        """Clip each agent's gradient and make a step of Adam; agents that have stopped keep their state."""
        norm = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
        scale = torch.clamp(self.settings.max_grad_norm / (norm + 1e-6), max=1.0)
        first, second, epsilon = _ADAM
        self._updates += going
        count = self._updates.clamp(min=1).double()
        size = (rate / (1 - first**count)).float()
        root = torch.sqrt(1 - second**count).float()
        everyone = bool(going.all())
        for value, gradient, mean, square in zip(
            self.policy.parameters.values(), gradients, self._mean, self._square, strict=True
        ):
            shape = (-1, *[1] * (value.ndim - 1))
            clipped = gradient * scale.view(shape)
            new_mean = torch.lerp(mean, clipped, 1 - first)
            new_square = (square * second).addcmul_(clipped, clipped, value=1 - second)
            moved = value - size.view(shape) * new_mean / (new_square.sqrt() / root.view(shape) + epsilon)
            for old, new in ((mean, new_mean), (square, new_square), (value, moved)):
                old.copy_(new if everyone else torch.where(going.view(shape), new, old))


def _taken(rollout: Rollout, chosen: Tensor) -> Rollout:
    """Return the chosen rows [K, B] of each agent."""
    agents = torch.arange(len(chosen))[:, None]
    return Rollout(*(values[agents, chosen] for values in vars(rollout).values()))


def require_stackable(agent: AgentSpec, policy: ActorCriticPolicy) -> None:
    """Check that agents of a task can be trained as a stack.

    Raises:
        InputError: they cannot; says why.
    """
    reason = why_not_stackable(agent, policy)
    if reason is not None:
        raise InputError(f"agents of this task cannot be trained as a stack: {reason}")
