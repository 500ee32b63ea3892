"""Tables of plays that grow: an evaluation with more episodes than before plays the new ones only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from stable_baselines3.common.policies import ActorCriticPolicy

from ...datasets.errors import RunFolderError
from ...datasets.files.store import RunFolder, read_table, require_rows, write_table
from ...datasets.outcomes import require_plays
from ...training.agents.play import EvaluationSpec, evaluate_policy
from ...training.environments.spec import EnvSpec
from .task import MOST_SEEDS, Task

_KEY = ["seed", "part", "episode", "repeat"]


def read_plays(folder: RunFolder, task: Task, set_name: str) -> pa.Table:
    """Return the episodes table of a set, for commands that read: it is no larger than what the task can have played.

    Raises:
        RunFolderError: it is missing or damaged; an agent has more plays than that, or one twice; its failures, or the
            outcomes of all plays, which become Python values, take more memory than `limits.read_limit`.
    """
    path, each = folder.evaluation_path(set_name, "episodes"), task.evaluation.most_plays
    table = read_table(path, most_rows=(MOST_SEEDS + 1) * each)  # the task may have had more seeds before
    missing = [name for name in (*_KEY, "outcome") if name not in table.column_names]
    if missing:
        raise RunFolderError(f"{path} has no column `{missing[0]}`, expected those of docs/run-folder.md")
    require_plays(path, table, "seed", each)
    if table.group_by(_KEY).aggregate([]).num_rows < table.num_rows:
        raise RunFolderError(f"{path} has a play twice, expected each once: run `aitia evaluate {folder.root}` again")
    require_rows(path, table.select(["episode", "outcome"]))
    require_rows(path, task.outcomes.failures(table))
    return table


def read_references(folder: RunFolder, set_name: str) -> pa.Table:
    """Return the plays of reference solvers, for commands that read.

    Raises:
        RunFolderError: it is missing or damaged; what becomes Python values takes more memory than `limits.read_limit`.
    """
    path = folder.evaluation_path(set_name, "references")
    return require_rows(path, read_table(path))


def episode_count(table: pa.Table) -> int:
    """Return how many episodes a table of plays holds of each part; episodes are numbered from 0."""
    return (pc.max(table["episode"]).as_py() + 1) if table.num_rows else 0


def episodes_at(path: Path) -> int:
    """Return how many episodes of each part a finished piece holds; 0 where there is none."""
    return episode_count(read_table(path, ["episode"])) if path.exists() else 0


def with_earlier(path: Path, later: pa.Table, first: int) -> pa.Table:
    """Return plays of one part: those at `path` of episodes before `first`, and later ones."""
    if not first:
        return later
    part = later["part"][0].as_py()
    earlier = read_table(path).filter((pc.field("part") == part) & (pc.field("episode") < first))
    return joined([earlier, later])


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables of plays one after the other; what those of an earlier version do not have is null."""
    return pa.concat_tables(tables, promote_options="default")


def training_plays(
    path: Path, policy: ActorCriticPolicy | None, env: EnvSpec, spec: EvaluationSpec, seed: int, masked: bool = False
) -> pa.Table:
    """Return an agent's plays of training episodes: the same for all evaluation sets, so they are kept at `path`.

    Args:
        path: where they are kept; what is not there is played.
        policy, env, spec, seed, masked: see `evaluate_policy`.
    """
    first = episodes_at(path)
    if first < spec.episodes:
        later, _ = evaluate_policy(policy, env, spec, seed, "train", masked, first)
        write_table(path, with_earlier(path, later, first))
    return read_table(path)
