"""Pictures of past states, by playing recorded actions again in the environment.

An environment is a function of its seed and the actions, so a recorded episode can be shown without
having stored pictures. Where it is not (its observations then differ from the recorded ones), there is
no picture, and the caller says so: a wrong picture would be worse than none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.arrays import row_bytes
from ...datasets.frames import Frame
from ..environments.spaces import ObservationForm, env_action
from ..environments.spec import DRAWING, Env, EnvSpec


def replay_test_episode(
    spec: EnvSpec,
    episode: int,
    actions: Sequence[Any],
    observations: NDArray[Any],
    wanted: Collection[int] | None = None,
) -> list[Frame] | None:
    """Return frames of a test episode: of states in which an action was taken, and of the last.

    Args:
        spec: the environment of the evaluation set.
        episode: its number, `reset(seed=episode)`.
        actions: the actions taken, length T.
        observations: [T, ...] as recorded, to check that the replay is the same episode.
        wanted: steps, from 0 to T; None: all.

    Returns:
        A frame for each wanted step, uint8 [height, width, 3] or text; None if the environment does not draw itself or
        does not repeat itself.
    """
    env = spec.make(render=True)
    try:
        form = ObservationForm(env.observation_space)
        observation, _ = env.reset(seed=episode)
        frames: list[Frame | None] = []
        for step, (action, expected) in enumerate(zip(actions, observations, strict=True)):
            if not _same(form, observation, expected):
                return None
            if wanted is None or step in wanted:
                frames.append(_draw(env))
            observation = env.step(env_action(env.action_space, action))[0]
        if wanted is None or len(actions) in wanted:
            frames.append(_draw(env))
    finally:
        env.close()
    drawn = [frame for frame in frames if frame is not None]
    return drawn if len(drawn) == len(frames) else None


def replay_training_env(
    spec: EnvSpec,
    seed: int,
    actions: Sequence[Any],
    ended: Sequence[bool],
    expected: dict[int, NDArray[Any]],
    wanted: Collection[int],
) -> dict[int, Frame]:
    """Return frames of one training environment at wanted steps of its whole history.

    Args:
        spec: the training environment.
        seed: seed of the environment (SB3 gives environment `i` the seed of the agent plus `i`).
        actions, ended: action and end of episode of every step from the first, up to the last wanted.
        expected: recorded observation of each wanted step.
        wanted: steps, counted from the first of the training.

    Returns:
        Frame by step, without those whose state did not come back as recorded.
    """
    env = spec.make(render=True)
    frames: dict[int, Frame] = {}
    try:
        form = ObservationForm(env.observation_space)
        observation, _ = env.reset(seed=seed)
        for step in range(max(wanted, default=-1) + 1):
            if step in wanted and _same(form, observation, expected[step]):
                frame = _draw(env)
                if frame is not None:
                    frames[step] = frame
            observation, _, terminated, truncated, _ = env.step(env_action(env.action_space, actions[step]))
            if (terminated or truncated) != bool(ended[step]):
                break  # not the recorded history any more
            if ended[step]:
                observation, _ = env.reset()
    finally:
        env.close()
    return frames


def _same(form: ObservationForm, observation: Any, recorded: NDArray[Any]) -> bool:
    return np.array_equal(row_bytes(form.batch([observation])), row_bytes(np.asarray(recorded)[None]))


def _draw(env: Env) -> Frame | None:
    drawn = env.render() if env.render_mode in DRAWING else None
    if isinstance(drawn, str) and env.render_mode == "ansi":
        return drawn
    if not isinstance(drawn, np.ndarray) or drawn.ndim != 3 or drawn.shape[2] != 3:
        return None
    return drawn.astype(np.uint8)
