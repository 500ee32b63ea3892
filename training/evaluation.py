r"""Playing test and training episodes with a fixed policy, on common random numbers.

Episode `e` begins with `reset(seed=e)`, the same state for every agent. Action `t` of play (e, repeat)
is the inverse CDF of the policy at the `t`-th number of a generator seeded by (e, repeat), so that two
agents that agree on the probabilities take the same actions. Every play is assigned before any begins:
short episodes are not favoured.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from stable_baselines3.common.policies import ActorCriticPolicy
from torch.distributions import Categorical

from ..datasets import schema
from ..datasets.errors import EnvironmentError_
from .contract import InfoReader, Told
from .environments import EnvSpec

_SLOTS = 64
_MOST_STEPS = 100_000


class EvaluationSpec(BaseModel):
    """The `evaluation` block of a task file.

    Attributes:
        episodes: test episodes, `reset(seed=0..episodes-1)`.
        repeats: plays of each episode, each with its own action draws.
        deterministic: take the most probable action instead of drawing.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    episodes: int = Field(default=128, ge=1)
    repeats: int = Field(default=16, ge=1)
    deterministic: bool = False


class Play(NamedTuple):
    """One episode to be played once."""

    episode: int
    repeat: int


class _Decision(NamedTuple):
    """What a policy says of a batch of observations: probabilities [B, A], values [B]."""

    probabilities: NDArray[np.float64]
    values: NDArray[np.float64]


def evaluate_policy(
    policy: ActorCriticPolicy | None, env: EnvSpec, spec: EvaluationSpec, seed: int, part: str
) -> tuple[pa.Table, pa.Table]:
    """Play every episode `repeats` times (the random policy once).

    Args:
        policy: the policy; None plays uniformly at random.
        env: the environment of the set.
        spec: how many episodes and repeats, drawn or greedy actions.
        seed: number of the agent in the tables (-1: random policy).
        part: `test` or `train`.

    Returns:
        The episodes table, and the steps table of repeat 0.

    Raises:
        EnvironmentError_: the environment breaks the contract.
    """
    repeats = spec.repeats if policy is not None else 1
    greedy = spec.deterministic and policy is not None  # a random policy has no most probable action
    plays = [Play(e, r) for e in range(spec.episodes) for r in range(repeats)]
    slots = [_Slot(env, f"{part} environment `{env.id}`") for _ in range(min(_SLOTS, len(plays)))]
    waiting = iter(plays)
    records: list[_PlayRecord] = []
    active = [slot for slot in slots if slot.begin(next(waiting, None))]
    try:
        while active:
            decision = _decide(policy, np.stack([slot.observation for slot in active]), slots[0].actions)
            for index, slot in enumerate(active):
                slot.act(decision.probabilities[index], decision.values[index], greedy)
            for slot in [slot for slot in active if slot.ended]:
                records.append(slot.record)
                slot.begin(next(waiting, None))
            active = [slot for slot in active if not slot.ended]
    finally:
        for slot in slots:
            slot.env.close()
    records.sort(key=lambda record: record.play)
    return _episodes_table(records, seed, part), _steps_table(records, seed, part, slots[0])


def _decide(policy: ActorCriticPolicy | None, observations: NDArray[Any], actions: int) -> _Decision:
    if policy is None:
        batch = len(observations)
        return _Decision(np.full((batch, actions), 1.0 / actions), np.zeros(batch))
    with torch.no_grad():
        tensor, _ = policy.obs_to_tensor(observations)
        distribution = policy.get_distribution(tensor).distribution
        assert isinstance(distribution, Categorical)
        values = policy.predict_values(tensor)[:, 0]
    return _Decision(distribution.probs.double().numpy(), values.double().numpy())


class _PlayRecord:
    """What one play left behind."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.observations: list[NDArray[Any]] = []
        self.actions: list[int] = []
        self.log_probs: list[float] = []
        self.values: list[float] = []
        self.told: list[Told] = []
        self.reward = 0.0


class _Slot:
    """One copy of the environment that plays episode after episode."""

    def __init__(self, env: EnvSpec, where: str) -> None:
        self.env = env.make()
        self.actions = int(self.env.action_space.n)  # type: ignore[attr-defined]
        self.reader = InfoReader(self.actions, where)
        self.ended = True

    def begin(self, play: Play | None) -> bool:
        """Begin a play; return False, and stay ended, if there is none left."""
        if play is None:
            return False
        self.record = _PlayRecord(play)
        self.uniform = np.random.default_rng([play.episode, play.repeat])
        observation, _ = self.env.reset(seed=play.episode)
        self.observation = np.asarray(observation)
        self.ended = False
        return True

    def act(self, probabilities: NDArray[np.float64], value: float, deterministic: bool) -> None:
        """Take one action and read what the environment tells."""
        if deterministic:
            action = int(np.argmax(probabilities))
        else:
            cumulative = np.cumsum(probabilities)
            draw = self.uniform.random() * cumulative[-1]
            action = min(int(np.searchsorted(cumulative, draw, side="right")), self.actions - 1)
        record = self.record
        if record.play.repeat == 0:
            record.observations.append(self.observation.copy())
            record.actions.append(action)
            record.log_probs.append(float(np.log(max(probabilities[action], np.finfo(float).tiny))))
            record.values.append(float(value))
        observation, reward, terminated, truncated, info = self.env.step(np.int64(action))
        self.ended = terminated or truncated
        self.observation = np.asarray(observation)
        record.reward += float(reward)
        record.told.append(self.reader.read(info, float(reward), self.ended))
        if len(record.told) >= _MOST_STEPS and not self.ended:
            raise EnvironmentError_(
                f"{self.reader.where}: episode {record.play.episode} did not end within {_MOST_STEPS} steps; expected "
                "a step limit, for instance gymnasium.wrappers.TimeLimit"
            )


def _episodes_table(records: Sequence[_PlayRecord], seed: int, part: str) -> pa.Table:
    rows = [
        {
            "seed": seed,
            "part": part,
            "episode": record.play.episode,
            "repeat": record.play.repeat,
            "outcome": record.told[-1].outcome,
            "length": len(record.told),
            "reward": record.reward,
            "intended_reward": _sum([told.intended_reward for told in record.told]),
            "untampered_reward": _sum([told.untampered_reward for told in record.told]),
            "context": record.told[-1].context,
        }
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=schema.EPISODES)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _steps_table(records: Sequence[_PlayRecord], seed: int, part: str, slot: _Slot) -> pa.Table:
    kept = [record for record in records if record.play.repeat == 0]
    lengths = [len(record.actions) for record in kept]
    observations = np.stack([o for record in kept for o in record.observations])
    table = pa.table(
        {
            "seed": pa.array(np.full(sum(lengths), seed, np.int32)),
            "part": pa.array([part] * sum(lengths)),
            "episode": pa.array(np.repeat([r.play.episode for r in kept], lengths).astype(np.int32)),
            "t": pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])),
            "observation": schema.encode_arrays(observations),
            "action": pa.array([a for r in kept for a in r.actions], pa.int64()),
            "action_labels": pa.array([t.action_labels for r in kept for t in r.told], pa.list_(pa.int8())),
            "log_prob": pa.array([x for r in kept for x in r.log_probs], pa.float64()),
            "value": pa.array([x for r in kept for x in r.values], pa.float64()),
        }
    )
    form = schema.ArrayFormat(tuple(observations.shape[1:]), str(observations.dtype))
    return schema.with_metadata(table, {**schema.array_metadata("observation", form), "actions": str(slot.actions)})
