"""Actor-critic policies of Stable-Baselines3 and sb3-contrib (masked, recurrent) as actors."""

from __future__ import annotations

import copy
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from torch import Tensor, nn

from ...datasets.arrays import Array
from ...datasets.errors import InputError
from ...training.agents.memory import ACTOR, CRITIC, is_recurrent
from ...training.environments.actions import takes_masks
from ...training.environments.spaces import Space, as_tensors
from .inputs import OBSERVATION_ALONE, History, PolicyInputs
from .outputs import ActionDistribution, LinearUse, Observations, Outputs

_SPREAD = "log_std"
_LSTMS = ("lstm_actor", "lstm_critic")


class Sb3Actor:
    """An actor-critic policy of Stable-Baselines3 or sb3-contrib; see `Actor`.

    Args:
        policy: the policy (`model.policy`).
    """

    has_values = True

    def __init__(self, policy: ActorCriticPolicy) -> None:
        self.module = policy
        lstms = {name: getattr(policy, name, None) for name in _LSTMS}
        self._lstms = {name: lstm for name, lstm in lstms.items() if type(lstm) is nn.LSTM}
        inside = [f"{name}.{key}" for name, lstm in self._lstms.items() for key, _ in lstm.named_parameters()]
        self.linear_parameters = frozenset([_SPREAD, *inside])

    def __deepcopy__(self, memo: dict[int, Any]) -> Sb3Actor:
        """Copy the policy without the distribution that it gave last, which may belong to the graph of a gradient."""
        latest = getattr(self.module, "action_dist", None)
        if latest is not None:
            memo[id(latest)] = blank = copy.copy(latest)
            blank.__dict__.update(dict.fromkeys(("distribution", "mean_actions", "log_std") & vars(blank).keys()))
        return Sb3Actor(copy.deepcopy(self.module, memo))

    def why_not_factored(self) -> str | None:
        """Return why its gradients have no factored form, whatever its layers are; None where that is up to them."""
        if getattr(self.module, "use_sde", False):
            return "its exploration depends on the state (use_sde)"
        space = self.module.action_space
        if not isinstance(space, spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary | spaces.Box):
            return f"its actions are {space}"
        for name, lstm in self._lstms.items():
            if lstm.proj_size or lstm.bidirectional:
                return f"`{name}` of the policy projects its hidden state, or reads backwards"
        return None

    def outputs(self, observations: Array, inputs: PolicyInputs = OBSERVATION_ALONE) -> Outputs:
        """Return what the policy says of N states."""
        return _Sb3Outputs(self, observations, inputs)

    def prepare(self, observations: Array) -> Observations:
        """Return observations as the policy's first layers take them: images in [0, 1], integers one-hot."""
        policy, like = self.module, next(self.module.parameters())
        return prepared(observations, policy.observation_space, policy.normalize_images, like)


def prepared(observations: Array, space: Space, normalize_images: bool, like: Tensor) -> Observations:
    """Return recorded observations of a space as Stable-Baselines3's first layers take them: which are like `like`."""
    parts = preprocess_obs(as_tensors(observations), space, normalize_images)
    if isinstance(parts, dict):
        return {name: values.to(like) for name, values in parts.items()}
    return parts.to(like)


