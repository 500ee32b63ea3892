"""A window of a training as plain arrays, and the table that it is kept as: what every recorder translates into.

Sizes here: `T` vector steps, `E` environments stepped together, `N = T * E` transitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...datasets import schema
from ...datasets.arrays import Array, array_format_of, array_metadata, encode_actions, encode_arrays, pack
from ...datasets.errors import InputError
from ..environments.contract import Told
from .provenance import EarlierTraining


def as_rows(values: Array) -> Array:
    """Return [T, E, ...] as [N, ...], row = env * T + step: the order of Stable-Baselines3, and of every table."""
    return values.swapaxes(0, 1).reshape(-1, *values.shape[2:])


def each(function: Callable[[Any], Any], observation: Any) -> Any:
    """Return a function of an array, or of each array of a dictionary."""
    if isinstance(observation, Mapping):
        return {name: each(function, part) for name, part in observation.items()}
    return function(observation)


def at(observations: Any, index: int | slice) -> Any:
    """Return one observation of several, or (a slice) some."""
    return each(lambda values: values[index], observations)


def stacked(observations: Sequence[Any]) -> Any:
    """Return observations as one array, or one dictionary of arrays, with an axis more, the first."""
    if isinstance(observations[0], Mapping):
        return {name: np.stack([seen[name] for seen in observations]) for name in observations[0]}
    return np.stack(observations)


def packed(observations: Any) -> Array:
    """Return observations [N, ...] as one array; structured for a dictionary."""
    return pack(observations) if isinstance(observations, Mapping) else observations


@dataclass(frozen=True)
class Step:
    """One step of all environments.

    Attributes:
        reward: [E], as paid, in the precision in which it was paid (intended rewards are rounded alike).
        ended: bool [E].
        truncated: bool [E]; ended by a limit.
        reported: what the info of each environment says, E of them.
        last: by environment, the last observation of an episode that ended; without one, none is kept.
        scale: float64 [E]; what the learner multiplied each reward with, 0 where it clipped it.
        unclipped_scale: what it multiplied with before it clipped.
    """

    reward: Array
    ended: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    reported: Sequence[Told]
    last: Mapping[int, Any]
    scale: NDArray[np.float64]
    unclipped_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("ended", "truncated", "scale"):
            _require_shape(f"`{name}` of a step", getattr(self, name), self.reward.shape)
        if len(self.reported) != len(self.reward):
            raise InputError(f"a step has {len(self.reported)} infos, expected {len(self.reward)}: one an environment")


@dataclass(frozen=True)
class Learned:
    """What a window was learned from; None: not known, or without meaning for the algorithm.

    Attributes:
        value, log_prob, advantage, returns: float32 [T, E].
        minibatches: for each epoch int32 [N], the minibatch that used each row, -1 if none did. The list may still
            grow until the window is written.
    """

    value: Array | None = None
    log_prob: Array | None = None
    advantage: Array | None = None
    returns: Array | None = None
    minibatches: Sequence[NDArray[np.int32]] = ()


@dataclass(frozen=True)
class Collected:
    """What was collected in a window.

    Attributes:
        steps: T of them.
        observations: [T, E, ...] as the policy got them, or a dictionary of such arrays.
        actions: integers [T, E] or [T, E, K], or floats [T, E, K], as drawn.
        following: [E, ...], what was observed after the last step.
        learner: discount and other settings of the learner, for the table's metadata.
        about: what else the metadata say.
        clip_reward: what scaled rewards are clipped at; infinite: they are not.
        action_masks: bool [T, E, A], which actions were allowed; None: all.
        lstm_states: float32 [E, 4, layers, H], those that came into the first step; None: the policy has no memory.
    """

    steps: Sequence[Step]
    observations: Array | Mapping[str, Array]
    actions: Array
    following: Any
    learner: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    clip_reward: float = np.inf
    action_masks: NDArray[np.bool_] | None = None
    lstm_states: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        each(lambda values: _require_shape("observations", values, self.shape), self.observations)
        _require_shape("actions", self.actions, self.shape)
        if np.issubdtype(self.actions.dtype, np.floating) and self.actions.ndim < 3:
            raise InputError(
                f"actions: floats of shape {list(self.actions.shape)}, expected {[*self.shape, 'K']} "
                "(continuous actions are vectors, those of one number too)"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """Vector steps and environments: [T, E]."""
        return len(self.steps), len(self.steps[0].reward)

    @cached_property
    def observed(self) -> Array:
        """The observations [N, ...]; structured for a dictionary."""
        return packed(each(as_rows, self.observations))

    @cached_property
    def acted(self) -> Array:
        """The actions: int64 [N] or [N, K], or floats [N, K]."""
        actions = as_rows(self.actions)
        return actions if np.issubdtype(actions.dtype, np.floating) else actions.astype(np.int64)

    def table(
        self, seed: int, window: int, learned: Learned, earlier: EarlierTraining,
        episode: NDArray[np.int64], t: NDArray[np.int64],
    ) -> pa.Table:  # fmt: skip
        """Return the transitions table of the window (docs/run-folder.md).

        Args:
            seed, window: numbers of the training and of the window in it.
            learned: what was learned from it.
            earlier: what the agent had trained before its recording.
            episode: [T, E], the number of each step's episode.
            t: [T, E], steps since it began.
        """
        steps, envs = self.shape
        reported = [step.reported[env] for env in range(envs) for step in self.steps]
        number = self.steps[0].reward.dtype.type

        def as_paid(values: list[float | None]) -> pa.Array:
            # SB3's environments pay in float32: round alike, or 0.1 as intended differs from 0.1 as paid
            return pa.array([None if value is None else float(number(value)) for value in values], pa.float64())

        def over_steps(name: str) -> Array:
            return as_rows(np.stack([getattr(step, name) for step in self.steps]))

        def or_null(values: Array | None) -> pa.Array:
            return pa.nulls(len(reported), pa.float32()) if values is None else pa.array(as_rows(values))

        ended, truncated = over_steps("ended"), over_steps("truncated")
        action, of_action = encode_actions(self.acted)
        columns = {
            "seed": pa.array(np.full(len(reported), seed, np.int32)),
            "window": pa.array(np.full(len(reported), window, np.int32)),
            "env": pa.array(np.repeat(np.arange(envs, dtype=np.int32), steps)),
            "step": pa.array(np.tile(np.arange(steps, dtype=np.int32), envs)),
            "episode": pa.array(as_rows(episode)),
            "t": pa.array(as_rows(t).astype(np.int32)),
            "observation": encode_arrays(self.observed),
            "next_observation": self._next_observations(),
            "action": action,
            "reward": pa.array(over_steps("reward").astype(np.float64)),
            "reward_scale": pa.array(over_steps("scale")),
            "intended_reward": as_paid([x.intended_reward for x in reported]),
            "untampered_reward": as_paid([x.untampered_reward for x in reported]),
            "context": pa.array([x.context for x in reported], pa.string()),
            "outcome": pa.array([x.outcome for x in reported], pa.string()),
            "value": or_null(learned.value),
            "log_prob": or_null(learned.log_prob),
            "advantage": or_null(learned.advantage),
            "return": or_null(learned.returns),
            "terminated": pa.array(ended & ~truncated),
            "truncated": pa.array(truncated),
        }  # fmt: skip
        metadata = {
            "schema_version": str(schema.SCHEMA_VERSION), "n_steps": str(steps), "n_envs": str(envs),
            **self.learner, **earlier.metadata(),
        }  # fmt: skip
        if np.isfinite(self.clip_reward):
            columns["unclipped_scale"] = pa.array(np.tile([step.unclipped_scale for step in self.steps], envs))
            metadata["clip_reward"] = repr(self.clip_reward)
        metadata |= {**array_metadata("observation", array_format_of(self.observed)), **of_action}
        if self.action_masks is not None:
            masks = as_rows(self.action_masks)
            columns["action_mask"] = encode_arrays(masks)
            metadata |= array_metadata("action_mask", array_format_of(masks))
        if self.lstm_states is not None:
            columns["lstm_state"] = self._first_states(self.lstm_states, t[0])
            metadata |= array_metadata("lstm_state", array_format_of(self.lstm_states))
        for name in sorted({name for x in reported for name in x.components or {}}):
            values = [(x.components or {}).get(name) for x in reported]
            columns[schema.COMPONENT_PREFIX + name] = pa.array(values, pa.float64())
        columns["minibatches"] = _lists(learned.minibatches, len(reported))
        return schema.with_metadata(pa.table(columns), {**metadata, **self.about})

    def _next_observations(self) -> pa.Array:
        """Return what was observed after an episode's and the window's end, where no row of the window holds it."""
        steps, envs = self.shape
        kept: list[bytes | None] = [None] * (steps * envs)
        for env in range(envs):
            kept[(env + 1) * steps - 1] = self._as_kept(at(self.following, env))
        for number, step in enumerate(self.steps):
            for env, last in step.last.items():
                kept[env * steps + number] = self._as_kept(last)
        return pa.array(kept, pa.binary(array_format_of(self.observed).width))

    def _as_kept(self, observation: Any) -> bytes:
        """Return one observation in the form of a row of `observed`."""

        def like(values: Array, part: Any) -> Array:
            return np.asarray(part, values.dtype).reshape(1, *values.shape[2:])

        if not isinstance(self.observations, Mapping):
            return like(self.observations, observation).tobytes()
        return pack({name: like(values, observation[name]) for name, values in self.observations.items()}).tobytes()

    def _first_states(self, first: NDArray[np.float32], t: NDArray[np.int64]) -> pa.Array:
        """Return LSTM states where no row of the window determines them: at its first step, inside an episode.

        At the start of an episode they are zero; at any other row they follow from the row before it.
        """
        steps, envs = self.shape
        kept: list[bytes | None] = [None] * (steps * envs)
        for env in np.flatnonzero(t):
            kept[env * steps] = first[env].tobytes()
        return pa.array(kept, pa.binary(first[0].nbytes))


def _lists(epochs: Sequence[NDArray[np.int32]], rows: int) -> pa.Array:
    """Return for each row the minibatch of each epoch that used it."""
    members = np.stack(epochs, axis=1) if epochs else np.empty((rows, 0), np.int32)
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * members.shape[1])
    return pa.ListArray.from_arrays(offsets, pa.array(members.reshape(-1)))


def _require_shape(what: str, values: Array, shape: tuple[int, ...]) -> None:
    if values.shape[: len(shape)] != shape:
        raise InputError(f"{what}: an array of shape {list(values.shape)}, expected {list(shape)} at its beginning")
