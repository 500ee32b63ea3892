"""Recordings that a script made, taken into a run: do they fit the task, and what the report must say of them."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from gymnasium import spaces

from ...datasets.arrays import Array, array_format, array_format_of, array_metadata, decode_actions, decode_arrays
from ...datasets.errors import InputError, RunFolderError
from ...datasets.files.store import RunFolder, read_table, read_table_schema, read_tensor_metadata, read_tensors
from ...datasets.schema import metadata_of
from ...datasets.words import counted
from ...training.agents.spec import load_policy, new_policy
from ...training.environments.spaces import ObservationForm
from ...training.environments.spec import probe
from ...training.recording.agent_block import FILL_IN, said_schedule
from ...training.recording.agreement import log_probs, require_agreement
from ...training.recording.provenance import PROGRESS, SCRIPT, EarlierTraining, comparable
from ...training.recording.task_file import TASK_FILE
from ...training.recording.writer import under_way
from .task import Task

log = logging.getLogger("aitia")
_OF_TABLES = ("n_steps", "gamma", "gae_lambda", "vf_coef", "normalize_advantage")
_ROWS_SAY_ALL = ("PPO", "A2C")  # nothing but observation and action is needed to compute log pi
_TOLD = ("intended_reward", "untampered_reward", "context")
_CHECKED_ROWS = 512
_ENVIRONMENT = "write the `env`, `train_kwargs` and `hooks` of the script"
_CAUSES = (
    "The task's policy computes something else than the one that was trained: compare policy_kwargs (activation_fn, "
    "features_extractor_class, normalize_images) and the wrappers of the environment with the script"
)


def recorded_seeds(folder: RunFolder) -> list[int]:
    """Return the seeds of which a folder holds any transitions or checkpoints."""
    found = [*folder.root.glob("transitions/seed=*"), *folder.root.glob("checkpoints/seed=*")]
    return sorted({int(path.name.removeprefix("seed=")) for path in found if path.name[5:].isdecimal()})


def require_adoptable(folder: RunFolder, task: Task) -> None:
    """Check that a folder without `run.json` holds whole recordings, of some of the task's seeds.

    Raises:
        RunFolderError: names what is missing, or how a recording differs from the task. Nothing is changed.
    """
    aside = folder.parts_folder("train")
    unfinished = [path.name for path in under_way(folder)]
    if unfinished:
        raise RunFolderError(
            f"{aside} holds recordings that are not finished ({', '.join(unfinished)}): of a script that still runs, "
            "or was interrupted. Wait for it, or remove them"
        )
    there = recorded_seeds(folder)
    for seed in there:
        _require_whole(folder, seed)
    if not set(there) & set(task.seeds):
        raise RunFolderError(
            f"{folder.root} holds recordings of seeds {there}, the task has {task.seeds}; expected one in common. "
            "Change `seeds` in the task, or give another --out"
        )
    require_fits(folder, task, *(seed for seed in task.seeds if seed in there))
    log.info("%s: kept as a script recorded them: seeds %s", folder.root, [s for s in task.seeds if s in there])


def require_scripts_fit(folder: RunFolder, task: Task) -> None:
    """Check the seeds of a run that a script recorded into it, before or after it was begun.

    Raises:
        RunFolderError: one is not whole, or does not fit the task: it would be trained again, or explain nothing.
    """
    seeds = _of_scripts(folder, task.seeds)
    for seed in seeds:
        _require_whole(folder, seed)
    require_fits(folder, task, *seeds)


def _of_scripts(folder: RunFolder, seeds: Sequence[int]) -> list[int]:
    finals = {seed: folder.final_path(seed) for seed in seeds}
    return [s for s, path in finals.items() if path.exists() and read_tensor_metadata(path).get("trained_by") == SCRIPT]


def _require_whole(folder: RunFolder, seed: int) -> None:
    missing = folder.missing_files(seed)
    if missing:
        raise RunFolderError(
            f"{folder.root} holds a part of a recording of seed {seed}, but not {missing[0].relative_to(folder.root)}; "
            "expected whole ones (imported data, which have no policy, cannot be attributed). Bring the file back, or "
            f"take seed={seed} out of the folder"
        )


def require_fits(folder: RunFolder, task: Task, *seeds: int) -> None:
    """Check that whole recordings are trainings of the task's agent in the task's environment.

    Raises:
        RunFolderError: lists every difference, what was recorded, what the task has, and the line to write.
    """
    seeds_of: dict[str, list[int]] = {}
    for seed in seeds:
        for difference in _differences(folder, task, seed):
            seeds_of.setdefault(difference, []).append(seed)
    if seeds_of:
        listed = [f"{_seeds(mine)} {_was(mine)} recorded with {difference}" for difference, mine in seeds_of.items()]
        raise RunFolderError(
            f"{folder.root} differs from the task in {counted(len(listed), 'thing')}; expected the "
            "same, for corrected agents are trained as the task says:\n"
            + "\n".join(listed)
            + f"\nChange the task (a recording writes one, {folder.root / TASK_FILE}), or give another --out"
        )


def _differences(folder: RunFolder, task: Task, seed: int) -> list[str]:
    """Return how a whole recording differs from the task."""
    agent = task.agent
    about, windows = read_tensor_metadata(folder.final_path(seed)), range(folder.window_count(seed))
    same = _Comparison(json.loads(about.get("agent", "{}")), {})
    tables = [metadata_of(read_table_schema(folder.transitions_path(seed, window))) for window in windows]
    same.require("algorithm", about.get("algorithm"), agent.algorithm)
    for table in tables:
        same.require("n_envs", int(table["n_envs"]), agent.n_envs)
        for name in (key for key in _OF_TABLES if key in table and key in agent.parameters):
            same.require(name, json.loads(table[name]), agent.hyperparameter(name))
    for name, value in json.loads(about.get("hyperparameters", "{}")).items():
        if name in agent.parameters:
            same.require(name, value, comparable(name, agent.hyperparameter(name)))
    for name, expected in _forms(task).items():
        same.require(name, tables[0].get(name), expected, _ENVIRONMENT)
    corrected = int(about.get("corrected", 0))
    edits = f"{corrected} corrected rewards" if corrected else "none"
    same.require(
        "--edits", edits, str(task.edits or "none"), "give the --edits FILE of the script, none where it has none"
    )
    first, told = read_table(folder.transitions_path(seed, 0), _TOLD), probe(task.training_env, task.agent.masked).keys
    for name in _TOLD:
        same.require(f"info[{name!r}]", _said(first[name].null_count == 0), _said(name in told), _ENVIRONMENT)
    parameters = read_tensors(folder.checkpoint_path(seed, 0))
    normalised = any(name.startswith("vecnormalize.") for name in parameters)
    same.require("VecNormalize", normalised, False, "no line: a task cannot say it. Record without it")
    policy = new_policy(agent, task.training_env).state_dict()
    own = [name for name in parameters if not name.startswith("vecnormalize.")]
    shapes = {n: (_shape(parameters.get(n)), _shape(policy.get(n))) for n in dict.fromkeys([*policy, *own])}
    others = [name for name, (recorded, given) in shapes.items() if recorded != given]
    for name in others[:1]:
        more = f"{len(others)} parameters differ: " if len(others) > 1 else ""
        same.require(f"the parameter {name}", *shapes[name], f"{more}{same.policy_line}")
    if agent.algorithm in _ROWS_SAY_ALL and not same.found:
        for window in dict.fromkeys((windows[0], windows[-1])):
            difference = _other_probabilities(folder, task, seed, window)
            if difference is not None:
                same.found[f"probabilities of window {window}"] = difference
    earlier, rows = EarlierTraining.of(tables[0]), int(tables[0]["n_envs"]) * int(tables[0].get("n_steps", 1))
    if earlier.timesteps or not earlier:
        trained = earlier.timesteps + sum(int(table["n_envs"]) * int(table["n_steps"]) for table in tables)
        same.require("total_timesteps", trained, math.ceil(agent.total_timesteps / rows) * rows)
    return list(same.found.values())


class _Comparison(NamedTuple):
    """Compares a recording with a task.

    Attributes:
        agent: the `agent` block that the recording wrote down; empty of recordings of 0.1.
        found: the differences in words, by name.
    """

    agent: Mapping[str, Any]
    found: dict[str, str]

    def require(self, name: str, recorded: Any, given: Any, write: str | None = None) -> None:
        """Note a difference, once a name; `write` is what to do about it, None: the line of the `agent` block."""
        if recorded != given and name not in self.found:
            how = self._line(name, recorded) if write is None else write
            self.found[name] = f"{name} {recorded}, the task has {given}; {how}"

    @property
    def policy_line(self) -> str:
        """What to write about the policy."""
        if not self.agent:
            return "write the `policy` and `policy_kwargs` of the script"
        given = self.agent["hyperparameters"].get("policy_kwargs", {})
        if self.agent["policy"] == FILL_IN:
            return "no line: a task has no such policy class"
        policy = _line_of("policy", self.agent["policy"])
        return f"write `{policy}` (agent) and `{_line_of('policy_kwargs', given)}` (agent.hyperparameters)"

    def _line(self, name: str, recorded: Any) -> str:
        if name in ("algorithm", "n_envs", "total_timesteps"):
            return f"write `{_line_of(name, self.agent.get(name, recorded))}` (agent)"
        value = said_schedule(PROGRESS, recorded) if isinstance(recorded, list) else recorded
        value = self.agent.get("hyperparameters", {}).get(name, value)
        if value == FILL_IN or (value is None and recorded is not None):
            return "no line: a task has numbers and schedules such as lin_0.001. Record with one of these"
        return f"write `{_line_of(name, value)}` (agent.hyperparameters)"


def _line_of(name: str, value: Any) -> str:
    """Return a line of a task file."""
    text = yaml.safe_dump({name: value}, default_flow_style=True, sort_keys=False, width=math.inf)
    return text.strip().removeprefix("{").removesuffix("}")


def _said(told: bool) -> str:
    return "told" if told else "not told"


def _shape(parameter: Any) -> str:
    return "missing" if parameter is None else f"of shape {list(parameter.shape)}"


def _forms(task: Task) -> dict[str, str | None]:
    """Return what the tables of the task's environment say of the form of observations and actions."""
    env = task.training_env.make()
    try:
        observation = ObservationForm(env.observation_space).batch([env.observation_space.sample()])
        actions: Mapping[str, str] = {}
        if not isinstance(env.action_space, spaces.Discrete):
            kept: Array = np.asarray(env.action_space.sample())[None]
            kept = kept if isinstance(env.action_space, spaces.Box) else kept.astype(np.int64)
            actions = array_metadata("action", array_format_of(kept))
        found = array_metadata("observation", array_format_of(observation))
        return {**found, **{name: actions.get(name) for name in ("action_shape", "action_dtype")}}
    finally:
        env.close()


