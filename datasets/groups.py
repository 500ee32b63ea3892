"""Groups: what is corrected together; those that a transition's own columns tell (others: training/edits/groups.py)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .errors import EnvironmentError_, InputError
from .schema import COMPONENT_PREFIX, NO_CONTEXT

NO_COMPONENT = "none"


class Grouping(Protocol):
    """What is corrected together: a rule that gives every transition, recorded or new, one group."""

    @property
    def name(self) -> str:
        """The task's `group_by`."""
        ...

    def columns(self, known: Sequence[str]) -> list[str]:
        """Return the columns of the transitions that `of_table` needs, of those a table has."""
        ...

    def of_table(self, table: pa.Table) -> NDArray[np.str_]:
        """Return the group of each recorded transition, [N]."""
        ...

    def of_step(self, observation: Any, action: Any, info: Mapping[str, Any]) -> str:
        """Return the group of a transition: of the state left, the action, and the `info` of the step."""
        ...


class ByContext:
    """The context of the episode (level, seed or prompt); one group for all without contexts."""

    name = "context"

    def columns(self, known: Sequence[str]) -> list[str]:
        """Return the columns of the transitions that `of_table` needs."""
        return ["context"]

    def of_table(self, table: pa.Table) -> NDArray[np.str_]:
        """Return the group of each transition, [N]."""
        context = table["context"]
        return np.array([NO_CONTEXT] * len(context) if context.null_count else context.to_pylist())

    def of_step(self, observation: Any, action: Any, info: Mapping[str, Any]) -> str:
        """Return the group of one transition of the environment."""
        context = info.get("context")
        return NO_CONTEXT if context is None else str(context)


BY_CONTEXT = ByContext()


class ByComponent:
    """The reward components that were paid (are not zero) with a transition."""

    name = "component"

    def columns(self, known: Sequence[str]) -> list[str]:
        """Return the columns of the transitions that `of_table` needs."""
        return [name for name in known if name.startswith(COMPONENT_PREFIX)]

    def of_table(self, table: pa.Table) -> NDArray[np.str_]:
        """Return the group of each transition, [N].

        Raises:
            InputError: the transitions have no components.
        """
        columns = self.columns(table.column_names)
        if not columns:
            raise InputError(
                "group_by: component was given, but the transitions have no reward components: the environment has to "
                "tell info['reward_components']"
            )
        paid = np.stack([np.nan_to_num(table[name].to_numpy(zero_copy_only=False)) != 0.0 for name in columns], axis=1)
        patterns, which = np.unique(paid, axis=0, return_inverse=True)
        names = [name.removeprefix(COMPONENT_PREFIX) for name in columns]
        labels = [component_group(names, pattern) for pattern in patterns]
        return np.array(labels)[which.reshape(-1)]

    def of_step(self, observation: Any, action: Any, info: Mapping[str, Any]) -> str:
        """Return the group of one transition of the environment."""
        components = info.get("reward_components")
        if components is None:
            raise EnvironmentError_("group_by: component needs info['reward_components'] with every step")
        return _joined(sorted(str(name) for name, value in components.items() if float(value) != 0.0))


def component_group(names: Sequence[str], paid: NDArray[np.bool_]) -> str:
    """Return the group of a transition in which those of the components `names` were paid."""
    return _joined(name for name, used in zip(names, paid, strict=True) if used)


def _joined(names: Iterable[str]) -> str:
    return "+".join(names) or NO_COMPONENT
