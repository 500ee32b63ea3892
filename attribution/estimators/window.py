"""One window of transitions, decoded: what every estimator works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ...datasets.arrays import Array, array_format, decode_actions, decode_arrays, pack, whole_numbers
from ...datasets.errors import InputError, NonFiniteError, RunFolderError
from ...datasets.files.store import read_table, read_table_schema
from ...datasets.groups import BY_CONTEXT, Grouping
from ...datasets.rewards import corrections, editable, reward_events
from ...datasets.schema import metadata_of
from ...training.agents.advantages import generalised_advantages
from ...training.recording.window import as_rows
from ...training.retraining.replay import ReplayedWindow
from ..actors.inputs import COLUMNS as INPUT_COLUMNS
from ..actors.inputs import PolicyInputs, inputs_of_window
from ..adjoints.gae import GaeAdvantages
from ..adjoints.signal import Signal
from ..gradients.rows import WindowRows
from ..shapes import require_rows


class GroupedCorrections(NamedTuple):
    """Corrections of the wrong rewards of a window.

    Attributes:
        groups: [G] that have one.
        rows: [M] that are wrong.
        change: dr = r* - r of each transition in the column of its group, [N, G].
    """

    groups: list[str]
    rows: NDArray[np.int64]
    change: NDArray[np.float64]


class Following(NamedTuple):
    """What followed the transitions of a window, where no next row of it says so.

    Attributes:
        terminated: bool [N], nothing followed: the episode ended for good.
        rows: int64 [L], all others whose episode or window ended.
        observations: what was observed after them, [L, ...].
    """

    terminated: NDArray[np.bool_]
    rows: NDArray[np.int64]
    observations: Array


@dataclass(frozen=True)
class Window:
    """The transitions of one window, decoded. Arrays are [N], row = env * n_steps + step.

    `from_arrays` makes one of plain arrays, `read_window` of a recorded file.

    Attributes:
        name: names the window in messages.
        seed, number: which training, which window of it.
        rows: its distinct (observation, action) rows.
        signal: what the learner saw of each, and how it depends on the rewards.
        reward, intended: as paid and as intended (None: not known).
        group: what each transition is corrected with.
        action: the action taken, [N] or [N, K].
        editable: what an arbitrary edit of its group would change; None: the reward events as paid.
        vf_coef: weight of the value loss.
        updates: the real updates that used the window, for estimators that need them.
        context: what the environment reported of each transition's context, [N] texts or None; None: not read.
        following: what was observed after the last step and after time limits; None: not known.

    Raises:
        InputError: arrays of another length than N.
    """

    name: str
    seed: int
    number: int
    rows: WindowRows
    signal: Signal
    reward: NDArray[np.float64]
    intended: NDArray[np.float64] | None
    group: NDArray[np.str_]
    action: Array
    editable: NDArray[np.bool_] | None = None
    vf_coef: float = 0.5
    updates: ReplayedWindow | None = None
    context: NDArray[np.object_] | None = None
    following: Following | None = None

    def __post_init__(self) -> None:
        require_rows(
            "Window", len(self.reward), rows=self.rows.row, signal=self.signal.raw, intended=self.intended,
            group=self.group, action=self.action, editable=self.editable, context=self.context,
        )  # fmt: skip

    @staticmethod
    def from_arrays(
        observations: Array | Mapping[str, Array],
        actions: Array,
        rewards: NDArray[Any],
        values: NDArray[Any] | None,
        dones: NDArray[Any],
        *,
        intended: NDArray[Any] | None = None,
        last_values: NDArray[Any] | float = 0.0,
        gamma: float = 0.99,
        gae_lambda: float = 0.95,
        advantages: NDArray[Any] | None = None,
        normalize: bool = True,
        minibatches: NDArray[np.int32] | None = None,
        vf_coef: float = 0.5,
        group: NDArray[Any] | None = None,
        mask: NDArray[Any] | None = None,
        name: str = "window",
    ) -> Window:
        """Return a window of plain arrays, as a training loop has them: [n_steps, n_envs, ...], or [n_steps, ...].

        Rows of the result, and of influence on it, are environment by environment: row = env * n_steps + step.

        Args:
            observations, actions: as the policy got and drew them; of a dictionary of observations an array each.
            rewards: as they were learned from.
            values: V(s) of each observation when it was collected; None with `advantages`.
            dones: whether the episode ended with this step.
            intended: the rewards as intended; None: not known.
            last_values: V(s) of the observation after the last step, [n_envs].
            gamma, gae_lambda: of generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438).
            advantages: as the loop computed them before normalisation, for instance with V of the state in which a
                time limit cut an episode; None: estimated from `values`, 0 after the end of an episode.
            normalize: whether the loop centres and scales advantages.
            minibatches: int [n_steps, n_envs, E], the minibatch of each step in each epoch, -1 if unused; None: not
                known, and normalisation is that of the whole window.
            vf_coef: weight of the value loss.
            group: what is corrected together; None: everything.
            mask: bool [n_steps, n_envs, A], allowed actions of a policy that is masked; None: all are.
            name: for messages.

        Raises:
            InputError: shapes that do not fit each other; names both.
            NonFiniteError: a reward, an intended one or an advantage is not finite.
        """
        paid = np.asarray(rewards, dtype=np.float64)
        shape, envs = paid.shape, 1 if paid.ndim == 1 else paid.shape[-1] if paid.ndim else 0
        if paid.ndim not in (1, 2) or not paid.size:
            raise InputError(f"{name}: rewards of shape {shape}, expected [n_steps, n_envs] or [n_steps], and not none")

        def by_env(what: str, values_of: Any, kind: Any = None) -> Array:
            """Return values [n_steps, n_envs, ...] as rows [N, ...]."""
            array = np.asarray(values_of, dtype=kind)
            if array.shape[: len(shape)] != shape:
                raise InputError(f"{name}: {what} of shape {array.shape}, expected {shape} first, that of rewards")
            part = array if len(shape) == 2 else array[:, None]
            rows = np.array(part.swapaxes(0, 1), order="C")  # a copy: a loop may go on with its arrays
            return rows.reshape(len(rows) * part.shape[0], *part.shape[2:])

        def numbers(what: str, values_of: Any) -> NDArray[np.float64]:
            """Return one finite number a step, [N]."""
            array = by_env(what, values_of, np.float64)
            if array.ndim != 1:
                raise InputError(f"{name}: {what} of shape {np.shape(values_of)}, expected {shape}, that of rewards")
            if len(bad := np.flatnonzero(~np.isfinite(array))):
                env, step = divmod(int(bad[0]), shape[0])
                raise NonFiniteError(f"{name}, step {step} of environment {env}: {what} is {array[bad[0]]}")
            return array

        ended = by_env("dones", dones, np.bool_)
        reward = numbers("rewards", paid)
        if advantages is not None:
            raw = numbers("advantages", advantages)
        elif values is not None:
            last = np.asarray(last_values, dtype=np.float64)
            if last.shape not in ((), (envs,)) or not np.isfinite(last).all():
                raise InputError(f"{name}: last_values {last.tolist()}, expected {envs} finite, one an environment")
            after = np.broadcast_to(last, (envs,))
            paid_then, value = (rows.reshape(envs, -1).T for rows in (reward, numbers("values", values)))
            raw = as_rows(generalised_advantages(paid_then, value, ended.reshape(envs, -1).T, after, gamma, gae_lambda))
        else:
            raise InputError(f"{name}: neither values nor advantages, expected one of them")
        if isinstance(observations, Mapping):
            observed = pack({key: by_env(f"observations[{key!r}]", part) for key, part in observations.items()})
        else:
            observed = by_env("observations", observations)
        taken = whole_numbers(by_env("actions", actions))
        allowed = PolicyInputs(None if mask is None else by_env("mask", mask, np.bool_))
        batches = None if minibatches is None else by_env("minibatches", minibatches, np.int32)
        if batches is not None and batches.ndim != 2:
            raise InputError(f"{name}: minibatches of shape {np.asarray(minibatches).shape}, expected {(*shape, 'E')}")
        groups = np.full(reward.shape, "all") if group is None else by_env("group", group, np.str_)
        return Window(
            name=name, seed=0, number=0, rows=WindowRows.of(observed, taken, allowed),
            signal=GaeAdvantages(
                raw, ended, envs, gamma, gae_lambda, normalize and len(raw) > 1, np.ones(len(raw)), batches
            ),
            reward=reward, intended=None if intended is None else numbers("intended", intended),
            group=groups, action=taken, vf_coef=vf_coef,
        )  # fmt: skip

    @property
    def steps(self) -> int:
        """Steps of each environment in the window."""
        return len(self.reward) // self.signal.n_envs

    @property
    def correction(self) -> NDArray[np.float64] | None:
        """dr = r* - r of each transition; exactly 0 where they agree; None without intended rewards."""
        return None if self.intended is None else corrections(self.reward, self.intended)

    def corrections_by_group(self) -> GroupedCorrections:
        """Return the corrections of each group that has a wrong reward in the window."""
        change = np.zeros(len(self.reward)) if self.correction is None else self.correction
        rows = np.flatnonzero(change)
        groups, member = np.unique(self.group[rows], return_inverse=True)
        by_group = np.zeros((len(change), len(groups)))
        by_group[rows, member] = change[rows]
        return GroupedCorrections(groups.tolist(), rows, by_group)

    @property
    def is_event(self) -> NDArray[np.bool_]:
        """Reward events: r != 0 or r* != 0."""
        return reward_events(self.reward, self.reward if self.intended is None else self.intended)


_COLUMNS = (
    "seed", "window", "step", "t", "observation", "action", "reward", "reward_scale", "intended_reward",
    "advantage", "terminated", "truncated", "minibatches", "context",
)  # fmt: skip
_UNCLIPPED, _NEXT = "unclipped_scale", "next_observation"


def learned_scale(
    reward: NDArray[np.float64],
    intended: NDArray[np.float64] | None,
    unclipped: NDArray[np.float64],
    clip: float,
) -> NDArray[np.float64]:
    r"""Return what a unit of each reward is worth to a learner that gets :math:`clip(s r, -c, c)`, [N].

    Where neither the reward nor its correction is clipped it is s. A correction across a clip is no small change: it
    is worth :math:`(clip(s r^*) - clip(s r)) / (r^* - r)`, so that its effect is that of what the learner gets instead.
    A clipped reward that is not to be corrected counts as if it were taken away (r* = 0).

    Args:
        reward, intended: r and r* [N] (None: not known).
        unclipped: s [N].
        clip: c.
    """
    change = np.zeros_like(reward) if intended is None else corrections(reward, intended)
    clipped = np.abs(unclipped * reward) >= clip
    change = np.where(clipped & (change == 0.0), -reward, change)
    learned, instead = (np.clip(unclipped * paid, -clip, clip) for paid in (reward, reward + change))
    crosses = (clipped | (np.abs(unclipped * (reward + change)) > clip)) & (change != 0.0)
    return np.where(crosses, (instead - learned) / np.where(crosses, change, 1.0), unclipped)


def read_window(path: Path, grouping: Grouping = BY_CONTEXT) -> Window:
    """Read one window of transitions.

    Args:
        path: its file.
        grouping: what is corrected together.

    Raises:
        RunFolderError: the file is missing, damaged or empty.
        NonFiniteError: an advantage or a reward is not finite.
    """
    known = read_table_schema(path).names
    optional = [name for name in (*INPUT_COLUMNS, _UNCLIPPED, _NEXT) if name in known]
    needed = dict.fromkeys([*_COLUMNS, *optional, *grouping.columns(known)])
    table = read_table(path, list(needed))
    metadata = metadata_of(table.schema)
    if table.num_rows == 0:
        raise RunFolderError(f"{path} holds no transitions: train again")
    if "gae_lambda" not in metadata:
        raise RunFolderError(
            f"{path} was recorded off policy ({metadata.get('algorithm')}) and has no advantages; expected a run of "
            "an on-policy algorithm. Its influence: aitia.attribution.adjoints.td.td_influence (docs/off-policy.md)"
        )

    def column(name: str) -> NDArray[np.float64]:
        return np.asarray(table[name].to_numpy(), dtype=np.float64)

    for name in ("advantage", "reward"):
        bad = np.flatnonzero(~np.isfinite(column(name)))
        if len(bad):
            raise NonFiniteError(f"{path}, row {bad[0]}: {name} is {column(name)[bad[0]]}; the training diverged")
    actions = decode_actions(table)
    observations = decode_arrays(table["observation"], array_format(table.schema, "observation"))
    ended = table["terminated"].to_numpy() | table["truncated"].to_numpy()
    intended = None if table["intended_reward"].null_count > 0 else column("intended_reward")
    scale = column("reward_scale")
    if _UNCLIPPED in table.column_names:  # runs of version 0.1 have only that of rewards that were not clipped
        scale = learned_scale(column("reward"), intended, column(_UNCLIPPED), float(metadata["clip_reward"]))
    return Window(
        name=f"{path.parent.name}/{path.stem}",
        seed=int(table["seed"][0].as_py()),
        number=int(table["window"][0].as_py()),
        rows=WindowRows.of(observations, actions, inputs_of_window(table)),
        signal=GaeAdvantages(
            raw=column("advantage"),
            ended=np.asarray(ended, dtype=np.bool_),
            n_envs=int(metadata["n_envs"]),
            gamma=float(metadata["gamma"]),
            gae_lambda=float(metadata["gae_lambda"]),
            normalize=metadata["normalize_advantage"] == "true",
            reward_scale=scale,
            minibatches=np.array(table["minibatches"].combine_chunks().flatten().to_numpy()).reshape(len(actions), -1),
        ),
        reward=column("reward"),
        intended=intended,
        group=grouping.of_table(table),
        action=actions,
        editable=editable(column("reward"), table["terminated"].to_numpy(), grouping),
        vf_coef=float(metadata.get("vf_coef", 0.5)),
        context=np.array(table["context"].to_pylist(), dtype=np.object_),
        following=_following(table, ended, int(metadata["n_envs"])),
    )


def _following(table: pa.Table, ended: NDArray[np.bool_], n_envs: int) -> Following | None:
    """Return what followed where no next row says so; None where it was not recorded."""
    if _NEXT not in table.column_names:
        return None
    terminated = table["terminated"].to_numpy()
    last = np.arange(len(ended)) % (len(ended) // n_envs) == len(ended) // n_envs - 1
    rows = np.flatnonzero((ended | last) & ~terminated)
    observed = table[_NEXT].take(pa.array(rows))
    if observed.null_count:
        return None
    form = array_format(table.schema, "observation")
    return Following(terminated, rows, decode_arrays(observed.cast(pa.binary(form.width)), form))
