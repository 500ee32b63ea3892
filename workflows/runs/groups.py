"""The grouping of a run: from the task's `group_by`; clusters are fitted once and kept in the run folder."""

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
from .run import open_for_computing, open_run
from .task import Task

_OF_ENVIRONMENT = ("transition", "cluster")  # groupings that make the environment
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


def group_rows(run: str | Path, groups: Collection[str] | None = None, trust: bool = False) -> pa.Table:
    """Return which rows of the transitions are in which group: `seed, window, env, step, group`, one row a transition.

    One window is held at a time. What `group` of the influence tables, of `bank/SET/masks.parquet` and of an edits file
    names is joined to the transitions by it, with any `group_by`.

    Args:
        run: a trained run folder. With `group_by: transition` or `cluster` its environment is made, for the names of
            actions; else nothing that its task names is imported.
        groups: whose rows to return; None: all.
        trust: make the environment, although the run was made elsewhere, and remember that.

    Raises:
        InputError: a group that no transition is in, or the run was made elsewhere, and was not trusted.
        RunFolderError: not a trained run.
    """
    opened = open_run(run)
    if opened.task.group_by in _OF_ENVIRONMENT:
        opened = open_for_computing(run, trust)
    opened.require_trained()
    folder, grouping = opened.folder, load_grouping(opened.folder, opened.task)
    wanted = None if groups is None else pa.array(sorted({*groups}), pa.string())
    tables, met = [], set()
    for seed in opened.task.seeds:
        for window in range(folder.window_count(seed)):
            path = folder.transitions_path(seed, window)
            needed = dict.fromkeys([*_PLACE, *grouping.columns(read_table_schema(path).names)])
            table = read_table(path, list(needed))
            names = pa.array(grouping.of_table(table), pa.string())
            found = table.select(_PLACE).append_column("group", names.dictionary_encode()).replace_schema_metadata(None)
            met |= set(pc.unique(names).to_pylist())
            tables.append(found if wanted is None else found.filter(pc.is_in(names, wanted)))
    missing = [] if wanted is None else [group for group in wanted.to_pylist() if group not in met]
    if missing:
        raise InputError(
            f"the group `{missing[0]}` was given, but no transition of {folder.root} is in it (group_by: "
            f"{opened.task.group_by}).{nearest(missing[0], met)}"
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
