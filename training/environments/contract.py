"""What an environment tells in `info` (docs/task-file.md): read, checked, never guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...datasets.errors import EnvironmentError_, nearest

STEP_KEYS = (
    "intended_reward", "reward_components", "reward_extensions", "context", "action_labels", "untampered_reward",
)  # fmt: skip
KNOWN_KEYS = ("outcome", *STEP_KEYS)
_SUM_TOLERANCE = 1e-6


class Told(NamedTuple):
    """What one transition's `info` says; None where the environment does not say it."""

    outcome: str | None
    intended_reward: float | None
    components: dict[str, float] | None
    context: str | None
    action_labels: list[int] | None
    untampered_reward: float | None
    extensions: dict[str, float] | None = None


@dataclass
class InfoReader:
    """Reads the infos of one environment and checks each against the contract.

    Attributes:
        actions: number of discrete actions, for the length of `action_labels`.
        where: names the environment in messages.
        keys: the step keys seen at the first step; each must then come with every step.
    """

    actions: int | None
    where: str
    keys: frozenset[str] | None = None

    def read(self, info: Mapping[str, Any], reward: float, ended: bool) -> Told:
        """Read one transition's info.

        Args:
            info: the info of the transition itself (of its terminal step where it ended).
            reward: the raw reward of the environment.
            ended: whether the episode ended with this transition.

        Raises:
            EnvironmentError_: a reward is not finite, a key comes and goes, has a wrong type or length,
                the components do not sum to the reward, or an ended episode has no outcome.
        """
        if not math.isfinite(reward):
            raise EnvironmentError_(
                f"{self.where} paid reward {reward}: expected a finite number. A NaN or infinite reward "
                "would spread through every advantage; fix the reward function"
            )
        self._require_same_keys(info)
        components = self._components(info, reward)
        context = info.get("context")
        return Told(
            outcome=self._outcome(info) if ended else None,
            intended_reward=self._number(info, "intended_reward"),
            components=components,
            context=None if context is None else str(context),
            action_labels=self._labels(info),
            untampered_reward=self._number(info, "untampered_reward"),
            extensions=self._numbers(info, "reward_extensions"),
        )

    def _require_same_keys(self, info: Mapping[str, Any]) -> None:
        present = frozenset(key for key in STEP_KEYS if info.get(key) is not None)
        if self.keys is None:
            self.keys = present
        elif present != self.keys:
            changed = ", ".join(f"`{key}`" for key in sorted(present ^ self.keys))
            raise EnvironmentError_(
                f"{self.where}: info key {changed} came with some steps and not with others; expected "
                "it with every step or with none"
            )

    def _outcome(self, info: Mapping[str, Any]) -> str:
        outcome = info.get("outcome")
        if isinstance(outcome, str) and outcome:
            return outcome
        if outcome is not None:
            raise EnvironmentError_(
                f"{self.where}: info['outcome'] is {outcome!r}, expected a non-empty text such as 'goal'"
            )
        known = {*KNOWN_KEYS, "TimeLimit.truncated", "terminal_observation", "episode"}
        unknown = [key for key in info if key not in known]
        hint = nearest("outcome", unknown)
        raise EnvironmentError_(
            f"{self.where}: an episode ended without info['outcome'] (keys given: {sorted(info)}); expected "
            "a text on the last step of every episode that says how it ended: it is the only judge of "
            f"desired or misbehaved. Add it to the environment's info.{hint}"
        )

    def _number(self, info: Mapping[str, Any], key: str) -> float | None:
        value = info.get(key)
        if value is None:
            return None
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise EnvironmentError_(f"{self.where}: info[{key!r}] is {value!r}, expected a finite number")
        return number

    def _components(self, info: Mapping[str, Any], reward: float) -> dict[str, float] | None:
        values = self._numbers(info, "reward_components")
        if values is None:
            return None
        total = sum(values.values())
        if not abs(total - reward) <= _SUM_TOLERANCE * max(1.0, abs(reward)):
            raise EnvironmentError_(
                f"{self.where}: info['reward_components'] {values} sums to {total:g} but the reward is "
                f"{reward:g}; expected components that sum to the reward"
            )
        return values

    def _numbers(self, info: Mapping[str, Any], key: str) -> dict[str, float] | None:
        found = info.get(key)
        if found is None:
            return None
        try:
            return {str(name): float(value) for name, value in found.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise EnvironmentError_(f"{self.where}: info[{key!r}] is {found!r}, expected a dict of numbers") from error

    def _labels(self, info: Mapping[str, Any]) -> list[int] | None:
        labels = info.get("action_labels")
        if labels is None:
            return None
        try:
            values = [int(label) for label in labels]
        except (TypeError, ValueError):
            values = []
        if self.actions is not None and (len(values) != self.actions or not set(values) <= {-1, 0, 1}):
            raise EnvironmentError_(
                f"{self.where}: info['action_labels'] is {labels!r}, expected {self.actions} numbers, one an "
                "action: +1 misbehaving, -1 desired, 0 neutral"
            )
        return values
