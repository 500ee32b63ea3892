r"""Playing test and training episodes with a fixed policy, on common random numbers.

Episode `e` begins with `reset(seed=e)`, the same state for every agent. Action `t` of play (e, repeat)
is the inverse CDF of the policy at the `t`-th number of a generator seeded by (e, repeat), so that two
agents that agree on the probabilities take the same actions. Every play is assigned before any begins:
short episodes are not favoured. A recurrent policy begins every play with empty states; a masked one draws from its
masked probabilities, as sb3-contrib has them. Policies are asked for whole blocks of states, the last one repeated:
measured on 311 networks, what a state gets then does not depend on the others of the block, bit for bit (in a block
that is not whole it can, in the last bit), so that episodes may be added later to the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from ...datasets import schema
from ...datasets.arrays import Array, array_format_of, array_metadata, encode_actions, encode_arrays
from ...datasets.errors import EnvironmentError_
from ...datasets.words import counted
from ..environments.actions import Choice, Choices, action_mask, policy_choices, random_choices, takes_masks
from ..environments.contract import InfoReader, Told
from ..environments.spaces import ObservationForm, Space, as_tensors, choices, env_action
from ..environments.spec import Env, EnvSpec
from ..worlds.environment import bare_worlds, step_copies
from .memory import is_recurrent, rnn_states, stacked_states, zero_states

_SLOTS = 64
_BLOCK = 16  # rows that a matrix product takes together
MOST_STEPS = 100_000
_MOST_PLAYS = 10_000_000  # of an agent in one set


class EvaluationSpec(BaseModel):
    """The `evaluation` block of a task file.

    Attributes:
        episodes: test episodes, `reset(seed=0..episodes-1)`.
        repeats: plays of each episode, each with its own action draws.
        deterministic: take the most probable action instead of drawing.
    """

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    episodes: int = Field(default=128, ge=1, le=1_000_000)
    repeats: int = Field(default=16, ge=1, le=10_000)
    deterministic: bool = False

    @property
    def most_plays(self) -> int:
        """Episodes that one agent plays in a set, each repeat counted: of test and of training."""
        return 2 * self.episodes * self.repeats

    @model_validator(mode="after")
    def _so_many_plays(self) -> EvaluationSpec:
        if self.episodes * self.repeats > _MOST_PLAYS:
            raise ValueError(
                f"{counted(self.episodes, 'episode')} of {counted(self.repeats, 'repeat')} were given, expected at "
                f"most {_MOST_PLAYS:,} plays an agent"
            )
        return self


class Play(NamedTuple):
    """One episode to be played once."""

    episode: int
    repeat: int


class _Decision(NamedTuple):
    """What a policy says of a batch of observations: its choices, values [B], and LSTM states to go on with."""

    choices: Choices
    values: NDArray[np.float64]
    states: Tensor | None = None


def evaluate_policy(
    policy: ActorCriticPolicy | None,
    env: EnvSpec,
    spec: EvaluationSpec,
    seed: int,
    part: str,
    masked: bool = False,
    first: int = 0,
) -> tuple[pa.Table, pa.Table]:
    """Play every episode `repeats` times, the random policy too: its rate is the baseline of competence.

    Args:
        policy: the policy; None plays uniformly at random.
        env: the environment of the set.
        spec: how many episodes and repeats, drawn or greedy actions.
        seed: number of the agent in the tables (-1: random policy).
        part: `test` or `train`.
        masked: whether a random policy draws only actions that the environment allows; MaskablePPO's always do.
        first: the episode to begin with: those before were played earlier.

    Returns:
        The episodes table, and the steps table of repeat 0.

    Raises:
        EnvironmentError_: the environment breaks the contract, or tells no masks.
    """
    masked |= policy is not None and takes_masks(policy)
    greedy = spec.deterministic and policy is not None  # a random policy has no most probable action
    plays = [Play(e, r) for e in range(first, spec.episodes) for r in range(spec.repeats)]
    start = zero_states(policy) if policy is not None and is_recurrent(policy) else None
    slots = [_Slot(env, f"{part} environment `{env.id}`", start) for _ in range(min(_SLOTS, len(plays)))]
    form, space = ObservationForm(slots[0].env.observation_space), slots[0].space
    waiting = iter(plays)
    records: list[_PlayRecord] = []
    active = [slot for slot in slots if slot.begin(next(waiting, None))]
    try:
        while active:
            rows = [*range(len(active)), *[-1] * (-len(active) % _BLOCK)]
            observed = form.batch([active[row].observation for row in rows])
            masks = np.stack([slot.mask() for slot in active])[rows] if masked else None
            states = None if start is None else torch.stack([active[row].state for row in rows])
            decision = _decide(policy, observed, space, masks, states)
            choices_ = [decision.choices.choose(index, slot.uniform, greedy) for index, slot in enumerate(active)]
            steps = _step([slot.env for slot in active], [env_action(space, choice.action) for choice in choices_])
            for index, (slot, choice, step) in enumerate(zip(active, choices_, steps, strict=True)):
                if decision.states is not None:
                    slot.state = decision.states[index]
                said = decision.choices.probabilities(index)
                allowed = None if masks is None else masks[index]
                slot.keep(observed[index], choice, said, decision.values[index], allowed, step)
            for slot in [slot for slot in active if slot.ended]:
                records.append(slot.record)
                slot.begin(next(waiting, None))
            active = [slot for slot in active if not slot.ended]
    finally:
        for slot in slots:
            slot.env.close()
    records.sort(key=lambda record: record.play)
    return _episodes_table(records, seed, part), _steps_table(records, seed, part, slots[0])


def _step(envs: Sequence[Env], actions: Sequence[Any]) -> Sequence[Any]:
    """Step copies of one environment, each with its action; those of a world all at once."""
    worlds = bare_worlds(envs)
    if worlds is not None:
        return step_copies(worlds, actions)
    return [env.step(action) for env, action in zip(envs, actions, strict=True)]


def _decide(
    policy: ActorCriticPolicy | None,
    observations: Array,
    space: Space,
    masks: NDArray[np.bool_] | None,
    states: Tensor | None,
) -> _Decision:
    if policy is None:
        batch = len(observations)
        return _Decision(random_choices(space, batch, masks), np.zeros(batch))
    asked: Any = policy
    with torch.no_grad():
        tensors = as_tensors(observations)
        if states is not None:
            before, goes_on = rnn_states(states), torch.zeros(len(states))
            said, _ = asked.get_distribution(tensors, before.pi, goes_on)
            _, values, _, after = asked.forward(tensors, before, goes_on, deterministic=True)
            return _Decision(policy_choices(policy, said), values[:, 0].double().numpy(), stacked_states(after))
        said = asked.get_distribution(tensors) if masks is None else asked.get_distribution(tensors, masks)
        values = policy.predict_values(tensors)[:, 0]
        return _Decision(policy_choices(policy, said), values.double().numpy())


class _PlayRecord:
    """What one play left behind."""

    def __init__(self, play: Play) -> None:
        self.play = play
        self.observations: list[Any] = []
        self.actions: list[Any] = []
        self.log_probs: list[float] = []
        self.probabilities: list[list[float] | None] = []
        self.rewards: list[float] = []
        self.values: list[float] = []
        self.masks: list[NDArray[np.bool_]] = []
        self.told: list[Told] = []
        self.reward = 0.0


class _Slot:
    """One copy of the environment that plays episode after episode; `start`: LSTM states that each begins with."""

    def __init__(self, env: EnvSpec, where: str, start: Tensor | None) -> None:
        self.env = env.make()
        self.space = self.env.action_space
        self.reader = InfoReader(choices(self.space), where)
        self.ended = True
        self._start = start

    def begin(self, play: Play | None) -> bool:
        """Begin a play; return False, and stay ended, if there is none left."""
        if play is None:
            return False
        self.record = _PlayRecord(play)
        self.uniform = np.random.default_rng([play.episode, play.repeat])
        self.observation, _ = self.env.reset(seed=play.episode)
        self.ended = False
        if self._start is not None:
            self.state = self._start
        return True

    def mask(self) -> NDArray[np.bool_]:
        """Return which actions are allowed now."""
        return action_mask(self.env, self.reader.where)

    def keep(
        self,
        observed: Any,
        choice: Choice,
        said: list[float] | None,
        value: float,
        mask: NDArray[np.bool_] | None,
        step: Any,
    ) -> None:
        """Keep a step: the action with what was said of all of them, and what the environment returned."""
        record = self.record
        if record.play.repeat == 0:
            record.observations.append(observed)
            record.actions.append(choice.action)
            record.log_probs.append(choice.log_prob)
            record.probabilities.append(said)
            record.values.append(float(value))
            if mask is not None:
                record.masks.append(mask)
        self.observation, reward, terminated, truncated, info = step
        self.ended = terminated or truncated
        record.reward += float(reward)
        if record.play.repeat == 0:
            record.rewards.append(float(reward))
        record.told.append(self.reader.read(info, float(reward), self.ended))
        if len(record.told) >= MOST_STEPS and not self.ended:
            raise EnvironmentError_(
                f"{self.reader.where}: episode {record.play.episode} did not end within {MOST_STEPS} steps; expected "
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
            "extensions": _sums([told.extensions for told in record.told]),
            "context": record.told[-1].context,
        }
        for record in records
    ]
    return pa.Table.from_pylist(rows, schema=schema.EPISODES)


def _sums(values: Sequence[dict[str, float] | None]) -> list[tuple[str, float]] | None:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    return [(name, sum(value.get(name, 0.0) for value in known)) for name in sorted(known[0])]


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _steps_table(records: Sequence[_PlayRecord], seed: int, part: str, slot: _Slot) -> pa.Table:
    kept = [record for record in records if record.play.repeat == 0]
    lengths = [len(record.actions) for record in kept]
    observations = np.stack([o for record in kept for o in record.observations])
    column, metadata = encode_actions(np.stack([a for record in kept for a in record.actions]))
    table = pa.table(
        {
            "seed": pa.array(np.full(sum(lengths), seed, np.int32)),
            "part": pa.array([part] * sum(lengths)),
            "episode": pa.array(np.repeat([r.play.episode for r in kept], lengths).astype(np.int32)),
            "t": pa.array(np.concatenate([np.arange(n, dtype=np.int32) for n in lengths])),
            "observation": encode_arrays(observations),
            "action": column,
            "action_labels": pa.array([t.action_labels for r in kept for t in r.told], pa.list_(pa.int8())),
            "log_prob": pa.array([x for r in kept for x in r.log_probs], pa.float64()),
            "value": pa.array([x for r in kept for x in r.values], pa.float64()),
            "reward": pa.array([x for r in kept for x in r.rewards], pa.float64()),
            "probabilities": pa.array([x for r in kept for x in r.probabilities], pa.list_(pa.float64())),
        }
    )
    metadata |= array_metadata("observation", array_format_of(observations))
    masks = [mask for record in kept for mask in record.masks]
    if masks:
        table = table.append_column("action_mask", encode_arrays(np.stack(masks)))
        metadata |= array_metadata("action_mask", array_format_of(np.stack(masks)))
    return schema.with_metadata(table, {**metadata, "actions": str(choices(slot.space) or 0)})


def play_references(spec: EnvSpec, episodes: int, part: str, first: int = 0) -> pa.Table:
    """Play episodes `reset(seed=first..)` with every reference solver; no rows where an environment offers none.

    Reference solvers are scripted policies for what an agent could have wanted: an environment offers them by
    `reference_goals` (names, the intended goal first) and `solve(goal)`, the action of a solver with that goal in the
    present state. They say what return and which outcomes are possible (Framing 1).

    Args:
        spec: the environment.
        episodes: how many there are in all.
        part: `test` or `train`.
        first: those before were played earlier.
    """
    env, rows = spec.make(), []
    try:
        solver: Any = env.unwrapped
        for goal in getattr(solver, "reference_goals", ()):
            for episode in range(first, episodes):
                env.reset(seed=episode)
                total, length, ended = 0.0, 0, False
                info: dict[str, Any] = {}
                while not ended:
                    _, reward, terminated, truncated, info = env.step(solver.solve(goal))
                    total, length, ended = total + float(reward), length + 1, terminated or truncated
                rows.append((goal, part, episode, str(info["outcome"]), length, total))
    finally:
        env.close()
    return pa.Table.from_pylist(
        [dict(zip(schema.REFERENCES.names, row, strict=True)) for row in rows], schema=schema.REFERENCES
    )
