"""The grouping of a run, from the task's `group_by`: state clusters are fitted once and kept in the run folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ...datasets.errors import InputError, nearest
from ...datasets.files.store import RunFolder, read_table, read_table_schema, read_tensors
from ...datasets.groups import BY_CONTEXT, ByComponent, Grouping
from ...training.agents.spec import load_policy, new_policy
from ...training.edits.groups import ByCluster, ByTransition, fit_sample
from .task import Task

OF_ENVIRONMENT = ("transition", "cluster")  # groupings that make the environment
_FIT_WINDOWS = 8  # of each seed, evenly over its training
_PLACE = ("seed", "window", "env", "step")  # these four name one transition
_COLUMNS = ("observation", "reward", "intended_reward")


def clusters_path(folder: RunFolder) -> Path:
    """Return where the clusters of a run are kept."""
    return folder.root / "groups" / "clusters.safetensors"


def load_grouping(folder: RunFolder, task: Task) -> Grouping:
    """Return the grouping of a trained run, whose state clusters a stage has fitted before (`ensure_groups`).

    Raises:
        RunFolderError: there are no clusters yet.
    """
    if task.group_by == "component":
        return ByComponent()
    if task.group_by == "transition":
        return ByTransition(task.training_env)
    if task.group_by == "cluster":
        return ByCluster.load(clusters_path(folder), task.training_env, new_policy(task.agent, task.training_env))
    return BY_CONTEXT


def ensure_groups(folder: RunFolder, task: Task) -> None:
    """Fit the state clusters of a trained run where the task wants them and there are none; never called by workers.

    They are of the latent features of the first seed's final policy, on reward events of every seed.
    """
    if task.group_by == "cluster" and not clusters_path(folder).exists():
        _fit(folder, task)


def rows_in_groups(folder: RunFolder, task: Task, grouping: Grouping, groups: Collection[str] | None) -> pa.Table:
    """Return which rows of the transitions are in which group; see `Run.group_rows`."""
    wanted = None if groups is None else pa.array(sorted({*groups}), pa.string())
    tables, met = [], set()
    for seed in task.seeds:
        for window in range(folder.window_count(seed)):
            path = folder.transitions_path(seed, window)
            needed = dict.fromkeys([*_PLACE, *grouping.columns(read_table_schema(path).names)])
            table = read_table(path, list(needed))
            names = pa.array(grouping.of_table(table), pa.string())
            rows = table.select(_PLACE).append_column("group", names.dictionary_encode()).replace_schema_metadata(None)
            met |= set(pc.unique(names).to_pylist())
            tables.append(rows if wanted is None else rows.filter(pc.is_in(names, wanted)))
    missing = [] if wanted is None else [group for group in wanted.to_pylist() if group not in met]
    if missing:
        raise InputError(
            f"the group `{missing[0]}` was given, but no transition of {folder.root} is in it (group_by: "
            f"{task.group_by}).{nearest(missing[0], met)}"
        )
    return pa.concat_tables(tables).unify_dictionaries()


def _fit(folder: RunFolder, task: Task) -> None:
    tables = []
    for seed in task.seeds:
        count = folder.window_count(seed)
        chosen = range(0, count, max(1, count // _FIT_WINDOWS))
        tables += [read_table(folder.transitions_path(seed, window), _COLUMNS) for window in chosen]
    policy = load_policy(task.agent, task.training_env, read_tensors(folder.final_path(task.seeds[0])))
    ByCluster.fit(task.training_env, policy, fit_sample(tables)).save(clusters_path(folder))
