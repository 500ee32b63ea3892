"""Tables of plays that grow: an evaluation with more episodes than before plays the new ones only."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ..datasets.store import read_table


def episode_count(table: pa.Table) -> int:
    """Return how many episodes a table of plays holds of each part; episodes are numbered from 0."""
    return (pc.max(table["episode"]).as_py() + 1) if table.num_rows else 0


def episodes_at(path: Path) -> int:
    """Return how many episodes of each part a finished piece holds; 0 where there is none."""
    return episode_count(read_table(path, ["episode"])) if path.exists() else 0


def with_earlier(path: Path, later: pa.Table, first: int) -> pa.Table:
    """Return the plays of a piece: those at `path` of episodes before `first`, and later ones, part by part."""
    if not first:
        return later
    whole = pa.concat_tables([read_table(path).filter(pc.field("episode") < first), later])
    return pa.concat_tables([whole.filter(pc.field("part") == part) for part in ("test", "train")])