def _other_probabilities(folder: RunFolder, task: Task, seed: int, window: int) -> str | None:
    """Return how the task's policy, with the recorded parameters, gives recorded actions another log pi; None: it does
    not."""
    path = folder.transitions_path(seed, window)
    policy = load_policy(task.agent, task.training_env, read_tensors(folder.checkpoint_path(seed, window)))
    table = read_table(path, ["observation", "action", "log_prob"])
    chosen = table.take(pa.array(np.unique(np.linspace(0, table.num_rows - 1, _CHECKED_ROWS).astype(np.int64))))
    observations = decode_arrays(chosen["observation"], array_format(table.schema, "observation"))
    try:
        computed = log_probs(policy, observations, decode_actions(chosen))
        require_agreement(chosen["log_prob"].to_numpy(), computed, str(path), _CAUSES)
    except InputError as error:
        return f"other probabilities: {error}"
    return None


def recording_notes(folder: RunFolder, seeds: Sequence[int]) -> list[str]:
    """Return, for the report, what recordings by scripts leave out or do otherwise than trainings by aitia."""
    notes = []
    scripts = _of_scripts(folder, seeds)
    if scripts:
        notes.append(
            f"A script trained {_seeds(scripts)}: corrected agents of the same number begin with other weights and in "
            "other environments, so the differences within a pair are noisier than with aitia's own."
        )
    for seed in seeds:
        earlier = EarlierTraining.of(metadata_of(read_table_schema(folder.transitions_path(seed, 0))))
        if earlier:
            notes.append(
                f"The recording of seed {seed} begins after {earlier.amount} of training: what was paid before is in "
                "no table, so influence, sums of groups and counts of wrong rewards leave it out. Corrected agents are "
                "trained from the first step, every reward corrected: a fair comparison only if the earlier steps were "
                "trained on this task too."
            )
    unknown = [seed for seed in seeds if _lacks_minibatches(folder.transitions_path(seed, 0))]
    if unknown:
        notes.append(
            f"Which minibatch used which transition was not recorded of {_seeds(unknown)}: influence takes advantages "
            "as normalised over each whole window."
        )
    return notes


def _lacks_minibatches(path: Path) -> bool:
    """Return whether a window's advantages were normalised in minibatches that nobody recorded; A2C has none."""
    about = metadata_of(read_table_schema(path))
    if about.get("normalize_advantage") != "true" or about.get("algorithm", "").lower() == "a2c":
        return False
    lengths = pc.list_value_length(read_table(path, ["minibatches"])["minibatches"])
    return bool(pc.max(lengths).as_py() == 0)


def _was(numbers: Sequence[int]) -> str:
    return "were" if len(numbers) > 1 else "was"


def _seeds(numbers: Sequence[int]) -> str:
    return f"seed{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
