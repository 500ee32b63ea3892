r"""Replay: train again on the recorded transitions, with edited rewards, in the recorded minibatch order.

The second estimand next to training again in the environment (`live.train_agent`): nothing new is collected,
values, log-probabilities and advantages are those of the replayed policy, and Stable-Baselines3's own `train` makes
the updates. With unedited rewards it gives the recorded parameters again, bit for bit (images: within 1e-5, for SB3
trains on transposed views of them, which take another convolution kernel).

Which minibatch used which row is recorded, the order within a minibatch is not: it is drawn again from the seed, as
SB3 draws it, and checked against the record; where it does not fit (a generator that something else used too), rows
are taken in their own order, which changes sums in the last digit.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor

from ...datasets.arrays import Array, array_format, decode_actions, decode_arrays, fields
from ...datasets.errors import InputError
from ...datasets.files.store import RunFolder, read_table, read_tensors
from ...datasets.schema import metadata_of
from ..agents.memory import is_recurrent
from ..agents.spec import AgentSpec, build_model
from ..edits.edit import RewardEdit
from ..environments.spaces import as_tensors
from ..environments.spec import EnvSpec
from ..recording.buffers import UNUSED_ROW, rebuilt
from ..recording.provenance import EarlierTraining
from .live import ONE_AT_A_TIME

Rows = NDArray[np.int64]


class Update(NamedTuple):
    """One minibatch of a window's updates.

    Attributes:
        parameters: that it is computed at, of the moment: the next update overwrites them.
        rows: the minibatch's.
    """

    parameters: dict[str, Tensor]
    rows: Rows


class Updates:
    """The updates of a window, made once more each time they are asked for: one set of parameters, not one each.

    Args:
        model: the agent, after the window; it is the same again when the last update was given.
        start: its policy and optimiser before the window.
        rows: of the minibatches, in order.
    """

    def __init__(self, model: OnPolicyAlgorithm, start: dict[str, Any], rows: Sequence[Rows]) -> None:
        self._model, self._start, self._rows = model, start, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Update]:
        policy, made = self._model.policy, 0
        policy.load_state_dict(self._start["policy"])
        policy.optimizer.load_state_dict(copy.deepcopy(self._start["optimizer"]))
        try:
            for rows in self._rows:
                yield Update(policy.state_dict(), rows)
                _make_updates(self._model, [[rows]])
                made += 1
        finally:  # also where a caller stops
            if made < len(self._rows):
                _make_updates(self._model, [[rows] for rows in self._rows[made:]])


@dataclass(frozen=True)
class ReplayedWindow:
    """One window of a replay, after its updates.

    Attributes:
        number: which window.
        updates: its minibatches in order, until the next window; empty unless asked for.
        clip_range: PPO's at this window; None: the algorithm does not clip.
        clip_range_vf: PPO's for the value function at this window; None: it does not clip.
    """

    number: int
    updates: Updates | tuple[()]
    clip_range: float | None
    clip_range_vf: float | None = None


def replay(
    agent: AgentSpec, env: EnvSpec, seed: int, folder: RunFolder, edit: RewardEdit | None = None
) -> ActorCriticPolicy:
    """Return the policy that comes out of a recorded training with edited rewards.

    Args:
        agent, env, seed: of the recorded training.
        folder: the run folder.
        edit: rewards to correct; None: as paid.

    Raises:
        InputError: the record holds no bootstrap states, was made under VecNormalize, or an edit needs intended
            rewards that it does not have.
    """
    replayed = Replay(agent, env, seed, folder, edit)
    for _ in replayed.windows():
        pass
    policy = replayed.model.policy
    policy.set_training_mode(False)
    return policy


class Replay:
    """A replay in progress: see `replay`.

    Attributes:
        model: the agent, trained up to the last window given.
    """

    def __init__(
        self, agent: AgentSpec, env: EnvSpec, seed: int, folder: RunFolder, edit: RewardEdit | None = None
    ) -> None:
        self._agent, self._seed, self._folder, self._edit = agent, seed, folder, edit
        with ONE_AT_A_TIME:
            self.model: OnPolicyAlgorithm = build_model(agent, env.make, seed)
        self.model.policy.load_state_dict(read_tensors(folder.checkpoint_path(seed, 0)))
        self.model._setup_learn(agent.total_timesteps)
        self._order = np.random.RandomState(seed)  # what SB3's minibatches were drawn from
        self.model.rollout_buffer = rebuilt(self.model.rollout_buffer, _Ordered)

    def windows(self, keep_updates: bool = False) -> Iterator[ReplayedWindow]:
        """Replay window after window; with `keep_updates` its updates can be made again."""
        for number in range(self._folder.window_count(self._seed)):
            table = read_table(self._folder.transitions_path(self._seed, number))
            updates = self._train(table, keep_updates)
            yield ReplayedWindow(number, updates, self._clip("clip_range"), self._clip("clip_range_vf"))
        self.model.env.close()  # type: ignore[union-attr]

    def _clip(self, name: str) -> float | None:
        """Return the value of one of PPO's clip ranges at this window."""
        schedule: Any = getattr(self.model, name, None)
        return None if schedule is None else float(schedule(self.model._current_progress_remaining))

    def _train(self, table: pa.Table, keep_updates: bool) -> Updates | tuple[()]:
        model, buffer = self.model, self.model.rollout_buffer
        assert isinstance(buffer, _Ordered) and isinstance(buffer, RolloutBuffer)
        record = _Record(table, self._edit)
        model.policy.set_training_mode(False)
        _fill(buffer, record, model)
        draw = _split if is_recurrent(model.policy) else np.random.RandomState.permutation
        minibatches = list(_minibatch_rows(record.minibatches, self._order, draw))
        made: list[Rows] = []
        start = {"policy": model.policy.state_dict(), "optimizer": model.policy.optimizer.state_dict()}
        start = copy.deepcopy(start) if keep_updates else start
        buffer.before, buffer.given_up = made.append, made.pop
        model.num_timesteps += len(record.reward)
        model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
        _make_updates(model, minibatches)
        buffer.before, buffer.given_up = (lambda rows: None), (lambda: None)
        return Updates(model, start, made) if keep_updates else ()


