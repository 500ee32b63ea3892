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
from ..reports.pages import FrameView, StepView
from ..training.agents import env_seed
from ..training.environments import EnvSpec, describe
from ..training.replay import replay_test_episode, replay_training_env
from ..training.spaces import action_text
from .runs import Run
from .task import Task
from .workers import Workers

_SHOWN_REWARDS = 6
_SHOWN_EPISODES = 3
_SHOWN_STEPS = 24


class Moment(NamedTuple):
    """One training transition: where it is in the run."""

    seed: int
    env: int
    window: int
    step: int


@dataclass(frozen=True)
class PicturePiece:
    """Pictures of training states of one seed, and of the episodes around some of them."""

    root: Path
    task: Task
    set_name: str
    seed: int
    moments: tuple[Moment, ...]
    episodes: frozenset[Moment]


class EpisodeSteps(NamedTuple):
    """Steps of a training episode around a moment; `length` of the whole episode, None if its end was not read."""

    steps: tuple[StepView, ...]
    length: int | None


class Pictures(NamedTuple):
    """Of the training, for one page or one seed: file of the picture of each state, and episodes around some."""

    states: dict[Moment, str]
    episodes: dict[Moment, EpisodeSteps]


NO_PICTURES = Pictures({}, {})


class ShownRewards(NamedTuple):
    """Rows of the top-k table that a failure's page shows."""

    corrections: list[dict[str, Any]]
    influential: list[dict[str, Any]]


def shown_rewards(top: pa.Table, failure: str) -> ShownRewards:
    """Choose the rewards for a failure's page; of each group and action only the most influential."""
    rows = top.filter(pc.equal(top["failure"], failure)).to_pylist()
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
        seen.setdefault((row["group"], row["action"]), row)
    return list(seen.values())[:_SHOWN_REWARDS]


def moment_of(row: Mapping[str, Any]) -> Moment:
    """Return where a row of the top-k table is in the run."""
    return Moment(row["seed"], row["env"], row["window"], row["step"])


def episode_rows(shown: ShownRewards) -> list[dict[str, Any]]:
    """Choose the rewards whose whole episodes are drawn: wrong ones, else those with the largest influence."""
    seen: dict[tuple[int, int, int], dict[str, Any]] = {}
    for row in shown.corrections or shown.influential:
        seen.setdefault((row["seed"], row["window"], row["env"]), row)
    return list(seen.values())[:_SHOWN_EPISODES]


def training_pictures(
    run: Run, set_name: str, chosen: Sequence[str], top: pa.Table, workers: Workers
) -> dict[str, Pictures]:
    """Draw the training states and episodes that the illustrated pages show, one piece a seed.

    Returns:
        By failure, what its page shows.
    """
    shown = {failure: shown_rewards(top, failure) for failure in chosen}
    states = {name: {moment_of(row) for rows in found for row in rows} for name, found in shown.items()}
    episodes = {name: {moment_of(row) for row in episode_rows(found)} for name, found in shown.items()}
    wanted, whole = (frozenset[Moment]().union(*found.values()) for found in (states, episodes))
    pieces = [
        PicturePiece(
            run.folder.root, run.task, set_name, seed, tuple(sorted(m for m in wanted if m.seed == seed)),
            frozenset(m for m in whole if m.seed == seed),
        )
        for seed in sorted({moment.seed for moment in wanted})
    ]  # fmt: skip
    drawn = workers.map(_draw_moments, pieces, f"pictures {run.task.name}")
    assets = {moment: asset for found in drawn for moment, asset in found.states.items()}
    steps = {moment: taken for found in drawn for moment, taken in found.episodes.items()}
    return {
        name: Pictures(
            {moment: assets[moment] for moment in states[name] if moment in assets},
            {moment: steps[moment] for moment in episodes[name] if moment in steps},
        )
        for name in chosen
    }


def _draw_moments(piece: PicturePiece) -> Pictures:
    """Play a seed's recorded actions again and draw the wanted states, and the episodes around some of them."""
    folder, spec = RunFolder(piece.root), piece.task.training_env
    facts = describe(spec)
    out = folder.reports_folder(piece.set_name) / "assets" / "frames"
    columns = ("env", "step", "action", "terminated", "truncated", "observation", "reward", "intended_reward")
    last = min(max(m.window for m in piece.moments) + 2, folder.window_count(piece.seed))  # an episode may go on
    tables = [read_table(folder.transitions_path(piece.seed, window), columns) for window in range(last)]
    form = array_format(tables[0].schema, "observation")
    n_steps = int(metadata_of(tables[0].schema)["n_steps"])
    pictures = Pictures({}, {})
    for env in sorted({moment.env for moment in piece.moments}):
        moments = {m.window * n_steps + m.step: m for m in piece.moments if m.env == env}
        mine = [table.slice(env * n_steps, n_steps) for table in tables]
        actions = np.concatenate([decode_actions(table) for table in mine])
        ended = np.concatenate([t["terminated"].to_numpy() | t["truncated"].to_numpy() for t in mine])
        spans = {at: _span(ended, at) for at, moment in moments.items() if moment in piece.episodes}
        wanted = sorted({*moments, *(step for span in spans.values() for step in range(*span.shown))})
        expected: dict[int, NDArray[Any]] = {
            step: decode_arrays(mine[step // n_steps]["observation"].slice(step % n_steps, 1), form)[0]
            for step in wanted
        }
        seed = env_seed(piece.task.agent, piece.seed, env)
        frames = replay_training_env(spec, seed, list(actions), ended.tolist(), expected, wanted)
        drawn = {step: write_frame(out, frame) for step, frame in frames.items()}
        pictures.states.update({moments[step]: asset for step, asset in drawn.items() if step in moments})
        rewards, intended = (
            [value for table in mine for value in table[name].to_pylist()] for name in ("reward", "intended_reward")
        )
        for at, (start, length, shown) in spans.items():
            steps = [
                StepView(
                    step - start, facts.action_name(action_text(actions[step])), rewards[step], intended[step],
                    drawn.get(step),
                )
                for step in range(*shown)
            ]  # fmt: skip
            pictures.episodes[moments[at]] = EpisodeSteps(tuple(steps), length)
    return pictures


class _Span(NamedTuple):
    """Where an episode starts, how long it is (None: its end was not read), and from where to where it is shown."""

    start: int
    length: int | None
    shown: tuple[int, int]


def _span(ended: NDArray[np.bool_], at: int) -> _Span:
    """Return the span of the episode of step `at`, of an environment's steps; at most `_SHOWN_STEPS` are shown."""
    before, after = np.flatnonzero(ended[:at]), np.flatnonzero(ended[at:])
    start = int(before[-1]) + 1 if len(before) else 0
    stop = at + int(after[0]) + 1 if len(after) else len(ended)
    first = max(start, min(at - _SHOWN_STEPS // 2, stop - _SHOWN_STEPS))
    return _Span(start, stop - start if len(after) else None, (first, min(stop, first + _SHOWN_STEPS)))


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
