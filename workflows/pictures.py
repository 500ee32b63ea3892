"""Pictures for pages: failing episodes and training states, by playing recorded actions again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..attribution.targets import TargetSteps
from ..datasets.arrays import array_format, decode_actions, decode_arrays
from ..datasets.schema import metadata_of
from ..datasets.store import RunFolder, read_table
from ..reports.figures import write_frame
from ..reports.pages import FrameView
from ..training.agents import env_seed
from ..training.environments import EnvSpec, describe
from ..training.replay import replay_test_episode, replay_training_env
from ..training.spaces import action_text
from .runs import Run
from .task import Task
from .workers import Workers

_SHOWN_REWARDS = 6


class Moment(NamedTuple):
    """One training transition: where it is in the run."""

    seed: int
    env: int
    window: int
    step: int


@dataclass(frozen=True)
class PicturePiece:
    """Pictures of training states of one seed."""

    root: Path
    task: Task
    set_name: str
    seed: int
    moments: tuple[Moment, ...]


class ShownRewards(NamedTuple):
    """Rows of the top-k table that a failure's page shows."""

    corrections: list[dict[str, Any]]
    influential: list[dict[str, Any]]


def shown_rewards(top: pa.Table, failure: str) -> ShownRewards:
    """Choose the rewards for a failure's page; of each group and action only the most influential."""
    rows = top.filter(pc.field("failure") == failure).to_pylist()
    for row in rows:
        intended = row["intended_reward"]
        row["effect"] = None if intended is None else (intended - row["reward"]) * row["tau"]
    helpful = sorted(
        (row for row in rows if row["effect"] is not None and row["effect"] < 0), key=lambda r: r["effect"]
    )
    strongest = sorted(rows, key=lambda row: -abs(row["tau"]))
    return ShownRewards(_distinct(helpful), _distinct(strongest))


def _distinct(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        seen.setdefault((row["context"], row["action"]), row)
    return list(seen.values())[:_SHOWN_REWARDS]


def moment_of(row: Mapping[str, Any]) -> Moment:
    """Return where a row of the top-k table is in the run."""
    return Moment(row["seed"], row["env"], row["window"], row["step"])


def training_pictures(
    run: Run, set_name: str, chosen: Sequence[str], top: pa.Table, workers: Workers
) -> dict[Moment, str]:
    """Draw the training states that the illustrated pages show, one piece a seed."""
    wanted: set[Moment] = set()
    for failure in chosen:
        shown = shown_rewards(top, failure)
        wanted |= {moment_of(row) for rows in shown for row in rows}
    seeds = sorted({moment.seed for moment in wanted})
    pieces = [
        PicturePiece(run.folder.root, run.task, set_name, seed, tuple(sorted(m for m in wanted if m.seed == seed)))
        for seed in seeds
    ]
    pictures: dict[Moment, str] = {}
    for found in workers.map(_draw_moments, pieces, f"pictures {run.task.name}"):
        pictures |= found
    return pictures


def _draw_moments(piece: PicturePiece) -> dict[Moment, str]:
    """Play a seed's recorded actions again and draw the wanted states."""
    folder, spec = RunFolder(piece.root), piece.task.training_env
    out = folder.reports_folder(piece.set_name) / "assets" / "frames"
    columns = ("env", "step", "action", "terminated", "truncated", "observation")
    paths = [folder.transitions_path(piece.seed, w) for w in range(max(m.window for m in piece.moments) + 1)]
    tables = [read_table(path, columns) for path in paths]
    form = array_format(tables[0].schema, "observation")
    n_steps = int(metadata_of(tables[0].schema)["n_steps"])
    pictures: dict[Moment, str] = {}
    for env in sorted({moment.env for moment in piece.moments}):
        moments = {m.window * n_steps + m.step: m for m in piece.moments if m.env == env}
        rows = slice(env * n_steps, (env + 1) * n_steps)
        actions = np.concatenate([decode_actions(t)[rows] for t in tables])
        ended = np.concatenate([(t["terminated"].to_numpy() | t["truncated"].to_numpy())[rows] for t in tables])
        expected: dict[int, NDArray[Any]] = {
            step: decode_arrays(tables[m.window]["observation"].slice(env * n_steps + m.step, 1), form)[0]
            for step, m in moments.items()
        }
        frames = replay_training_env(
            spec,
            env_seed(piece.task.agent, piece.seed, env),
            list(actions),
            ended.tolist(),
            expected,
            list(moments),
        )
        pictures |= {moments[step]: write_frame(out, frame) for step, frame in frames.items()}
    return pictures


def episode_frames(
    spec: EnvSpec, episode: Mapping[str, Any], targets: TargetSteps, index: int, out: Path
) -> list[FrameView]:
    """Draw a failing test episode step by step; empty if the environment does not draw or repeat itself."""
    rows = np.flatnonzero(targets.failure == index)
    facts = describe(spec)
    actions = list(targets.actions[rows])
    drawn = replay_test_episode(spec, episode["episode"], actions, targets.observations[rows])
    if drawn is None:
        return []
    captions = [f"{t}: {facts.action_name(action_text(action))}" for t, action in enumerate(actions)]
    decisive = [*targets.decisive[rows].tolist(), False]
    return [
        FrameView(write_frame(out, frame), caption, bool(mark))
        for frame, caption, mark in zip(drawn, [*captions, f"end: {episode['outcome']}"], decisive, strict=True)
    ]
