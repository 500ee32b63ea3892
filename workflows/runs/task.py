"""A task (docs/task-file.md): validated, every default filled in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from ...attribution.effects.clusters import MOST_CLUSTERS
from ...attribution.targets.steps import BUILT_IN
from ...datasets.errors import TaskError, listed, nearest, shown
from ...datasets.manifest import digest
from ...datasets.outcomes import Outcomes
from ...datasets.plays import MOST_SEEDS
from ...datasets.schema import Order
from ...reports.measures.budgets import COVERAGE
from ...reports.verdict.rules import Thresholds
from ...training.agents.play import EvaluationSpec
from ...training.agents.spec import AgentSpec
from ...training.edits.edit import RewardEdit
from ...training.edits.file import Edits, GroupBy
from ...training.environments.hooks import load_callable
from ...training.environments.spec import EnvSpec

TEST_SET = "test"
DEFAULT_SEEDS = 8
_MOST_LETTERS = 100  # of a name that becomes one of a file
_TRAINING_KEYS = ("env", "train_kwargs", "hooks", "agent")
_FREE_KEYS = (
    "name",
    "seeds",
    "group_by",
    "causes",
    "biases",
    "target",
    "device",
    "verify",
    "verdict",
)  # may change between calls on one run folder
_MAY_GROW = {"sets": " (sets may only be added)", "evaluation": " (only `episodes` may change, and only grow)"}


class _Model(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class VerifySpec(_Model):
    """The `verify` block.

    Attributes:
        seeds: paired seeds that are trained again.
        points: nested correction sets strictly between none and all.
        budget: most trainings; None: no limit.
        minimal: search the smallest correction that brings the misbehaviour rate to this or below; None: do not.
        sets: further sets of groups to correct, by name: groups, or module:callable(training environment) -> groups.
        arbitrary: search for arbitrary bounded edits also where the intended reward is known.
        coverage: arguments of the training environment that give it more varied levels; None: not tried.
        clusters: most clusters of failures with alike influence profiles, each with a verdict; 1: never split a set.
    """

    seeds: int = Field(default=5, ge=1, le=MOST_SEEDS)
    points: int = Field(default=5, ge=0, le=1_000)
    budget: int | None = Field(default=None, ge=0, le=1_000_000)
    minimal: float | None = Field(default=None, ge=0, lt=1)
    sets: dict[str, list[str] | str] = Field(default_factory=dict)
    arbitrary: bool = False
    coverage: dict[str, Any] | None = None
    clusters: int = Field(default=MOST_CLUSTERS, ge=1, le=1_000)

    @field_validator("sets", mode="before")
    @classmethod
    def _group_names(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: [str(group) for group in v] if isinstance(v, list) else v for k, v in value.items()}

    @field_validator("sets")
    @classmethod
    def _free_names(cls, value: dict[str, list[str] | str]) -> dict[str, list[str] | str]:
        for name in value:
            if name in {*Order} or not _is_name(name):
                raise ValueError(
                    f"the set `{name}`: expected a name of letters, digits, - and _ that is none of {', '.join(Order)}"
                )
        return value


class BiasSpec(_Model):
    """One alternative of the inductive bias: what it changes of the task.

    Attributes:
        hyperparameters: of the agent, such as `policy_kwargs` (architecture).
        env_kwargs: of training and evaluation environments alike, such as the encoding of observations.
        initial_seed: added to the seed that initial weights are drawn from.
    """

    hyperparameters: dict[str, Any] = Field(default_factory=dict)
    env_kwargs: dict[str, Any] = Field(default_factory=dict)
    initial_seed: int = Field(default=0, ge=0, lt=2**31)


def _is_name(text: str) -> bool:
    return text.replace("-", "").replace("_", "").isalnum() and len(text) <= _MOST_LETTERS


class VerdictSpec(_Model):
    """The `verdict` block: the thresholds a user may set."""

    few: float = Field(default=0.10, ge=0, le=1)
    outer_share: float = Field(default=0.5, gt=0, lt=1)
    inner_share: float = Field(default=0.2, gt=0, lt=1)

    @model_validator(mode="after")
    def _ordered(self) -> VerdictSpec:
        if self.inner_share >= self.outer_share:
            raise ValueError(
                f"inner_share {self.inner_share} and outer_share {self.outer_share} were given, expected inner_share "
                "below outer_share"
            )
        return self

    @property
    def thresholds(self) -> Thresholds:
        """All thresholds, with these three set."""
        return Thresholds(few=self.few, outer_share=self.outer_share, inner_share=self.inner_share)


class Task(_Model):
    """A task file as resolved, and the edits that it is trained with. See docs/task-file.md for each key."""

    name: str = Field(min_length=1, max_length=1_000)
    env: str = Field(min_length=1, max_length=1_000)
    train_kwargs: dict[str, Any] = Field(default_factory=dict)
    test_kwargs: dict[str, Any] = Field(default_factory=dict)
    sets: dict[str, dict[str, Any]] = Field(default_factory=dict)
    outcomes: Outcomes
    hooks: str | None = None
    edits: Edits | None = None
    agent: AgentSpec = Field(default_factory=AgentSpec)
    seeds: list[int] = Field(default_factory=lambda: list(range(DEFAULT_SEEDS)), min_length=1)
    evaluation: EvaluationSpec = Field(default_factory=EvaluationSpec)
    group_by: GroupBy = "context"
    target: str = "auto"
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d{1,3})?)$")
    causes: list[str] | str | None = None
    biases: dict[str, BiasSpec] = Field(default_factory=dict)
    verify: VerifySpec = Field(default_factory=VerifySpec)
    verdict: VerdictSpec = Field(default_factory=VerdictSpec)

    @field_validator("seeds", mode="before")
    @classmethod
    def _seed_list(cls, value: Any) -> Any:
        count = value if isinstance(value, int) and not isinstance(value, bool) else None
        if (len(value) if isinstance(value, list) else count or 0) > MOST_SEEDS:
            raise ValueError(f"expected at most {MOST_SEEDS:,} seeds: each is a training")
        return value if count is None else list(range(count))

    @field_validator("seeds")
    @classmethod
    def _distinct_seeds(cls, value: list[int]) -> list[int]:
        if any(not 0 <= seed < 2**31 for seed in value) or len(set(value)) != len(value):
            raise ValueError(
                f"{shown(value)} was given, expected distinct seeds from 0 to {2**31 - 1} (-1 is the random policy)"
            )
        return value

    @field_validator("target")
    @classmethod
    def _target_form(cls, value: str) -> str:
        if value not in BUILT_IN and ":" not in value:
            raise ValueError(
                f"`{value}` was given, expected {', '.join(BUILT_IN)} or module:callable.{nearest(value, BUILT_IN)}"
            )
        return value

    @field_validator("hooks")
    @classmethod
    def _hooks_form(cls, value: str | None) -> str | None:
        if value is not None and ":" not in value:
            raise ValueError(f"`{value}` was given, expected module:callable")
        return value

    @field_validator("sets")
    @classmethod
    def _set_names(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in value:
            if name == TEST_SET or not _is_name(name):
                raise ValueError(f"the set `{name}`: expected letters, digits, - and _, and not `{TEST_SET}`")
        return value

    @field_validator("biases")
    @classmethod
    def _bias_names(cls, value: dict[str, BiasSpec]) -> dict[str, BiasSpec]:
        for name in value:
            if name == COVERAGE or not _is_name(name):
                raise ValueError(f"the bias `{name}`: expected letters, digits, - and _, and not `{COVERAGE}`")
        return value

    @property
    def training_env(self) -> EnvSpec:
        """The training environment."""
        return EnvSpec(self.env, self.train_kwargs, self.hooks)

    def evaluation_env(self, set_name: str) -> EnvSpec:
        """Return the environment of an evaluation set.

        Raises:
            TaskError: the task has no such set.
        """
        if set_name == TEST_SET:
            return EnvSpec(self.env, self.test_kwargs, self.hooks)
        if set_name not in self.sets:
            known = [TEST_SET, *self.sets]
            raise TaskError(
                f"the evaluation set `{set_name}` was given, the task has {', '.join(known)}.{nearest(set_name, known)}"
            )
        return EnvSpec(self.env, self.sets[set_name], self.hooks)

    @property
    def training_edit(self) -> RewardEdit | None:
        """What every agent of the run is trained with, the bank's too; None: rewards as the environment pays them."""
        return None if self.edits is None else self.edits.edit(self.training_env)

    @property
    def paired_seeds(self) -> list[int]:
        """The seeds that are trained again: the first `verify.seeds` of the ensemble."""
        return self.seeds[: self.verify.seeds]

    def variant(self, name: str) -> Task:
        """Return the task with one bias of `biases`, or with more varied levels (`coverage`); itself with no name."""
        if not name:
            return self
        if name == COVERAGE:
            return self.model_copy(update={"train_kwargs": {**self.train_kwargs, **(self.verify.coverage or {})}})
        bias = self.biases[name]
        hyperparameters = {**self.agent.hyperparameters, **bias.hyperparameters}
        changes: dict[str, Any] = {"agent": self.agent.model_copy(update={"hyperparameters": hyperparameters})}
        changes |= {key: {**getattr(self, key), **bias.env_kwargs} for key in ("train_kwargs", "test_kwargs")}
        changes["sets"] = {key: {**kwargs, **bias.env_kwargs} for key, kwargs in self.sets.items()}
        return self.model_copy(update=changes)

    def initial_seed(self, seed: int, variant: str) -> int:
        """Return the seed that an agent's initial weights are drawn from."""
        return seed + (self.biases[variant].initial_seed if variant in self.biases else 0)

    def causal_groups(self) -> frozenset[str] | None:
        """Return the groups that the task declares as the true cause, for validation; None where it declares none.

        Raises:
            TaskError: `causes` names no callable that takes the training environment and returns groups.
        """
        return None if self.causes is None else self.groups_of(self.causes, "causes")

    def groups_of(self, named: list[str] | str, key: str) -> frozenset[str]:
        """Return groups that the task names: a list, or module:callable(training environment) -> groups.

        Raises:
            TaskError: it is no such callable.
        """
        if isinstance(named, list):
            return frozenset(named)
        function = load_callable(named, key, "a list of groups, or module:callable")
        env = self.training_env.make()
        try:
            return frozenset(str(group) for group in function(env.unwrapped))
        finally:
            env.close()

    def resolved(self) -> dict[str, Any]:
        """Return the task with every default filled in, as plain values."""
        return self.model_dump(mode="json")

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of the whole task, of the part that training depends on, and of edits where there are."""
        values = self.resolved()
        edits = {} if self.edits is None else {"edits": self.edits.hash}
        training = {**{key: values[key] for key in _TRAINING_KEYS}, **edits}
        return {"task": digest(values), "training": digest(training), **edits}

    def differences(self, earlier: Mapping[str, Any]) -> list[str]:
        """Return in words what keeps this task from continuing a run of an earlier one.

        Raises:
            TaskError: the earlier one is no task.
        """
        mine = self.resolved()
        fixed = [key for key in mine if key not in (*_FREE_KEYS, "edits")]
        trained_with = make_task(earlier, "the task in the run's run.json").edits
        old, new = (str(edits or "none") for edits in (trained_with, self.edits))
        edits = [] if old == new else [f"corrected rewards (--edits): {old} in the run, {new} given"]
        return edits + [
            f"{key}: {earlier.get(key)!r} in the run, {mine[key]!r} in the task{_MAY_GROW.get(key, '')}"
            for key in fixed
            if earlier.get(key) != mine[key] and not _has_grown(key, earlier.get(key), mine[key])
        ]


def _has_grown(key: str, earlier: Any, mine: Any) -> bool:
    """Return whether a key says what it said before, and more: further evaluation sets, or more episodes."""
    if key not in _MAY_GROW or not isinstance(earlier, dict):
        return False
    if key == "sets":
        return all(mine.get(name) == kwargs for name, kwargs in earlier.items())
    return bool({**earlier, "episodes": mine["episodes"]} == mine and mine["episodes"] >= earlier["episodes"])


def make_task(values: object, where: str) -> Task:
    """Validate a task given as plain values.

    Raises:
        TaskError: names the key, what was given and what was expected.
    """
    if not isinstance(values, dict):
        raise TaskError(f"{where} holds a {type(values).__name__}, expected a mapping of task keys")
    try:
        task = Task.model_validate(values)
    except ValidationError as error:
        raise TaskError(f"{where}: " + listed([_explain(item) for item in error.errors()])) from error
    task.agent.require_valid()
    return task


def _explain(item: ErrorDetails) -> str:
    """Say one validation error as: key, what was given, what was expected."""
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        return f"unknown key `{key}`; known here: {', '.join(known)}.{nearest(location[-1], known)}"
    if item["type"] == "missing":
        return f"key `{key}` is missing; every task needs name, env and outcomes (desired and misbehaved)"
    return f"key `{key}`: {item['msg'].removeprefix('Value error, ')} (given: {shown(item['input'])})"


def _known_keys(location: Iterable[str]) -> list[str]:
    model: type[BaseModel] = Task
    named = False  # the last key's values have names of the user's choice
    for part in location:
        if named and part not in model.model_fields:
            named = False
            continue
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        candidates = [annotation, *get_args(annotation)]
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            return []
        model, named = inner, get_origin(annotation) is dict
    return list(model.model_fields)
