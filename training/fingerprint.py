"""The fingerprint of an environment: a short seeded rollout, by which it is recognised when a run is continued.

A run is continued in pieces, days apart. Were the environment another one by then, old and new pieces would be mixed;
so the rollout is kept in `run.json`, played again by every computing command, and compared.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from ..datasets.arrays import flat_numbers
from .environments import EnvSpec, random_actions
from .spaces import ObservationForm, env_action

_MOST_STEPS = 256
_FEWEST_STEPS = 16
_SECONDS = 0.25  # after which the first rollout ends; later ones have its length
_HEX = 8  # digits kept of a step's digest


class _Rollout(NamedTuple):
    """What an environment said in T steps: digests of observations (T + resets), rewards, ends, infos."""

    observations: list[str]
    rewards: list[float]
    ends: str
    infos: list[dict[str, str]]


@dataclass(frozen=True)
class Fingerprint:
    """A rollout of T steps with seeded random actions; episode k begins with `reset(seed=k)`.

    Attributes:
        steps: T.
        rewards: the T rewards, as text, with spaces between.
        ends: a character a step: `t` terminated, `u` truncated, `.` neither.
        observations: a digest for each observation, of resets too, joined.
        infos: a digest for each step's `info`, joined.
        info_keys: the keys of `info` that counted: those that repeated themselves when the rollout was first taken.
    """

    steps: int
    rewards: str
    ends: str
    observations: str
    infos: str
    info_keys: tuple[str, ...]

    def differences(self, now: Fingerprint) -> list[str]:
        """Say how the same rollout of an environment differs from this one; empty: it does not."""
        found = []
        old, new = self.rewards.split(), now.rewards.split()
        if (step := _first_difference(old, new)) is not None:
            found.append(f"rewards, from step {step} on: {old[step]} when the run began, {new[step]} now")
        if (step := _first_difference(self.ends, now.ends)) is not None:
            found.append(f"where episodes end, from step {step} on")
        for name in ("observations", "infos"):
            parts = [_split(getattr(each, name)) for each in (self, now)]
            if (step := _first_difference(*parts)) is not None:
                found.append(f"{name}, from the {step + 1}. on")
        return found

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for `run.json`."""
        return {**asdict(self), "info_keys": list(self.info_keys)}

    @staticmethod
    def of_json(values: Mapping[str, Any]) -> Fingerprint:
        """Return the fingerprint that `as_json` wrote."""
        return Fingerprint(**{**values, "info_keys": tuple(values["info_keys"])})


def take_fingerprint(spec: EnvSpec, masked: bool = False) -> Fingerprint | None:
    """Return the fingerprint of an environment, of two rollouts; None where the second is not like the first.

    Args:
        spec: the environment.
        masked: whether agents draw only actions that the environment allows.

    Raises:
        EnvironmentError_: the environment cannot be made.
    """
    first = _roll_out(spec, masked, None)
    second = _roll_out(spec, masked, len(first.rewards))
    keys = sorted({key for info in (*first.infos, *second.infos) for key in info})
    repeating = tuple(
        key for key in keys if all(a.get(key) == b.get(key) for a, b in zip(first.infos, second.infos, strict=True))
    )
    one, two = (_fingerprint(rollout, repeating) for rollout in (first, second))
    return one if one == two else None


def replay_fingerprint(spec: EnvSpec, known: Fingerprint, masked: bool = False) -> Fingerprint:
    """Return the fingerprint of the rollout that `known` is of, played in an environment as it is now."""
    return _fingerprint(_roll_out(spec, masked, known.steps), known.info_keys)


def _fingerprint(rollout: _Rollout, keys: tuple[str, ...]) -> Fingerprint:
    infos = [_digest(json.dumps([info.get(key) for key in keys])) for info in rollout.infos]
    rewards = " ".join(map(repr, rollout.rewards))
    return Fingerprint(
        len(rollout.rewards), rewards, rollout.ends, "".join(rollout.observations), "".join(infos), keys
    )  # fmt: skip


def _roll_out(spec: EnvSpec, masked: bool, steps: int | None) -> _Rollout:
    """Play `steps` steps; None: as many as fit into `_SECONDS`, at most `_MOST_STEPS`."""
    env = spec.make()
    try:
        form = ObservationForm(env.observation_space)
        draw: Callable[[], Any] = random_actions(env, masked, f"environment `{spec.id}`")
        found, episode, began = _Rollout([], [], "", []), 0, time.monotonic()
        observations, rewards, infos, ends = found.observations, found.rewards, found.infos, ""
        first, _ = env.reset(seed=episode)
        observations.append(_digest(flat_numbers(form.batch([first])).tobytes()))
        for step in range(_MOST_STEPS if steps is None else steps):
            if steps is None and step >= _FEWEST_STEPS and time.monotonic() - began > _SECONDS:
                break
            seen, reward, terminated, truncated, info = env.step(env_action(env.action_space, draw()))
            observations.append(_digest(flat_numbers(form.batch([seen])).tobytes()))
            rewards.append(float(reward))
            infos.append({str(key): _digest(repr(_plain(value))) for key, value in info.items()})
            ends += "t" if terminated else "u" if truncated else "."
            if terminated or truncated:
                episode += 1
                first, _ = env.reset(seed=episode)
                observations.append(_digest(flat_numbers(form.batch([first])).tobytes()))
        return found._replace(ends=ends)
    finally:
        env.close()


def _plain(value: Any) -> Any:
    """Return a value whose text is the same in every process; of objects whose text may be an address: the type."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str | bytes):
        return value
    if isinstance(value, float):
        return "nan" if math.isnan(value) else value
    if isinstance(value, Mapping):
        return sorted((str(key), repr(_plain(part))) for key, part in value.items())
    if isinstance(value, set | frozenset):
        return sorted(repr(_plain(part)) for part in value)
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return type(value).__name__


def _digest(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:_HEX]


def _split(joined: str) -> list[str]:
    return [joined[i : i + _HEX] for i in range(0, len(joined), _HEX)]


def _first_difference(old: list[str] | str, new: list[str] | str) -> int | None:
    """Return the first place at which two sequences differ; None: nowhere."""
    both = zip(old, new, strict=False)
    shorter = min(len(old), len(new))
    return next((i for i, (a, b) in enumerate(both) if a != b), None if len(old) == len(new) else shorter - 1)
