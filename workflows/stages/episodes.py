"""The failing episodes as they were recorded: the steps that pages show of them, without making an environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from ...datasets.errors import RunFolderError
from ...datasets.schema import seed_and_episode
from ...datasets.words import counted
from ...reports.pages.episode import EpisodeTable, episode_table
from ...reports.pages.write import FrameView
from ...training.agents.play import MOST_STEPS

_COLUMNS = (
    "seed", "episode", "t", "observation", "action", "action_labels", "log_prob", "value", "reward", "probabilities",
)  # fmt: skip


def failing_steps(steps: pa.Table, failures: Sequence[str]) -> dict[str, pa.Table]:
    """Return the steps of failures, by id, each in its order; columns that an earlier version did not keep are absent.

    Args:
        steps: of an evaluation set, as written.
        failures: ids.

    Raises:
        RunFolderError: a failure has no steps.
    """
    table = steps.select([name for name in _COLUMNS if name in steps.column_names])
    seeds, episodes, t = (table[name].to_numpy() for name in ("seed", "episode", "t"))
    order = np.lexsort((t, episodes, seeds))
    keys = np.stack([seeds, episodes], axis=1)[order]
    begins = np.flatnonzero((np.diff(keys, axis=0, prepend=keys[:1] - 1) != 0).any(axis=1))
    spans = {tuple(keys[start]): (start, end) for start, end in zip(begins, [*begins[1:], len(order)], strict=True)}
    found = {}
    for name in failures:
        if (span := spans.get(seed_and_episode(name))) is None:
            raise RunFolderError(f"the steps of failure {name} are missing, expected those of all: evaluate again")
        if span[1] - span[0] > MOST_STEPS:
            raise RunFolderError(
                f"failure {name} has {counted(span[1] - span[0], 'step')}, expected at most {MOST_STEPS:,}: evaluate "
                "again"
            )
        found[name] = table.take(pa.array(order[slice(*span)])).combine_chunks()
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
