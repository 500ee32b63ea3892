"""Reward edits: what groups of training transitions are paid instead, while training again or in a record.

One rule, `pay`, decides for arrays of transitions. A step of an environment (`CorrectedRewards`), a recorded table
(`RewardEdit.rewards`) and environments stepped as arrays (`retraining/arrays.py`) all call it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, SupportsFloat

import gymnasium as gym
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...datasets.errors import EnvironmentError_
from ...datasets.groups import BY_CONTEXT, Grouping
from ...datasets.rewards import WRONG_REWARD, editable
from ..environments.spec import Env
from .groups import require_current_names

CORRECTED = "aitia.corrected"  # info key: whether the edit changed the reward
UNEDITED = "aitia.unedited"  # info key: what the environment itself paid, where an edit applies
INTENDED = np.inf  # in place of an amount: whatever the intended reward is
Endings = Counter[tuple[int, str]]  # number of episodes by the window in which they ended, and their outcome
Floats = NDArray[np.float64]


class Paid(NamedTuple):
    """What transitions are paid under an edit.

    Attributes:
        rewards: float64 [N].
        changed: bool [N], where that is not what they were paid before the edit.
    """

    rewards: Floats
    changed: NDArray[np.bool_]


def pay(paid: Floats, intended: Floats, amounts: Floats, editable: NDArray[np.bool_]) -> Paid:
    """Pay transitions what an edit says: the rule of every edit.

    Args:
        paid: what they are paid without the edit, [N].
        intended: the intended reward, [N]; NaN: not known.
        amounts: what the edit says (`RewardEdit.amounts`), [N]: a number, `INTENDED`, or NaN where nothing is edited.
        editable: where a number may be paid (`editable`), bool [N]; the intended reward may be paid anywhere.

    Raises:
        EnvironmentError_: a transition to be corrected has no intended reward.
    """
    corrected = amounts == INTENDED
    if np.isnan(intended[corrected]).any():
        raise EnvironmentError_(
            "a reward was to be corrected, but its intended reward is not known (missing, or NaN): expected "
            "info['intended_reward'] with every step of the training environment"
        )
    instead = np.where(corrected, intended, np.where(editable, amounts, paid))
    rewards = np.where(np.isnan(amounts), paid, instead)
    return Paid(rewards, np.abs(rewards - paid) > WRONG_REWARD)


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

    @property
    def by_group(self) -> bool:
        """Whether it depends on the group what a transition is paid; else all are corrected, or none."""
        return self.values is not None or bool(self.groups)

    def amounts(self, count: int, groups: Callable[[], Sequence[str]]) -> Floats:
        """Return what transitions are to be paid, [count]: a number, `INTENDED`, or NaN where nothing is edited.

        Args:
            count: number of transitions.
            groups: returns the group of each; called only if it matters.
        """
        if self.values is not None:
            return np.array([self.values.get(group, np.nan) for group in groups()])
        if self.groups:
            return np.array([INTENDED if group in self.groups else np.nan for group in groups()])
        return np.full(count, INTENDED if self.groups is None else np.nan)

    def rewards(self, table: pa.Table) -> Floats:
        """Return the edited rewards of recorded transitions, [N]; `first` is in the record already.

        Raises:
            EnvironmentError_: a transition to be corrected has no intended reward.
        """
        paid = np.asarray(table["reward"].to_numpy(), dtype=np.float64)
        intended = np.asarray(table["intended_reward"].to_numpy(zero_copy_only=False), dtype=np.float64)
        amounts = self.amounts(len(paid), lambda: self.grouping.of_table(table).tolist())
        return pay(paid, intended, amounts, editable(paid, table["terminated"].to_numpy(), self.grouping)).rewards


class CorrectedRewards(gym.Wrapper[Any, Any, Any, Any]):
    """Pays what the edit says wherever it applies; everything else is untouched.

    Args:
        env: the environment.
        edit: what is paid instead.
        window: steps of a window, by which endings are counted.

    Attributes:
        corrected: transitions whose reward was changed so far, by the edit itself, not by one made `first`.
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
        self._left, reward, terminated, truncated, info = self.env.step(action)
        paid = Paid(np.array([float(reward)]), np.array([False]))
        for edit in self.edit.layers:
            paid = self._edited(edit, paid.rewards, left, action, terminated, info)
        changed = bool(paid.changed[0])
        self.corrected += changed
        if terminated or truncated:
            self.endings[self._steps // self._window, str(info.get("outcome"))] += 1
        self._steps += 1
        info = {**info, CORRECTED: changed, UNEDITED: float(reward)}
        return self._left, float(paid.rewards[0]), terminated, truncated, info

    @staticmethod
    def _edited(
        edit: RewardEdit, paid: Floats, left: Any, action: Any, terminated: bool, info: Mapping[str, Any]
    ) -> Paid:
        """Return what the transition is paid after one edit more."""
        amounts = edit.amounts(1, lambda: [edit.grouping.of_step(left, action, info)])
        if np.isnan(amounts[0]):
            return Paid(paid, np.array([False]))
        intended = info.get("intended_reward")
        known = np.array([np.nan if intended is None else float(intended)])
        return pay(paid, known, amounts, editable(paid, np.array([terminated]), edit.grouping))
