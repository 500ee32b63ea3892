"""The cases of the suite: failures with a planted cause, each with the verdict that further retraining shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import Any, ClassVar, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from ...datasets.errors import InputError, nearest
from ...datasets.manifest import digest
from ...reports.verdict.rules import Verdict
from ..runs.task import Task, make_task

_FOLDER = files(__package__).joinpath("cases")
_AGENT: dict[str, Any] = {"total_timesteps": 40960}
_REST: dict[str, Any] = {
    "seeds": 5, "evaluation": {"episodes": 32, "repeats": 6}, "verify": {"seeds": 5, "points": 1},
}  # fmt: skip
Half = Literal["open", "held-out"]


class _Model(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class Family(_Model):
    """What the cases of a family share."""

    env: str
    outcomes: dict[str, list[str]]
    test: dict[str, Any]
    agent: dict[str, Any] = Field(default_factory=dict)


class Case(_Model):
    """One failure with a planted cause.

    Attributes:
        name: its name.
        family: its family.
        train, test: arguments of the environments (`test` replaces the family's).
        agent: replaces keys of the family's agent.
        group_by: what is corrected together.
        planted: the verdict that was meant.
        why: what was planted, in words.
        half: thresholds may be chosen on the open half only.
    """

    name: str
    family: str
    train: dict[str, Any]
    test: dict[str, Any] | None = None
    agent: dict[str, Any] = Field(default_factory=dict)
    group_by: str = "context"
    planted: Verdict
    why: str
    half: Half = "open"

    def task_values(self) -> dict[str, Any]:
        """Return its task as plain values."""
        family = families()[self.family]
        return {
            "name": self.name, "env": family.env, "outcomes": family.outcomes, "train_kwargs": self.train,
            "test_kwargs": family.test if self.test is None else self.test,
            "agent": {**_AGENT, **family.agent, **self.agent}, "group_by": self.group_by, **_REST,
        }  # fmt: skip

    def identity(self) -> str:
        """Return a digest of what its truth depends on: environments, agent and outcomes."""
        return digest({key: value for key, value in self.task_values().items() if key not in _REST})[:16]

    def task(self) -> Task:
        """Return its task."""
        return make_task(self.task_values(), f"case {self.name}")


@lru_cache(maxsize=1)
def families() -> dict[str, Family]:
    """Return the families by name."""
    return {name: Family.model_validate(values) for name, values in _read()["families"].items()}


@lru_cache(maxsize=1)
def all_cases() -> tuple[Case, ...]:
    """Return every case; every other one is of the held-out half. A case's name begins with its family's."""
    halves: tuple[Half, Half] = ("open", "held-out")
    found = []
    for number, row in enumerate(_read()["cases"]):
        family = max((name for name in families() if row["name"].startswith(f"{name}-")), key=len)
        found.append(Case.model_validate({**row, "family": family, "half": halves[number % 2]}))
    return tuple(found)


def choose_cases(names: Sequence[str]) -> list[Case]:
    """Return cases by name or family; all of them where none is named.

    Raises:
        InputError: there is no such case.
    """
    known = {case.name for case in all_cases()} | {case.family for case in all_cases()}
    for name in names:
        if name not in known:
            raise InputError(f"--cases {name} was given, expected a case or a family.{nearest(name, sorted(known))}")
    return [case for case in all_cases() if not names or case.name in names or case.family in names]


@lru_cache(maxsize=1)
def truths() -> dict[str, dict[str, Any]]:
    """Return what further retraining shows of each case (benchmarks/truths.py), by name."""
    path = _FOLDER.joinpath("truths.json")
    found: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _read() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(_FOLDER.joinpath("cases.yaml").read_text(encoding="utf-8"))
    return values