class _Sb3Outputs(Outputs):
    """What a policy says of N states.

    States that come in at an LSTM are taken as they are: derivatives end there (backpropagation through time is
    truncated after one step).
    """

    def __init__(self, actor: Sb3Actor, observations: Array, inputs: PolicyInputs) -> None:
        super().__init__()
        self._actor, self._policy, self._observations, self._inputs = actor, actor.module, observations, inputs

    @cached_property
    def _prepared(self) -> Any:
        return self._actor.prepare(self._observations)

    @cached_property
    def _actor_features(self) -> Tensor:
        return self._policy.pi_features_extractor(self._prepared)  # type: ignore[no-any-return]

    @cached_property
    def _actor_memory(self) -> Tensor:
        """What the actor's own layers take: features, or what its LSTM makes of them."""
        recurrent = is_recurrent(self._policy)
        return self._remembered("lstm_actor", self._actor_features, ACTOR) if recurrent else self._actor_features

    def _remembered(self, name: str, features: Tensor, part: slice) -> Tensor:
        lstm: Any = getattr(self._policy, name)
        states = incoming_states(lstm, features.detach(), self._inputs.history, part)
        output, gates = lstm_step(lstm, features, states)
        self.linear_uses |= {f"{name}.{layer}": use for layer, use in enumerate(gates)}
        return output

    @cached_property
    def latent(self) -> Tensor:
        """Latent features of the actor, the input of its last layer, [N, H]."""
        return self._policy.mlp_extractor.forward_actor(self._actor_memory)

    @cached_property
    def distribution(self) -> ActionDistribution:
        """The distribution of actions."""
        space, head = self._policy.action_space, self._policy.action_net(self.latent)
        if not isinstance(space, spaces.Box):
            return ActionDistribution(space, head, mask=self._mask(head))
        # a copy of each row, so that the derivative by one row's spread exists
        log_std = self._policy.log_std.expand_as(head).clone()
        self.linear_uses[_SPREAD] = LinearUse(log_std.new_ones(len(log_std), 1), log_std)
        return ActionDistribution(space, head, log_std)

    def _mask(self, head: Tensor) -> Tensor | None:
        if not takes_masks(self._policy):
            return None
        mask = self._inputs.mask
        return torch.ones_like(head, dtype=torch.bool) if mask is None else torch.as_tensor(mask, device=head.device)

    @cached_property
    def critic_latent(self) -> Tensor:
        """Latent features of the critic, the input of its last layer, [N, H]."""
        policy = self._policy
        shared = policy.share_features_extractor
        features = self._actor_features if shared else policy.vf_features_extractor(self._prepared)
        if is_recurrent(policy):
            whole: Any = policy
            if whole.lstm_critic is not None:
                features = self._remembered("lstm_critic", features, CRITIC)
            else:  # the actor's LSTM, which the value loss does not move, or a layer instead of an LSTM
                features = self._actor_memory.detach() if whole.shared_lstm else whole.critic(features)
        return policy.mlp_extractor.forward_critic(features)

    @cached_property
    def values(self) -> Tensor:
        """V(s), [N]."""
        values: Tensor = self._policy.value_net(self.critic_latent)[:, 0]
        return values


def incoming_states(lstm: nn.LSTM, features: Tensor, history: History | None, part: slice) -> Tensor:
    """Return the states that come in at each of N rows, [N, 2, layers, H], without a gradient.

    Args:
        lstm: the actor's or the critic's.
        features: its inputs at the rows, [N, I].
        history: how the rows follow each other.
        part: which of the recorded states are the LSTM's.

    Raises:
        InputError: the history is not known.
    """
    if history is None:
        raise InputError("a recurrent policy was asked about single states; expected what came before in the episode")
    states = features.new_zeros(len(features), 2, lstm.num_layers, lstm.hidden_size)
    begins = np.flatnonzero(history.first)
    if history.states is not None:
        states[begins] = torch.as_tensor(history.states[begins][:, part]).to(features)
    lengths = np.diff(begins, append=len(features))
    with torch.no_grad():
        for step in range(int(lengths.max(initial=1)) - 1):
            rows = torch.as_tensor(begins[lengths > step + 1] + step)
            hidden, cell = states[rows].permute(1, 2, 0, 3).contiguous()
            _, after = lstm(features[rows][None], (hidden, cell))
            states[rows + 1] = torch.stack(after).permute(2, 0, 1, 3)
    return states


def lstm_step(lstm: nn.LSTM, features: Tensor, states: Tensor) -> tuple[Tensor, list[LinearUse]]:
    r"""Return the output of one step of an LSTM, [N, H], and of each layer its gates before their nonlinearities.

    .. math::
        (i, f, g, o) &= W_{ih} x + b_{ih} + W_{hh} h + b_{hh} \\
        c' &= \sigma(f) c + \sigma(i) \tanh(g), \quad h' = \sigma(o) \tanh(c')

    Hochreiter and Schmidhuber 1997, as torch has it. The gates [N, 4 H] are linear in x, h and a column of ones for
    each bias, [N, I + H (+ 2)].

    Args:
        lstm: its own weights are used.
        features: x [N, I].
        states: h and c that come in, [N, 2, layers, H].
    """
    uses = []
    names = ("weight_ih", "weight_hh", *(("bias_ih", "bias_hh") if lstm.bias else ()))
    ones = features.new_ones(len(features), len(names) - 2)
    for layer in range(lstm.num_layers):
        by_input, by_hidden, *biases = (getattr(lstm, f"{name}_l{layer}") for name in names)
        hidden, cell = states[:, 0, layer], states[:, 1, layer]
        gates: Tensor = features @ by_input.mT + hidden @ by_hidden.mT + sum(biases)
        uses.append(LinearUse(torch.cat([features, hidden, ones], dim=1), gates))
        enter, forget, new, leave = gates.chunk(4, dim=-1)
        cell = torch.sigmoid(forget) * cell + torch.sigmoid(enter) * torch.tanh(new)
        features = torch.sigmoid(leave) * torch.tanh(cell)
    return features, uses
