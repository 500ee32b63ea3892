"""Reward edits: what groups of training transitions are paid instead, while training again or in a record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...datasets.errors import EnvironmentError_, InputError
from ...datasets.groups import BY_CONTEXT, Grouping
from ...datasets.rewards import WRONG_REWARD, editable
from ..environments.spec import Env
from .groups import require_current_names

CORRECTED = "aitia.corrected"  # info key: whether the edit changed the reward
UNEDITED = "aitia.unedited"  # info key: what the environment itself paid, where an edit applies
Endings = Counter[tuple[int, str]]  # number of episodes by the window in which they ended, and their outcome


@dataclass(frozen=True)
class RewardEdit:
    """A corrective edit (r -> r*, the intended reward) or an arbitrary one, on some groups of transitions.

    Attributes:
        groups: the groups to edit; None corrects every transition, also of groups that the uncorrected
            training never met.
        grouping: what a group is.
        values: of an arbitrary edit, what each group pays where it is `editable`; None: the intended reward.
        first: an edit that is made before this one: that which a run was trained with; None: none.
    """

    groups: frozenset[str] | None
    grouping: Grouping = BY_CONTEXT
    values: Mapping[str, float] | None = None
    first: RewardEdit | None = None

    def __post_init__(self) -> None:
        if self.groups and self.grouping.name == "transition":
            require_current_names(self.groups)

    @property
    def layers(self) -> tuple[RewardEdit, ...]:
        """The edits in the order in which they are made; this one is the last."""
        return (*(self.first.layers if self.first else ()), self)

    def rewards(self, table: pa.Table) -> NDArray[np.float64]:
        """Return the edited rewards of recorded transitions, [N]; `first` is in the record already.

        Raises:
            InputError: a transition to be corrected has no intended reward.
        """
        paid = np.asarray(table["reward"].to_numpy(), dtype=np.float64)
        if self.values is not None:
            names, member = np.unique(self.grouping.of_table(table), return_inverse=True)
            instead = np.array([self.values.get(name, np.nan) for name in names.tolist()])[member]
            changed = editable(paid, table["terminated"].to_numpy(), self.grouping)
            return np.where(changed & ~np.isnan(instead), instead, paid)
        intended = np.asarray(table["intended_reward"].to_numpy(zero_copy_only=False), dtype=np.float64)
        applies = np.full(len(paid), self.groups is None)
        if self.groups:
            applies = np.isin(self.grouping.of_table(table), list(self.groups))
        if np.isnan(intended[applies]).any():
            raise InputError("a reward was to be corrected, but the transitions hold no intended reward")
        return np.where(applies, intended, paid)


class CorrectedRewards(gym.Wrapper[Any, Any, Any, Any]):
    """Pays what the edit says wherever it applies; everything else is untouched.

    Args:
        env: the environment.
        edit: what is paid instead.
        window: steps of a window, by which endings are counted.

    Attributes:
        corrected: transitions whose reward was changed so far.
        endings: number of episodes so far by the window in which they ended, and how.
    """

    def __init__(self, env: Env, edit: RewardEdit, window: int = 1) -> None:
        super().__init__(env)
        self.edit = edit
        self.corrected = 0
        self.endings: Endings = Counter()
        self._window, self._steps = window, 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Reset the environment."""
        self._left, info = self.env.reset(**kwargs)
        return self._left, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Step the environment and edit the reward if the transition's group is to be edited.

        Raises:
            EnvironmentError_: a transition to be corrected has no `intended_reward`.
        """
        left = self._left
        self._left, given, terminated, truncated, info = self.env.step(action)
        reward = before = float(given)
        for edit in self.edit.layers:
            before = reward
            if edit.groups is None or (edit.groups and edit.grouping.of_step(left, action, info) in edit.groups):
                reward = _instead(edit, left, action, reward, terminated, info)
        changed = abs(reward - before) > WRONG_REWARD
        self.corrected += changed
        if terminated or truncated:
            self.endings[self._steps // self._window, str(info.get("outcome"))] += 1
        self._steps += 1
        return self._left, reward, terminated, truncated, {**info, CORRECTED: changed, UNEDITED: float(given)}


def _instead(
    edit: RewardEdit, left: Any, action: Any, reward: float, terminated: bool, info: Mapping[str, Any]
) -> float:
    """Return what a transition of an edited group pays."""
    if edit.values is not None:
        applies = editable(np.array([reward]), np.array([terminated]), edit.grouping)[0]
        return edit.values[edit.grouping.of_step(left, action, info)] if applies else reward
    if info.get("intended_reward") is None:
        raise EnvironmentError_(
            "a reward was to be corrected, but info['intended_reward'] is missing: expected it with "
            "every step of the training environment"
        )
    return float(info["intended_reward"])
