"""Drawing failing episodes and suspected training states, by playing recorded actions again, into `frames/SET/`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...attribution.targets.steps import Targets
from ...datasets.arrays import array_format, decode_actions, decode_arrays
from ...datasets.errors import AitiaError, InputError
from ...datasets.files.store import RunFolder, read_table
from ...datasets.frames import (
    MOST_BYTES,
    MOST_FRAMES,
    DrawnEpisode,
    DrawnFailure,
    DrawnState,
    EpisodeStep,
    Frame,
    FrameIndex,
    FrameWriter,
    Moment,
    TrainingStep,
)
from ...datasets.outcomes import failure_ids
from ...datasets.schema import current_top_transitions, metadata_of
from ...training.agents.frames import replay_test_episode, replay_training_env
from ...training.agents.spec import env_seed
from ...training.environments.spaces import action_text
from ...training.environments.spec import describe
from ..runs.evaluated_set import load_targets
from ..runs.run import Run
from ..runs.task import Task
from ..workers.pool import Workers
from .reporting.shown import episode_rows, moment_of, shown_rewards

log = logging.getLogger("aitia")
Illustrated = int | Literal["all"]
DEFAULT_ILLUSTRATED = 20
_SHOWN_STEPS = 24
_CHUNK = 8
_NOT_DRAWN = "The environment does not draw itself, or did not repeat itself when played again: no pictures."


@dataclass(frozen=True)
class EpisodesPiece:
    """Pictures of some failing episodes of an evaluation set."""

    root: Path
    task: Task
    set_name: str
    failures: tuple[str, ...]


@dataclass(frozen=True)
class PicturePiece:
    """Pictures of training states of one seed, and of the episodes around some of them."""

    root: Path
    task: Task
    set_name: str
    seed: int
    moments: tuple[Moment, ...]
    episodes: frozenset[Moment]


class _Drawn(NamedTuple):
    """What a piece of one seed drew."""

    states: list[DrawnState]
    episodes: list[DrawnEpisode]


def draw_failures(
    run: Run, set_name: str, illustrated: Illustrated | None, workers: Workers, again: bool = False
) -> None:
    """Draw failing episodes of an evaluated set, spread evenly over all; those that are drawn already stay.

    Args:
        run: the run.
        set_name: the evaluation set.
        illustrated: how many failures have pictures; None: as many as before, at first `DEFAULT_ILLUSTRATED`.
        workers: where the pieces run.
        again: try those that could not be drawn once more.

    Raises:
        InputError: it is no count, or the set was not evaluated.
    """
    if illustrated is not None and illustrated != "all" and illustrated < 0:
        raise InputError(f"{illustrated} was given, expected a number of failures from 0, or all")
    folder = run.folder.frames_folder(set_name)
    names, earlier = run[set_name].failure_ids, FrameIndex.read(folder)
    asked = illustrated if illustrated is not None else DEFAULT_ILLUSTRATED if earlier is None else earlier.asked
    chosen = _spread(names, len(names) if asked == "all" else asked)
    index = earlier or FrameIndex(asked=asked)
    done = {name for name, failure in index.failures.items() if failure.steps or not again}
    waiting = [name for name in chosen if name not in done]
    pieces = [
        EpisodesPiece(run.folder.root, run.task, set_name, tuple(waiting[i : i + _CHUNK]))
        for i in range(0, len(waiting), _CHUNK)
    ]
    drawn = workers.map(_draw_episodes, pieces, f"pictures {run.task.name}")
    found = {**index.failures, **{name: failure for part in drawn for name, failure in part.items()}}
    new = index.model_copy(update={"asked": asked, "failures": {name: found[name] for name in chosen}})
    if new != earlier:
        new.write(folder)


def draw_training(run: Run, set_name: str, workers: Workers, again: bool = False) -> None:
    """Draw the training states and episodes that the pages of illustrated failures show, as far as attributed.

    Args:
        run: the run.
        set_name: the evaluation set.
        workers: where the pieces run.
        again: try those that could not be drawn once more.
    """
    folder, path = run.folder.frames_folder(set_name), run.folder.influence_path(set_name, "transitions")
    index = FrameIndex.read(folder)
    if index is None or not path.exists():
        return
    top = current_top_transitions(read_table(path)).filter(pc.field("estimator") == run[set_name].estimator.name)
    shown = [shown_rewards(top.filter(pc.field("failure") == failure)) for failure in index.failures]
    wanted = {moment_of(row) for found in shown for rows in found for row in rows}
    whole = {moment_of(row) for found in shown for row in episode_rows(found)}
    states = {state.moment: state for state in index.states if state.moment in wanted}
    episodes = {episode.moment: episode for episode in index.episodes if episode.moment in whole}
    missing = (wanted - states.keys()) | (whole - episodes.keys())
    if again:
        missing |= {moment for moment, state in states.items() if state.file is None}
        missing |= {m for m, episode in episodes.items() if any(step.file is None for step in episode.steps)}
    pieces = [
        PicturePiece(
            run.folder.root, run.task, set_name, seed, tuple(sorted(m for m in missing if m.seed == seed)),
            frozenset(m for m in whole & missing if m.seed == seed),
        )
        for seed in sorted({moment.seed for moment in missing})
    ]  # fmt: skip
    for drawn in workers.map(_draw_moments, pieces, f"pictures {run.task.name}"):
        states |= {state.moment: state for state in drawn.states}
        episodes |= {episode.moment: episode for episode in drawn.episodes}
    new = index.model_copy(
        update={
            "states": [states[moment] for moment in sorted(states)],
            "episodes": [episodes[moment] for moment in sorted(episodes)],
        }
    )
    if new != index:
        new.write(folder)


def _spread(names: Sequence[str], count: int) -> list[str]:
    """Return `count` failures spread evenly over all, so that every seed has some."""
    if count >= len(names):
        return list(names)
    return [names[i] for i in np.linspace(0, len(names) - 1, count).astype(int)] if count else []


def _draw_episodes(piece: EpisodesPiece) -> dict[str, DrawnFailure]:
    """Draw failing test episodes step by step."""
    folder, task = RunFolder(piece.root), piece.task
    targets = load_targets(folder, task, piece.set_name, piece.failures)
    episodes = task.outcomes.failures(read_table(folder.evaluation_path(piece.set_name, "episodes")))
    ends = dict(zip(failure_ids(episodes), episodes.to_pylist(), strict=True))
    writer = FrameWriter(folder.frames_folder(piece.set_name))
    found = {}
    for name in piece.failures:
        found[name] = _draw_episode(piece, targets, targets.ids.index(name), ends[name], writer)
    return found


def _draw_episode(
    piece: EpisodesPiece, targets: Targets, index: int, episode: dict[str, object], writer: FrameWriter
) -> DrawnFailure:
    spec = piece.task.evaluation_env(piece.set_name)
    rows = np.flatnonzero(targets.failure == index)
    facts, actions = describe(spec), list(targets.actions[rows])
    decisive = [*targets.decisive[rows].tolist(), False]
    steps = _chosen_steps(decisive, MOST_FRAMES)
    number = episode["episode"]
    assert isinstance(number, int)
    try:
        drawn = replay_test_episode(spec, number, actions, targets.observations[rows], frozenset(steps))
    except AitiaError:
        raise
    except Exception as error:  # whatever an environment's renderer raises: no reason to lose an evaluation
        log.warning("pictures %s: failure %s could not be drawn (%s)", piece.task.name, targets.ids[index], error)
        return DrawnFailure(why=f"The environment could not draw itself ({type(error).__name__}: {error}).")
    if drawn is None:
        return DrawnFailure(why=_NOT_DRAWN)
    captions = [f"{t}: {facts.action_name(action_text(action))}" for t, action in enumerate(actions)]
    captions.append(f"end: {episode['outcome']}")
    written = dict(zip(steps, map(writer.write, drawn), strict=True))
    while sum(written[step][1] for step in steps) > MOST_BYTES and len(steps) > 2:
        steps = [step for step in _chosen_steps(decisive, len(steps) // 2) if step in written]
    return DrawnFailure(
        steps=[
            EpisodeStep(step=step, file=written[step][0], caption=captions[step], decisive=bool(decisive[step]))
            for step in steps
        ]
    )


def _chosen_steps(decisive: Sequence[bool], count: int) -> list[int]:
    """Return at most `count` steps of an episode: the last, decisive ones (at most half), and others evenly spread."""
    if len(decisive) <= count:
        return list(range(len(decisive)))
    marked = [step for step, mark in enumerate(decisive) if mark]
    kept = {marked[i] for i in np.linspace(0, len(marked) - 1, min(len(marked), count // 2)).astype(int)}
    return sorted(kept | set(np.linspace(0, len(decisive) - 1, count - len(kept)).astype(int).tolist()))


def _draw_moments(piece: PicturePiece) -> _Drawn:
    """Play a seed's recorded actions again and draw the wanted states, and the episodes around some of them."""
    folder, spec = RunFolder(piece.root), piece.task.training_env
    facts, writer = describe(spec), FrameWriter(folder.frames_folder(piece.set_name))
    columns = ("env", "step", "action", "terminated", "truncated", "observation", "reward", "intended_reward")
    last = min(max(m.window for m in piece.moments) + 2, folder.window_count(piece.seed))  # an episode may go on
    tables = [read_table(folder.transitions_path(piece.seed, window), columns) for window in range(last)]
    form = array_format(tables[0].schema, "observation")
    n_steps = int(metadata_of(tables[0].schema)["n_steps"])
    found = _Drawn([], [])
    for env in sorted({moment.env for moment in piece.moments}):
        moments = {m.window * n_steps + m.step: m for m in piece.moments if m.env == env}
        mine = [table.slice(env * n_steps, n_steps) for table in tables]
        actions = np.concatenate([decode_actions(table) for table in mine])
        ended = np.concatenate([t["terminated"].to_numpy() | t["truncated"].to_numpy() for t in mine])
        spans = {at: _span(ended, at) for at, moment in moments.items() if moment in piece.episodes}
        wanted = sorted({*moments, *(step for span in spans.values() for step in range(*span.shown))})
        expected: dict[int, NDArray[np.generic]] = {
            step: decode_arrays(mine[step // n_steps]["observation"].slice(step % n_steps, 1), form)[0]
            for step in wanted
        }
        frames = _replay(piece, env, actions, ended, expected, wanted)
        drawn = {step: writer.write(frame)[0] for step, frame in frames.items()}
        found.states.extend(DrawnState(moment=moment, file=drawn.get(at)) for at, moment in moments.items())
        rewards, intended = (
            [value for table in mine for value in table[name].to_pylist()] for name in ("reward", "intended_reward")
        )
        for at, (start, length, shown) in spans.items():
            steps = [
                TrainingStep(
                    number=step - start, action=facts.action_name(action_text(actions[step])), reward=rewards[step],
                    intended=intended[step], file=drawn.get(step),
                )
                for step in range(*shown)
            ]  # fmt: skip
            found.episodes.append(DrawnEpisode(moment=moments[at], length=length, steps=steps))
    return found


def _replay(
    piece: PicturePiece, env: int, actions: NDArray[np.generic], ended: NDArray[np.bool_],
    expected: dict[int, NDArray[np.generic]], wanted: Sequence[int],
) -> dict[int, Frame]:  # fmt: skip
    """Return frames of one training environment; none where its renderer fails."""
    seed = env_seed(piece.task.agent, piece.seed, env)
    try:
        return replay_training_env(piece.task.training_env, seed, list(actions), ended.tolist(), expected, wanted)
    except AitiaError:
        raise
    except Exception as error:  # whatever an environment's renderer raises: no reason to lose an attribution
        log.warning("pictures %s: training of seed %d could not be drawn (%s)", piece.task.name, piece.seed, error)
        return {}


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
