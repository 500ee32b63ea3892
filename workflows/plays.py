"""Tables of plays that grow: an evaluation with more episodes than before plays the new ones only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from stable_baselines3.common.policies import ActorCriticPolicy

from ..datasets.store import read_table, write_table
from ..training.environments import EnvSpec
from ..training.evaluation import EvaluationSpec, evaluate_policy


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
