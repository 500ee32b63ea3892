"""The fingerprint of an environment: a short seeded rollout, by which it is recognised when a run is continued.

A run is continued in pieces, days apart. Were the environment another one by then, old and new pieces would be mixed;
so the rollout is kept in `run.json`, played again by every computing command, and compared.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ...datasets.arrays import flat_numbers
from ...datasets.errors import RunFolderError
from .contract import KNOWN_KEYS
from .spaces import ObservationForm, env_action
from .spec import EnvSpec, random_actions

_MOST_STEPS = 256
_FEWEST_STEPS = 16
_SECONDS = 0.25  # after which the first rollout ends; later ones have its length
_HEX = 8  # digits kept of a step's digest
_MANTISSA, _OFFSET = 2**20, 0.3183


@dataclass(frozen=True)
class Fingerprint:
    """A rollout of T steps with seeded random actions; episode k begins with `reset(seed=k)`.

    Attributes:
        steps: T.
        rewards: the T rewards, as text, with spaces between.
        ends: a character a step: `t` terminated, `u` truncated, `.` neither.
        observations: a digest for each observation, of resets too, joined.
        infos: a digest of what each step's `info` says of the contract's keys (docs/task-file.md), joined.

    Numbers count to about six digits: processors differ in the last ones.
    """

    steps: int
    rewards: str
    ends: str
    observations: str
    infos: str

    def differences(self, now: Fingerprint) -> list[str]:
        """Say how the same rollout of an environment differs from this one; empty: it does not."""
        changes = []
        old, new = self.rewards.split(), now.rewards.split()
        if (step := _first_difference(old, new)) is not None:
            changes.append(f"rewards, from step {step} on: {old[step]} when the run began, {new[step]} now")
        if (step := _first_difference(self.ends, now.ends)) is not None:
            changes.append(f"where episodes end, from step {step} on")
        for name in ("observations", "infos"):
            parts = [_split(getattr(each, name)) for each in (self, now)]
            if (step := _first_difference(*parts)) is not None:
                changes.append(
                    f"{name}, from number {step} on" + (" (resets count too)" if name == "observations" else "")
                )
        return changes

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for `run.json`."""
        return asdict(self)

    @staticmethod
    def of_json(values: Mapping[str, Any]) -> Fingerprint:
        """Return the fingerprint that `as_json` wrote.

        Raises:
            RunFolderError: it did not write these.
        """
        try:
            return Fingerprint(**values)
        except TypeError as error:
            raise RunFolderError(f"run.json holds a fingerprint that aitia did not write ({error})") from error


def take_fingerprint(spec: EnvSpec, masked: bool = False) -> Fingerprint | None:
    """Return the fingerprint of an environment, of two rollouts; None where the second is not like the first.

    Args:
        spec: the environment.
        masked: whether agents draw only actions that the environment allows.

    Raises:
        EnvironmentError_: the environment cannot be made.
    """
    first = _roll_out(spec, masked, None)
    return first if _roll_out(spec, masked, first.steps) == first else None


def replay_fingerprint(spec: EnvSpec, known: Fingerprint, masked: bool = False) -> Fingerprint:
    """Return the fingerprint of the rollout that `known` is of, played in an environment as it is now."""
    return _roll_out(spec, masked, known.steps)


def _roll_out(spec: EnvSpec, masked: bool, steps: int | None) -> Fingerprint:
    """Play `steps` steps; None: as many as fit into `_SECONDS`, at most `_MOST_STEPS`."""
    env = spec.make()
    try:
        form = ObservationForm(env.observation_space)
        draw, episode, began = random_actions(env, masked, f"environment `{spec.id}`"), 0, time.monotonic()
        observations, rewards, infos, ends = list[str](), list[str](), list[str](), ""
        observations.append(_of_observation(form, env.reset(seed=episode)[0]))
        for step in range(_MOST_STEPS if steps is None else steps):
            if steps is None and step >= _FEWEST_STEPS and time.monotonic() - began > _SECONDS:
                break
            seen, reward, terminated, truncated, info = env.step(env_action(env.action_space, draw()))
            observations.append(_of_observation(form, seen))
            rewards.append(f"{float(reward):.6g}")
            infos.append(_digest(repr([_plain(info.get(key)) for key in KNOWN_KEYS]).encode()))
            ends += "t" if terminated else "u" if truncated else "."
            if terminated or truncated:
                episode += 1
                observations.append(_of_observation(form, env.reset(seed=episode)[0]))
        return Fingerprint(len(rewards), " ".join(rewards), ends, "".join(observations), "".join(infos))
    finally:
        env.close()


def _of_observation(form: ObservationForm, observation: Any) -> str:
    return _digest(_rounded(flat_numbers(form.batch([observation])).astype(np.float64)).tobytes())


def _rounded(values: Any) -> Any:
    """Return numbers to 20 bits of their mantissa; none that people write lies where these change."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.floor(mantissa * _MANTISSA + _OFFSET) / _MANTISSA, exponent) + 0.0  # no negative zero


def _plain(value: Any) -> Any:
    """Return a value of the contract as one whose text is the same in every process."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return float(_rounded(np.float64(value)))
    if isinstance(value, Mapping):
        return sorted((str(key), _plain(part)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_HEX]


def _split(joined: str) -> list[str]:
    return [joined[i : i + _HEX] for i in range(0, len(joined), _HEX)]


def _first_difference(old: list[str] | str, new: list[str] | str) -> int | None:
    """Return the first place at which two sequences differ; None: nowhere."""
    both = zip(old, new, strict=False)
    shorter = min(len(old), len(new))
    return next((i for i, (a, b) in enumerate(both) if a != b), None if len(old) == len(new) else shorter - 1)
