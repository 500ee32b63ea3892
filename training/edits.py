"""Reward edits: which groups of training transitions are paid as intended, applied while training again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym

from ..datasets.errors import EnvironmentError_
from ..datasets.schema import NO_CONTEXT
from .environments import Env


@dataclass(frozen=True)
class RewardEdit:
    """A corrective edit: r -> r* (the intended reward) on some groups of transitions.

    Attributes:
        groups: the groups (contexts) to correct; None corrects every transition, also of groups that
            the uncorrected training never met.
    """

    groups: frozenset[str] | None

    def applies(self, group: str) -> bool:
        """Return whether transitions of `group` are corrected."""
        return self.groups is None or group in self.groups


class CorrectedRewards(gym.Wrapper[Any, Any, Any, Any]):
    """Pays the intended reward wherever the edit applies; everything else is untouched."""

    def __init__(self, env: Env, edit: RewardEdit) -> None:
        super().__init__(env)
        self.edit = edit

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and correct the reward if the transition's group is to be corrected.

        Raises:
            EnvironmentError_: a transition to be corrected has no `intended_reward`.
        """
        observation, reward, terminated, truncated, info = self.env.step(action)
        context = info.get("context")
        if self.edit.applies(NO_CONTEXT if context is None else str(context)):
            if info.get("intended_reward") is None:
                raise EnvironmentError_(
                    "a reward was to be corrected, but info['intended_reward'] is missing: expected it with "
                    "every step of the training environment"
                )
            reward = float(info["intended_reward"])
        return observation, reward, terminated, truncated, info
