"""Q-networks as actors: their values stand in the place of logits.

So a target of a failure (`targets/steps.py`) is one of the Boltzmann policy softmax(Q) at temperature 1: of `labels`
with one misbehaving and one desired action it is the margin Q(s, misbehaving) - Q(s, desired).
"""

from __future__ import annotations

from functools import cached_property
from typing import cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy, ContinuousCritic
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from stable_baselines3.sac.policies import SACPolicy
from torch import Tensor, nn

from ...datasets.arrays import Array, pack
from ...datasets.errors import InputError
from .inputs import OBSERVATION_ALONE, PolicyInputs
from .outputs import ActionDistribution, Observations, Outputs
from .sb3 import prepared


class QActor:
    """One Q-network of Stable-Baselines3; see `Actor`.

    Args:
        source: the network of DQN, or the critics of SAC.
        layers: of the one network, after the features.
    """

    has_values = False
    linear_parameters: frozenset[str] = frozenset()

    def __init__(self, source: QNetwork | ContinuousCritic, layers: nn.Sequential) -> None:
        self._source, self._features, self.layers = source, source.features_extractor, layers
        self.module = nn.ModuleList([self._features, layers])

    def why_not_factored(self) -> str | None:
        """Return None: it is up to the layers."""
        return None

    def outputs(self, observations: Array, inputs: PolicyInputs = OBSERVATION_ALONE) -> Outputs:
        """Return what the network says of N states, or of N states and actions (`critic_inputs`)."""
        return _QOutputs(self, observations)

    def prepare(self, observations: Array) -> Observations:
        """Return observations, of a critic with actions, as the first layers take them."""
        source, space = self._source, self._source.observation_space
        if isinstance(source, ContinuousCritic):
            scaled = spaces.Box(-1.0, 1.0, source.action_space.shape)
            space = spaces.Dict({"observation": space, "action": scaled})
        return prepared(observations, space, source.normalize_images, next(self.module.parameters()))

    def features(self, observations: Array) -> Tensor:
        """Return what the layers take, [N, I]."""
        parts = self.prepare(observations)
        if not isinstance(parts, dict) or not isinstance(self._source, ContinuousCritic):
            return self._features(parts)  # type: ignore[no-any-return]
        return torch.cat([self._features(parts["observation"]), parts["action"].flatten(1)], dim=1)


class _QOutputs(Outputs):
    def __init__(self, actor: QActor, observations: Array) -> None:
        super().__init__()
        self._actor, self._observations = actor, observations

    @cached_property
    def latent(self) -> Tensor:
        """Latent features, the input of the last layer, [N, H]."""
        return self._actor.layers[:-1](self._actor.features(self._observations))  # type: ignore[no-any-return]

    @cached_property
    def q_values(self) -> Tensor:
        """Q(s, .) [N, A], or Q(s, a) of the one action [N, 1]."""
        return self._actor.layers[-1](self.latent)  # type: ignore[no-any-return]

    @cached_property
    def distribution(self) -> ActionDistribution:
        """The Boltzmann policy softmax(Q)."""
        return ActionDistribution(spaces.Discrete(self.q_values.shape[1]), self.q_values)


def q_networks(policy: BasePolicy) -> list[QActor]:
    """Return the Q-networks of a policy as actors: one of DQN, the critics of SAC.

    Raises:
        InputError: another algorithm's policy, or critics that share their features with the actor.
    """
    if isinstance(policy, DQNPolicy):
        return [QActor(policy.q_net, policy.q_net.q_net)]
    if not isinstance(policy, SACPolicy):
        raise InputError(f"the policy is a {type(policy).__name__}, expected that of DQN or SAC (`model.policy`)")
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
    return [QActor(critic, cast(nn.Sequential, layers)) for layers in critic.q_networks]


def critic_inputs(observations: Array, actions: Array) -> Array:
    """Return observations [N, ...] and scaled actions [N, K] as one structured array, a continuous critic's input."""
    return pack({"observation": observations, "action": actions.astype(np.float32)})
