"""The episodes table: outcomes of the episodes that agents and a random policy played. It only grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from .errors import RunFolderError
from .files.store import RunFolder, read_table, require_rows
from .outcomes import Outcomes, require_plays

MOST_SEEDS = 10_000  # of an ensemble: each is a training
_KEY = ["seed", "part", "episode", "repeat"]


def read_plays(folder: RunFolder, set_name: str, outcomes: Outcomes, most_plays: int) -> pa.Table:
    """Return the episodes table of an evaluation set (`EPISODES`), no larger than a task can have made it.

    Args:
        folder: of the run.
        set_name: the evaluation set.
        outcomes: which of them are failures.
        most_plays: of one agent; the task may have had more seeds before.

    Raises:
        RunFolderError: it is missing or damaged; an agent played more episodes than that, or one twice; its failures,
            or all outcomes, which become Python values, take more memory than `limits.read_limit`.
    """
    path = folder.evaluation_path(set_name, "episodes")
    table = read_table(path, most_rows=(MOST_SEEDS + 1) * most_plays)
    missing = [name for name in (*_KEY, "outcome") if name not in table.column_names]
    if missing:
        raise RunFolderError(f"{path} has no column `{missing[0]}`, expected those of docs/run-folder.md")
    require_plays(path, table, "seed", most_plays)
    if table.group_by(_KEY).aggregate([]).num_rows < table.num_rows:
        raise RunFolderError(f"{path} has a play twice, expected each once: run `aitia evaluate {folder.root}` again")
    require_rows(path, table.select(["episode", "outcome"]))
    require_rows(path, outcomes.failures(table))
    return table


def episode_count(table: pa.Table) -> int:
    """Return how many episodes (numbered from 0) a table of episodes played holds of each part."""
    return (pc.max(table["episode"]).as_py() + 1) if table.num_rows else 0


def episodes_at(path: Path) -> int:
    """Return how many episodes of each part a finished piece holds; 0 where there is none."""
    return episode_count(read_table(path, ["episode"])) if path.exists() else 0


def with_earlier(path: Path, later: pa.Table, first: int) -> pa.Table:
    """Return the episodes played of one part: those at `path` with numbers before `first`, and later ones."""
    if not first:
        return later
    part = later["part"][0].as_py()
    earlier = read_table(path).filter((pc.field("part") == part) & (pc.field("episode") < first))
    return joined([earlier, later])


def joined(tables: Sequence[pa.Table]) -> pa.Table:
    """Return tables of episodes played in one; columns that tables of an earlier version lack are null."""
    return pa.concat_tables(tables, promote_options="default")