def _make_updates(model: OnPolicyAlgorithm, minibatches: list[list[Rows]]) -> None:
    """Let an agent learn from the rows of the minibatches of each epoch."""
    buffer = model.rollout_buffer
    assert isinstance(buffer, _Ordered)
    buffer.minibatches = list(minibatches)
    if hasattr(model, "n_epochs"):
        model.n_epochs = len(minibatches)  # of epochs after a stop by `target_kl` nothing is recorded
    with ONE_AT_A_TIME:
        if minibatches:
            model.train()


class _Record:
    """One recorded window, decoded; arrays are [steps, envs, ...]."""

    def __init__(self, table: pa.Table, edit: RewardEdit | None) -> None:
        metadata = metadata_of(table.schema)
        self._envs = int(metadata["n_envs"])
        if "next_observation" not in table.column_names:
            raise InputError("a replay needs the column `next_observation` of the transitions: train again")
        if earlier := EarlierTraining.of(metadata):
            raise InputError(f"a replay needs a training recorded from its first step: {earlier.what_follows()}")
        if np.any(table["reward_scale"].to_numpy() != 1.0):
            raise InputError("a replay of a training under VecNormalize is not supported: it pays rewards as given")
        self.reward = table["reward"].to_numpy() if edit is None else edit.rewards(table)
        form = array_format(table.schema, "observation")
        self.observations = self._by_step(decode_arrays(table["observation"], form))
        self.actions = self._by_step(decode_actions(table))
        self.rewards = self._by_step(self.reward)
        self.started = self._by_step(table["t"].to_numpy() == 0)
        self.ended = self._by_step(table["terminated"].to_numpy() | table["truncated"].to_numpy())
        self.truncated = self._by_step(table["truncated"].to_numpy())
        self.masks = None
        if "action_mask" in table.column_names:
            masks = decode_arrays(table["action_mask"], array_format(table.schema, "action_mask"))
            self.masks = self._by_step(masks)
        following = table["next_observation"].combine_chunks()
        self._known = self._by_step(~following.is_null().to_numpy(zero_copy_only=False))
        filled = following.fill_null(bytes(form.width))
        self._following = self._by_step(decode_arrays(filled.cast(pa.binary(form.width)), form))
        self.minibatches = np.array(table["minibatches"].combine_chunks().flatten().to_numpy()).reshape(
            len(self.reward), -1
        )
        if not self.minibatches.shape[1]:
            raise InputError("a replay needs to know which minibatch used which row, and none was recorded")

    def _by_step(self, values: Array) -> Array:
        return values.reshape(self._envs, -1, *values.shape[1:]).swapaxes(0, 1)

    def following(self, step: int, env: int | None = None) -> Array:
        """Return the observations after a step that no row of the window holds, [envs, ...] or [1, ...]."""
        rows = slice(None) if env is None else slice(env, env + 1)
        if not self._known[step, rows].all():
            raise InputError("the transitions lack a state after a time limit or the window's end: train again")
        found: Array = self._following[step, rows]
        return found


