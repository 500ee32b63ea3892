"""What reports need to know of the environment, written into `run.json` when a run is begun, and read from there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict, ValidationError

from ...attribution.actors.adapt import as_actor
from ...attribution.estimators.base import Trak
from ...attribution.estimators.projected import TrakProjected
from ...attribution.estimators.registry import Chosen, choose_estimator
from ...datasets.errors import RunFolderError
from ...datasets.files.store import RunFolder, read_table
from ...datasets.groups import BY_CONTEXT, ByComponent, Grouping
from ...datasets.manifest import Manifest
from ...datasets.rewards import reward_sums_path, sum_rewards
from ...training.agents.spec import new_policy
from ...training.environments.spaces import named_action
from ...training.environments.spec import EnvProfile, describe, way_of_drawing
from .task import Task

TRAINING = "(training)"  # no set has such a name
NOT_RECORDED = "not recorded by the version of aitia that made this run"


class EnvironmentRecord(BaseModel):
    """What a probe measured of one environment.

    Attributes:
        keys: step keys that its infos carry.
        draws: how it shows its states, `rgb_array` or `ansi`; None: not at all.
        repeats: whether an episode repeats itself, given a seed and the actions.
        action_names: for captions; empty if it has none.
        observation_space, action_space: in words.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    keys: list[str]
    draws: Literal["rgb_array", "ansi"] | None
    repeats: bool
    action_names: list[str]
    observation_space: str
    action_space: str

    def action_name(self, text: str) -> str:
        """Return the name of an action given as text, or the text."""
        return named_action(text, self.action_names)


def record_environments(manifest: Manifest, task: Task, profiles: Mapping[str, EnvProfile]) -> None:
    """Write into a manifest what reports need of the environments, and the estimator that verdicts rest on.

    Args:
        manifest: of the run.
        task: its task.
        profiles: of the training environment (`TRAINING`) and of each evaluation set, by name.
    """
    specs = {name: task.training_env if name == TRAINING else task.evaluation_env(name) for name in profiles}
    records = {
        name: EnvironmentRecord(
            keys=sorted(profile.keys),
            draws="rgb_array" if profile.renders else way_of_drawing(specs[name]),
            repeats=profile.repeats,
            action_names=list(describe(specs[name]).action_names),
            observation_space=str(profile.observation_space),
            action_space=str(profile.action_space),
        ).model_dump(mode="json")
        for name, profile in profiles.items()
    }
    manifest.environments = {"training": records.pop(TRAINING), "sets": records}
    manifest.estimator = estimator_of(task)._asdict()


def environment_record(manifest: Manifest, set_name: str) -> EnvironmentRecord | None:
    """Return what a run's manifest holds of the environment of an evaluation set; None where it was not recorded.

    Raises:
        RunFolderError: it is damaged.
    """
    values = manifest.environments.get("sets", {}).get(set_name)
    if values is None:
        return None
    try:
        return EnvironmentRecord.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["environments", "sets", set_name, *map(str, first["loc"])])
        raise RunFolderError(f"run.json was not written by aitia: key `{where}`: {first['msg']}") from error


def estimator_of(task: Task) -> Chosen:
    """Return the estimator that `auto` means for a task, on which its verdicts rest, and why. Makes its environment."""
    window = int(task.agent.hyperparameter("n_steps")) * task.agent.n_envs
    return choose_estimator(as_actor(new_policy(task.agent, task.training_env)), window)


def recorded_estimator(folder: RunFolder, manifest: Manifest, set_name: str) -> Chosen:
    """Return the estimator that a run's verdicts rest on, and why, without its environment.

    Of a run that does not say so: the one that `auto` would have chosen among those that attributed.

    Raises:
        RunFolderError: what it says is damaged.
    """
    if recorded := manifest.estimator:
        if recorded.keys() != set(Chosen._fields):
            raise RunFolderError(
                f"{folder.manifest_path} was not written by aitia: key `estimator` has {', '.join(sorted(recorded))}, "
                f"expected {' and '.join(Chosen._fields)}"
            )
        return Chosen(**recorded)
    used = pc.unique(read_table(folder.influence_path(set_name, "groups"), ["estimator"])["estimator"]).to_pylist()
    names = [name for name in (Trak.name, TrakProjected.name) if name in used]
    return Chosen(names[0] if names else Trak.name, f"why was {NOT_RECORDED}")


def recorded_rewards(folder: RunFolder, task: Task) -> dict[int, pa.Table]:
    """Return by seed what training paid each group, as stages left it; nothing is written.

    Raises:
        RunFolderError: it is missing, and cannot be summed without the environment.
    """
    return {seed: _recorded_sums(folder, task, seed) for seed in task.seeds}


def _recorded_sums(folder: RunFolder, task: Task, seed: int) -> pa.Table:
    path = reward_sums_path(folder, seed, task.group_by)
    plain: dict[str, Grouping] = {"context": BY_CONTEXT, "component": ByComponent()}
    if task.group_by in plain and not path.exists():
        return sum_rewards(folder, seed, plain[task.group_by])
    return read_table(path)
