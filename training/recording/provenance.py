"""How a recorded training was trained, as the run folder keeps it: what came before, and with which numbers."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from stable_baselines3.common.base_class import BaseAlgorithm

from ...datasets.words import counted
from ..agents.spec import SCHEDULED

SCRIPT, AITIA = "script", "aitia"  # who trained: `trained_by` of the final checkpoint
PROGRESS = (1.0, 0.5, 0.0)  # remaining share of the training at which a schedule is written down


class EarlierTraining(NamedTuple):
    """What an agent had trained before its recording began; false where that is nothing.

    Attributes:
        timesteps: environment steps, as the model counts them; 0 where it began to count anew.
        updates: `_n_updates` of the model.
    """

    timesteps: int = 0
    updates: int = 0

    def __bool__(self) -> bool:
        return self.timesteps > 0 or self.updates > 0

    def metadata(self) -> dict[str, str]:
        """Return it as every table of the recording has it in its metadata."""
        return {"first_timestep": str(self.timesteps), "earlier_updates": str(self.updates)}

    @staticmethod
    def of(metadata: Mapping[str, str]) -> EarlierTraining:
        """Read it from the metadata of a table; nothing where an earlier version wrote it."""
        return EarlierTraining(int(metadata.get("first_timestep", 0)), int(metadata.get("earlier_updates", 0)))

    @property
    def amount(self) -> str:
        """How much it was, in words."""
        if self.timesteps:
            return counted(self.timesteps, "step")
        return f"{counted(self.updates, 'update')} (steps not known)"

    def what_follows(self) -> str:
        """Say what is missing, and what that means for attribution."""
        return (
            f"the recording begins after {self.amount} of training. The windows before are missing: influence, sums of "
            "groups and counts of wrong rewards leave out what was paid then, and updates cannot be replayed. Record "
            "from the first step where you can"
        )


def recorded_hyperparameters(model: BaseAlgorithm) -> dict[str, Any]:
    """Return the hyperparameters of a model that are numbers or schedules, in a form that can be compared."""
    names = [name for name in inspect.signature(type(model)).parameters if hasattr(model, name)]
    values = {name: comparable(name, getattr(model, name)) for name in names}
    return {name: value for name, value in values.items() if value is None or isinstance(value, bool | float | list)}


def comparable(name: str, value: Any) -> Any:
    """Return a number as float, and a schedule as its values at the beginning, the middle and the end of training.

    A schedule that stays the same is a number; anything else is returned as it is.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if name not in SCHEDULED or not callable(value):
        return value
    values = [float(value(progress)) for progress in PROGRESS]
    return values[0] if len(set(values)) == 1 else values
