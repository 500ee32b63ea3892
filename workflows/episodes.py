"""The failing episodes as they were recorded: the steps that pages show of them, without making an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from ..datasets.schema import seed_and_episode
from ..datasets.store import RunFolder, read_table, read_table_schema
from ..reports.episode import EpisodeTable, episode_table
from ..reports.pages import FrameView

_COLUMNS = (
    "seed", "episode", "t", "observation", "action", "action_labels", "log_prob", "value", "reward", "probabilities",
)  # fmt: skip


def failing_steps(folder: RunFolder, set_name: str, failures: Sequence[str]) -> dict[str, pa.Table]:
    """Return the steps of failures, by id, each in its order; columns that an earlier version did not keep are absent.

    Args:
        folder: the run folder.
        set_name: the evaluation set.
        failures: ids.
    """
    path = folder.evaluation_path(set_name, "steps")
    there = read_table_schema(path)
    table = read_table(path, [name for name in _COLUMNS if name in there.names])
    seeds, episodes, t = (table[name].to_numpy() for name in ("seed", "episode", "t"))
    order = np.lexsort((t, episodes, seeds))
    keys = np.stack([seeds, episodes], axis=1)[order]
    begins = np.flatnonzero((np.diff(keys, axis=0, prepend=keys[:1] - 1) != 0).any(axis=1))
    spans = {tuple(keys[start]): (start, end) for start, end in zip(begins, [*begins[1:], len(order)], strict=True)}
    found = {}
    for name in failures:
        start, end = spans[seed_and_episode(name)]
        rows = table.take(pa.array(order[start:end]))
        found[name] = rows.replace_schema_metadata(there.metadata)
    return found


def table_of(
    steps: Mapping[str, pa.Table], failure: str, name_of: Callable[[str], str], frames: Sequence[FrameView]
) -> EpisodeTable:
    """Return the table of a failing episode.

    Args:
        steps: of all failures.
        failure: its id.
        name_of: gives an action its name.
        frames: what was drawn of its states, of which those that are text stand in the table.
    """
    return episode_table(steps[failure], name_of, {f.step: f.text for f in frames if f.text is not None})
