"""Recurrent policies (RecurrentPPO of sb3-contrib): the LSTM states that go with a batch of observations.

States of B rows are one tensor [B, 4, layers, H]: hidden and cell state of the actor's LSTM, then of the critic's.
"""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

STATES = 4
ACTOR, CRITIC = slice(0, 2), slice(2, 4)  # where their states are


def is_recurrent(policy: nn.Module) -> bool:
    """Return whether what a policy does depends on what it observed before in the episode."""
    return hasattr(policy, "lstm_actor")


def zero_states(policy: ActorCriticPolicy) -> Tensor:
    """Return the states with which an episode begins, [4, layers, H]."""
    lstm: Any = policy.lstm_actor
    return torch.zeros(STATES, lstm.num_layers, lstm.hidden_size)


def rnn_states(states: Tensor) -> Any:
    """Return states [B, 4, layers, H] as sb3-contrib has them: `RNNStates` of [layers, B, H]."""
    from sb3_contrib.common.recurrent.type_aliases import RNNStates

    parts = states.permute(1, 2, 0, 3).contiguous()
    return RNNStates((parts[0], parts[1]), (parts[2], parts[3]))


def stacked_states(states: Any) -> Tensor:
    """Return sb3-contrib's `RNNStates` as states [B, 4, layers, H] (the inverse of `rnn_states`)."""
    return torch.stack([*states.pi, *states.vf]).permute(2, 0, 1, 3)
