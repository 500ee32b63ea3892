"""The grouping of a run: from the task's `group_by`; clusters are fitted once and kept in the run folder."""

from __future__ import annotations

from pathlib import Path

from ..datasets.rewards import BY_CONTEXT, Grouping
from ..datasets.store import RunFolder, read_table, read_tensors
from ..training.agents import load_policy, new_policy
from ..training.groups import ByCluster, ByComponent, ByTransition, fit_sample
from .task import Task

_FIT_WINDOWS = 8  # of each seed, evenly over its training
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


def _fit(folder: RunFolder, task: Task) -> None:
    tables = []
    for seed in task.seeds:
        count = folder.window_count(seed)
        chosen = range(0, count, max(1, count // _FIT_WINDOWS))
        tables += [read_table(folder.transitions_path(seed, window), _COLUMNS) for window in chosen]
    policy = load_policy(task.agent, task.training_env, read_tensors(folder.final_path(task.seeds[0])))
    ByCluster.fit(task.training_env, policy, fit_sample(tables)).save(clusters_path(folder))
