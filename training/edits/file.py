"""The edits file (docs/task-file.md): rewards to correct while training; reports write it, `--edits` reads it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from ...datasets.errors import EnvironmentError_, InputError, listed, nearest, shown
from ...datasets.files.limits import read_yaml
from ...datasets.files.remote import as_path
from ...datasets.files.store import at_hand, write_text
from ...datasets.groups import BY_CONTEXT, ByComponent, Grouping
from ...datasets.manifest import digest
from ...datasets.words import counted
from ..environments.spec import EnvSpec
from .edit import RewardEdit
from .groups import ByTransition

ALL = "all"
GroupBy = Literal["context", "component", "cluster", "transition"]
_SHOWN = 10
_USE = "Use: aitia train TASK.yaml --out RUN --edits THIS_FILE"
_NEEDS = {"context": "context", "component": "reward_components"}


class Edits(BaseModel):
    """Which training rewards are edited, and what is paid instead.

    Attributes:
        grouping: what a group is, as `group_by` of the task.
        groups: the groups that are edited, in the order of the file; or `all`, also those that nobody has met yet.
        correct: `intended`: every transition of these groups pays info["intended_reward"].
        values: instead of `correct`, an arbitrary edit: what each group's reward events pay.
        source: where the edits come from, in free text; nothing depends on it.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    grouping: GroupBy = "context"
    groups: Literal["all"] | list[str]
    correct: Literal["intended"] | None = None
    values: dict[str, float] | None = None
    source: dict[str, str] | None = None

    @model_validator(mode="before")
    @classmethod
    def _groups_of_values(cls, document: Any) -> Any:
        """Take the groups from `values` where the file names none."""
        if isinstance(document, dict) and "groups" not in document and isinstance(document.get("values"), dict):
            return {**document, "groups": list(document["values"])}
        return document

    @field_validator("groups", mode="before")
    @classmethod
    def _group_names(cls, value: Any) -> Any:
        if value == ALL:
            return value
        if not isinstance(value, list) or not value:
            raise ValueError("expected `all`, or a list of at least one group")
        return list(dict.fromkeys(_name(group) for group in value))

    @field_validator("values", mode="before")
    @classmethod
    def _value_names(cls, value: Any) -> Any:
        return {_name(group): paid for group, paid in value.items()} if isinstance(value, dict) else value

    @field_validator("source", mode="before")
    @classmethod
    def _source_text(cls, value: Any) -> Any:
        return {str(key): str(text) for key, text in value.items()} if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _one_kind(self) -> Edits:
        if (self.correct is None) == (self.values is None):
            raise ValueError("expected one of `correct: intended` and `values: {group: number}`")
        if self.values is not None:
            if self.groups == ALL or set(self.groups) != set(self.values):
                raise ValueError("`groups` and `values` name different groups; leave `groups` out")
            if not all(map(math.isfinite, self.values.values())):
                raise ValueError("`values` are not all finite numbers")
        if self.grouping == "cluster" and self.groups != ALL:
            raise ValueError(
                "`grouping: cluster` was given, but clusters belong to the run whose agents they were found with, and "
                "another training does not have them. Expected groups by context, component or transition (verify the "
                "run with such a group_by), or `groups: all`"
            )
        return self

    @property
    def hash(self) -> str:
        """The SHA-256 of what is trained with: neither the source nor the order of the groups matters."""
        values = self.model_dump(mode="json", exclude={"source"})
        return digest({**values, "groups": values["groups"] if self.groups == ALL else sorted(self.groups)})

    def __str__(self) -> str:
        """In words, with the beginning of the hash: other edits give another text."""
        return f"{self.in_words()} ({self.hash[:8]})"

    def edit(self, env: EnvSpec) -> RewardEdit:
        """Return the edit for a training environment."""
        if self.groups == ALL:
            return RewardEdit(None)
        grouping: Grouping = BY_CONTEXT
        if self.grouping == "component":
            grouping = ByComponent()
        if self.grouping == "transition":
            grouping = ByTransition(env)
        return RewardEdit(frozenset(self.groups), grouping, self.values)

    def require_told(self, keys: frozenset[str], env: str) -> None:
        """Check that a training environment tells what the edits need.

        Raises:
            EnvironmentError_: names the info key that is missing.
        """
        needs = {"intended_reward"} if self.correct else set()
        if self.groups != ALL and self.grouping in _NEEDS:
            needs.add(_NEEDS[self.grouping])
        for key in sorted(needs - keys):
            raise EnvironmentError_(
                f"--edits was given (grouping: {self.grouping}), but `{env}` tells no info['{key}']: expected it with "
                "every step, or other edits"
            )

    def in_words(self) -> str:
        """Say what is paid, and where: `as intended in 24 groups (context): 17, 203, ...`."""
        if self.groups == ALL:
            return "as intended everywhere"
        how, names = "as intended in", sorted(self.groups)
        if self.values is not None:
            how = "by an arbitrary edit, which nobody has called right, in"
            names = [f"{group} (pays {self.values[group]:g})" for group in names]
        shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
        return f"{how} {counted(len(names), 'group')} ({self.grouping}): {shown}"


def _name(group: Any) -> str:
    """Return a group's name; YAML reads 17 as a number."""
    if isinstance(group, bool) or not isinstance(group, int | str):
        raise ValueError(f"the group {group!r} is not a name; write it in quotes")
    return str(group)


def read_edits(path: str | Path) -> Edits:
    """Read and validate an edits file.

    Raises:
        InputError: the file is missing, is not YAML, or says something else than edits.
    """
    path = as_path(path)
    if not path.is_file():
        raise InputError(f"the edits file {path} does not exist; expected one such as reports/SET/edits.yaml of a run")
    try:
        with at_hand(path) as file:
            values = read_yaml(file)
    except OSError as error:
        raise InputError(f"the edits file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path} is not YAML: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}, expected a mapping with the keys {_known()}")
    try:
        return Edits.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: " + listed([_explain(item) for item in error.errors()])) from error


def write_edits(path: Path, edits: Edits, comments: Sequence[str] = ()) -> None:
    """Write an edits file, whole or not at all; `read_edits` gives the same edits. Comments are lines at its head."""
    values = edits.model_dump(mode="json", exclude_none=True)
    head = "".join(f"# {line}\n" for comment in (*comments, _USE) for line in comment.splitlines())
    write_text(path, head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _known() -> str:
    return ", ".join(Edits.model_fields)


def _explain(item: Mapping[str, Any]) -> str:
    """Say one validation error as: key, what was given, what was expected."""
    key, message = ".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")
    if item["type"] == "extra_forbidden":
        return f"unknown key `{key}`; known here: {_known()}.{nearest(key, Edits.model_fields)}"
    if item["type"] == "missing":
        return f"key `{key}` is missing; expected `all`, or a list of groups"
    return f"key `{key}`: {message} (given: {shown(item['input'])})" if key else message