def _fill(buffer: RolloutBuffer, record: _Record, model: OnPolicyAlgorithm) -> None:
    """Fill the buffer as SB3's `collect_rollouts` does, in batches of the same shape, and compute advantages."""
    policy: Any = model.policy
    buffer.reset()
    with torch.no_grad():
        for step in range(len(record.rewards)):
            tensors = as_tensors(record.observations[step])
            actions = torch.as_tensor(record.actions[step])
            if isinstance(policy.action_space, spaces.MultiBinary):
                actions = actions.float()  # as torch's Bernoulli takes them
            further, kept = _further(model, record, step)
            values, log_probs, _ = policy.evaluate_actions(tensors, actions, *further)
            rewards = record.rewards[step].astype(np.float32)
            for env in np.flatnonzero(record.truncated[step]):
                memory = _memory(model, np.zeros(1), slice(env, env + 1))
                terminal = policy.predict_values(as_tensors(record.following(step, int(env))), *memory)[0]
                rewards[env] += buffer.gamma * terminal.numpy()[0]
            observations: Any = fields(record.observations[step]) or record.observations[step]
            action = _column(record.actions[step])
            buffer.add(observations, action, rewards, record.started[step], values, log_probs, **kept)
        last = len(record.rewards) - 1
        final = policy.predict_values(as_tensors(record.following(last)), *_memory(model, record.ended[last]))
    buffer.compute_returns_and_advantage(last_values=final, dones=record.ended[last])


def _further(model: Any, record: _Record, step: int) -> tuple[list[Any], dict[str, Any]]:
    """Return what a policy takes in addition to observations, and what the buffer keeps; LSTM states move on a step."""
    if record.masks is not None:
        return [record.masks[step]], {"action_masks": record.masks[step]}
    if not is_recurrent(model.policy):
        return [], {}
    states, started = model._last_lstm_states, torch.as_tensor(record.started[step]).float()
    tensors = as_tensors(record.observations[step])
    *_, model._last_lstm_states = model.policy.forward(tensors, states, started, deterministic=True)
    return [states, started], {"lstm_states": states}


def _memory(model: Any, started: Array, envs: slice = slice(None)) -> list[Any]:
    """Return what a recurrent value function takes in addition to observations: states, and where they are reset."""
    if not is_recurrent(model.policy):
        return []
    hidden, cell = (state[:, envs].contiguous() for state in model._last_lstm_states.vf)
    return [(hidden, cell), torch.as_tensor(started).float()]


def _column(actions: Array) -> Array:
    """Return actions as SB3 adds them: Discrete ones as a column."""
    return actions.reshape(-1, 1) if actions.ndim == 1 else actions


def _split(order: np.random.RandomState, rows: int) -> Rows:
    """Return the order of a recurrent buffer's rows: as they are, from a random one on and round to it again."""
    return np.roll(np.arange(rows), -order.randint(rows))


def _minibatch_rows(
    membership: NDArray[np.int32], order: np.random.RandomState, draw: Callable[[np.random.RandomState, int], Rows]
) -> Iterator[list[Rows]]:
    """Yield the rows of each minibatch of each epoch, in the order they were drawn in where it can be told.

    An epoch without a minibatch (`target_kl` stopped at its first) is drawn and left out.
    """
    for epoch in membership.T:
        count = int(epoch.max(initial=-1)) + 1
        sizes = np.bincount(epoch[epoch != UNUSED_ROW], minlength=count)
        drawn = draw(order, len(epoch))
        starts = np.concatenate([[0], np.cumsum(sizes)])
        parts = [drawn[starts[i] : starts[i + 1]] for i in range(count)]
        if not all((epoch[part] == i).all() for i, part in enumerate(parts)):
            parts = [_round(np.flatnonzero(epoch == i)) for i in range(count)]
        if parts:
            yield parts


def _round(rows: Rows) -> Rows:
    """Return ascending rows, those after a gap first: a minibatch of sequences may go on from the last row to row 0."""
    return np.roll(rows, -int(np.argmax(np.diff(rows, prepend=rows[:1]) > 1)))


class _Ordered:
    """Gives minibatches in a given order; a mix-in before a rollout buffer.

    Attributes:
        minibatches: rows of the minibatches of each epoch to come.
        before: called with the rows of each minibatch before it is given.
        given_up: called where the loop is left with the minibatch that it was given last (see `Membership`).
    """

    minibatches: list[list[Rows]]
    before: Callable[[Rows], None]
    given_up: Callable[[], object] = staticmethod(lambda: None)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Yield the minibatches of the next epoch."""
        del batch_size
        whole: Any = self
        if not whole.generator_ready:
            next(super().get(1))  # type: ignore[misc]  # SB3 flattens its arrays when it begins to give minibatches
        sequences = [self._new_environments()] if hasattr(whole, "hidden_state_shape") else []
        given = self.minibatches.pop(0) if self.minibatches else []
        for rows in given:
            self.before(rows)
            try:
                yield whole._get_samples(rows, *sequences)
            except GeneratorExit:
                self.given_up()
                raise

    def _new_environments(self) -> NDArray[np.float64]:
        """Return where the rows of another environment begin, [N, 1]: sequences of a recurrent buffer end there."""
        whole: Any = self
        begins: NDArray[np.bool_] = np.arange(whole.buffer_size * whole.n_envs) % whole.buffer_size == 0
        return begins.astype(np.float64)[:, None]
