"""Q-networks in the form that the factored gradients take: their values stand in the place of logits.

So a target of a failure (`targets.py`) is one of the Boltzmann policy softmax(Q) at temperature 1: of `labels` with one
misbehaving and one desired action it is the margin Q(s, misbehaving) - Q(s, desired).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy, ContinuousCritic
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from ...datasets.arrays import Array, pack
from ...datasets.errors import InputError
from ..targets.outputs import Outputs
from ..targets.steps import TargetSteps


class _Trunk(nn.Module):
    """All but the last layer."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward_actor(self, features: Tensor) -> Tensor:
        found: Tensor = self.layers(features)
        return found


class _WithAction(nn.Module):
    """Features of the observation, and the action beside them: what a continuous critic takes."""

    def __init__(self, extractor: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor

    def forward(self, parts: dict[str, Tensor]) -> Tensor:
        return torch.cat([self.extractor(parts["observation"]), parts["action"].flatten(1)], dim=1)


class _Network(nn.Module):
    """One Q-network, its parts under the names that `Outputs` asks a policy for; values are `head` [N, A] or [N, 1]."""

    share_features_extractor = True

    def __init__(self, source: QNetwork | ContinuousCritic, layers: nn.Sequential) -> None:
        super().__init__()
        extractor: nn.Module = source.features_extractor
        self.action_space: Any = source.action_space
        self.observation_space: Any = source.observation_space
        self.normalize_images = source.normalize_images
        if isinstance(source, ContinuousCritic):
            scaled = spaces.Box(-1.0, 1.0, source.action_space.shape)
            self.observation_space = spaces.Dict({"observation": source.observation_space, "action": scaled})
            self.action_space = spaces.Discrete(1)  # one value a row
            extractor = _WithAction(extractor)
        self.pi_features_extractor = extractor
        self.mlp_extractor, self.action_net = _Trunk(layers[:-1]), layers[-1]


def q_networks(policy: BasePolicy) -> list[ActorCriticPolicy]:
    """Return the Q-networks of a policy, in all that `gradient_factors` asks of one: one of DQN, the critics of SAC.

    Raises:
        InputError: another algorithm's policy, or critics that share their features with the actor.
    """
    networks: list[_Network]
    if isinstance(policy, DQNPolicy):
        networks = [_Network(policy.q_net, policy.q_net.q_net)]
    elif isinstance(policy, SACPolicy):
        critic = policy.critic
        if isinstance(critic.observation_space, spaces.Dict):
            raise InputError(
                f"the critics take {critic.observation_space}, expected plain observations: influence through a "
                "continuous critic of dictionaries is not supported. Flatten them (gymnasium.wrappers)"
            )
        if critic.share_features_extractor and any(True for _ in critic.features_extractor.parameters()):
            raise InputError(
                "the critics share their features with the actor (share_features_extractor=True), expected their "
                "own: the critics' loss does not train shared ones"
            )
        networks = [_Network(critic, cast(nn.Sequential, layers)) for layers in critic.q_networks]
    else:
        raise InputError(f"the policy is a {type(policy).__name__}, expected that of DQN or SAC (`model.policy`)")
    return [cast(ActorCriticPolicy, network) for network in networks]


def critic_inputs(observations: Array, actions: Array) -> Array:
    """Return observations [N, ...] and scaled actions [N, K] as one structured array, a continuous critic's input."""
    return pack({"observation": observations, "action": actions.astype(np.float32)})


def margin_targets(
    observations: Array, misbehaving: Sequence[int], desired: Sequence[int], actions: int
) -> TargetSteps:
    """Return one target of DQN, the mean margin Q(s, misbehaving) - Q(s, desired) over states.

    Args:
        observations: [T, ...], states of decisive steps, as the policy sees them.
        misbehaving, desired: an action each, length T.
        actions: number of actions.
    """
    labels = np.zeros((len(observations), actions), dtype=np.int8)
    labels[np.arange(len(labels)), np.asarray(misbehaving)] = 1
    labels[np.arange(len(labels)), np.asarray(desired)] = -1
    zeros, taken = np.zeros(len(labels), dtype=np.int64), np.asarray(misbehaving, dtype=np.int64)
    return TargetSteps(("margin",), ("labels",), zeros, observations, taken, labels, np.ones(len(labels), np.bool_))


@dataclass(frozen=True)
class CriticMargins(TargetSteps):
    """Targets of a continuous critic: mean of Q(s, misbehaving) - Q(s, desired) of each failure, labels 1 and -1."""

    def values(self, outputs: Outputs) -> Tensor:
        """Return f of each failure, [F], from the critic's values of all pairs."""
        head = outputs.distribution.head[:, 0]
        sign = torch.as_tensor(self.labels[:, 0], dtype=head.dtype)
        pairs = torch.as_tensor(np.bincount(self.failure, minlength=self.failures) / 2.0, dtype=head.dtype)
        failure = torch.as_tensor(self.failure)
        return head.new_zeros(self.failures).index_add(0, failure, sign * head / pairs[failure])


def critic_margins(observations: Array, misbehaving: Array, desired: Array) -> CriticMargins:
    """Return one target of SAC, the mean of Q(s, misbehaving) - Q(s, desired) over states.

    Args:
        observations: [T, ...], as the policy sees them.
        misbehaving, desired: actions [T, K], scaled to [-1, 1] (`policy.scale_action`).
    """
    rows = len(observations)
    actions = np.concatenate([misbehaving, desired])
    labels = np.repeat(np.array([1, -1], dtype=np.int8), rows)[:, None]
    inputs = critic_inputs(np.concatenate([observations, observations]), actions)
    zeros = np.zeros(2 * rows, dtype=np.int64)
    return CriticMargins(("margin",), ("margin",), zeros, inputs, actions, labels, np.ones(2 * rows, np.bool_))
