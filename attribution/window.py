"""Attribution of one window: scores, reward influence, sums for groups, the top transitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy

from ..datasets.errors import NonFiniteError, RunFolderError
from ..datasets.rewards import corrections, group_names, reward_events
from ..datasets.schema import array_format, decode_arrays, metadata_of
from ..datasets.store import read_table, read_table_schema
from .adjoint import Advantages, RewardInfluence, reward_influence
from .targets import TargetSteps
from .trak import DEFAULT_LAMBDA, LAMBDAS, WindowRows, window_gradients

TOP_K = 16
_CHUNK = 512  # failures whose [N, F] arrays are held at once


@dataclass(frozen=True)
class Window:
    """The transitions of one window, decoded. Arrays are [N], row = env * n_steps + step."""

    name: str
    seed: int
    number: int
    rows: WindowRows
    advantages: Advantages
    reward: NDArray[np.float64]
    intended: NDArray[np.float64] | None
    group: NDArray[np.str_]
    action: NDArray[np.int64]

    @property
    def correction(self) -> NDArray[np.float64] | None:
        """dr = r* - r of each transition; exactly 0 where they agree; None without intended rewards."""
        return None if self.intended is None else corrections(self.reward, self.intended)

    @property
    def is_event(self) -> NDArray[np.bool_]:
        """Reward events: r != 0 or r* != 0."""
        return reward_events(self.reward, self.reward if self.intended is None else self.intended)


_COLUMNS = (
    "seed", "window", "observation", "action", "reward", "reward_scale", "intended_reward", "context",
    "advantage", "terminated", "truncated",
)  # fmt: skip


def read_window(path: Path) -> Window:
    """Read one window of transitions.

    Raises:
        RunFolderError: the file is missing, damaged or empty.
        NonFiniteError: an advantage or a reward is not finite.
    """
    metadata = metadata_of(read_table_schema(path))
    table = read_table(path, _COLUMNS)
    if table.num_rows == 0:
        raise RunFolderError(f"{path} holds no transitions: train again")

    def column(name: str) -> NDArray[np.float64]:
        return np.asarray(table[name].to_numpy(), dtype=np.float64)

    for name in ("advantage", "reward"):
        bad = np.flatnonzero(~np.isfinite(column(name)))
        if len(bad):
            raise NonFiniteError(f"{path}, row {bad[0]}: {name} is {column(name)[bad[0]]}; the training diverged")
    actions = table["action"].to_numpy().astype(np.int64)
    observations = decode_arrays(table["observation"], array_format(read_table_schema(path), "observation"))
    ended = table["terminated"].to_numpy() | table["truncated"].to_numpy()
    unknown = table["intended_reward"].null_count > 0
    return Window(
        name=f"{path.parent.name}/{path.stem}",
        seed=int(table["seed"][0].as_py()),
        number=int(table["window"][0].as_py()),
        rows=WindowRows.of(observations, actions),
        advantages=Advantages(
            raw=column("advantage"),
            ended=np.asarray(ended, dtype=np.bool_),
            n_envs=int(metadata["n_envs"]),
            gamma=float(metadata["gamma"]),
            gae_lambda=float(metadata["gae_lambda"]),
            normalize=metadata["normalize_advantage"] == "true",
            reward_scale=column("reward_scale"),
        ),
        reward=column("reward"),
        intended=None if unknown else column("intended_reward"),
        group=group_names(table["context"]),
        action=actions,
    )


class GroupSums(NamedTuple):
    """Effects of correcting each group that has a wrong reward in the window.

    Attributes:
        groups: [G].
        effect, effect_raw: float64 [L, F, G], one plane a lambda: sum of dr * tau, and of dr * tau_raw.
    """

    groups: list[str]
    effect: NDArray[np.float64]
    effect_raw: NDArray[np.float64]


class WindowInfluence(NamedTuple):
    """What the attribution of one window leaves: group sums and the top transitions (a table)."""

    sums: GroupSums
    top: pa.Table


ScoreFunction = Callable[[float], NDArray[np.float64]]


def attribute_window(
    window: Window, policy: ActorCriticPolicy, targets: TargetSteps, estimator: str, top_k: int = TOP_K
) -> WindowInfluence:
    """Attribute F failures to the rewards of one window.

    Args:
        window: the window's transitions.
        policy: the policy with the parameters that collected it.
        targets: the failures' targets.
        estimator: a name of `ESTIMATORS`.
        top_k: transitions kept a failure: the k with the largest correction effect and the k with the
            largest influence |tau| among reward events.

    Raises:
        NonFiniteError: a gradient is not finite.
    """
    groups, sums = _empty_sums(window, targets.failures)
    tops: list[pa.Table] = []
    for start in range(0, targets.failures, _CHUNK):
        part = slice_targets(targets, start, min(start + _CHUNK, targets.failures))
        score = ESTIMATORS[estimator](window, policy, part)
        for plane, lam in enumerate(LAMBDAS):
            scores = score(lam)
            influence = reward_influence(scores, window.advantages)
            _add_sums(window, groups, influence, sums, plane, slice(start, start + part.failures))
            if lam == DEFAULT_LAMBDA:
                tops.append(_top_transitions(window, part, scores, influence, estimator, top_k))
    return WindowInfluence(GroupSums(groups, *sums), pa.concat_tables(tops))


def slice_targets(targets: TargetSteps, start: int, stop: int) -> TargetSteps:
    """Return the targets of failures start..stop-1."""
    rows = np.flatnonzero((targets.failure >= start) & (targets.failure < stop))
    return TargetSteps(
        targets.ids[start:stop], targets.kinds[start:stop], targets.failure[rows] - start,
        targets.observations[rows], targets.actions[rows], targets.labels[rows], targets.decisive[rows],
        targets.user,
    )  # fmt: skip


def _trak(window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> ScoreFunction:
    return window_gradients(policy, window.rows, targets, window.name).trak


def _tracin(window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> ScoreFunction:
    scores = window_gradients(policy, window.rows, targets, window.name).gradient_product()
    return lambda _: scores


ESTIMATORS: dict[str, Callable[[Window, ActorCriticPolicy, TargetSteps], ScoreFunction]] = {
    "trak": _trak,
    "tracin": _tracin,
}


def _empty_sums(window: Window, failures: int) -> tuple[list[str], tuple[NDArray[np.float64], NDArray[np.float64]]]:
    change = window.correction
    groups = [] if change is None else sorted(set(window.group[change != 0.0].tolist()))
    shape = (len(LAMBDAS), failures, len(groups))
    return groups, (np.zeros(shape), np.zeros(shape))


def _add_sums(
    window: Window,
    groups: list[str],
    influence: RewardInfluence,
    sums: tuple[NDArray[np.float64], NDArray[np.float64]],
    plane: int,
    failures: slice,
) -> None:
    change = window.correction
    if change is None or not groups:
        return
    rows = np.flatnonzero(change)
    member = np.searchsorted(groups, window.group[rows])
    indicator = np.zeros((len(groups), len(rows)))
    indicator[member, np.arange(len(rows))] = change[rows]
    for values, total in zip(influence, sums, strict=True):
        total[plane, failures] = (indicator @ values[rows]).T


def _top_transitions(
    window: Window, targets: TargetSteps, scores: NDArray[np.float64], influence: RewardInfluence,
    estimator: str, top_k: int,
) -> pa.Table:  # fmt: skip
    """Return the top transitions of each failure in this window, as rows of the top-k table."""
    change, event = window.correction, window.is_event
    steps = len(window.reward) // window.advantages.n_envs
    size = np.abs(influence.tau) * event[:, None]
    kept_rows, kept_failures = [], []
    for failure in range(targets.failures):
        chosen = _largest(size[:, failure], top_k)
        if change is not None:
            chosen = np.union1d(chosen, _largest(-change * influence.tau[:, failure], top_k))
        kept_rows.append(chosen)
        kept_failures.append(np.full(len(chosen), failure))
    row, failure_of = np.concatenate(kept_rows), np.concatenate(kept_failures)
    intended = np.full(len(row), np.nan) if window.intended is None else window.intended[row]
    return pa.table(
        {
            "failure": pa.array(np.array(targets.ids)[failure_of]),
            "seed": pa.array(np.full(len(row), window.seed, np.int32)),
            "window": pa.array(np.full(len(row), window.number, np.int32)),
            "step": pa.array((row % steps).astype(np.int32)),
            "env": pa.array((row // steps).astype(np.int32)),
            "tau": pa.array(influence.tau[row, failure_of]),
            "tau_raw": pa.array(influence.tau_raw[row, failure_of]),
            "s": pa.array(scores[row, failure_of]),
            "reward": pa.array(window.reward[row]),
            "intended_reward": pa.array(intended, from_pandas=True),
            "context": pa.array(window.group[row]),
            "action": pa.array(window.action[row]),
            "estimator": pa.array([estimator] * len(row)),
        }
    )


def _largest(values: NDArray[np.float64], k: int) -> NDArray[np.int64]:
    """Return the rows of the k largest positive values; ties by row number, so that nothing else decides."""
    positive = np.flatnonzero(values > 0.0)
    return positive[np.argsort(-values[positive], kind="stable")[:k]]


def keep_top(table: pa.Table, k: int) -> pa.Table:
    """Keep, of each failure, the k transitions with the largest |tau| among reward events, and the k whose
    correction is predicted to help most (-dr * tau); the streaming step of merging windows.

    Args:
        table: rows of the top-k table, in the order of seed, window and row (it breaks ties).
        k: how many.
    """
    failure = table["failure"].combine_chunks().dictionary_encode().indices.to_numpy()
    tau, reward = table["tau"].to_numpy(), table["reward"].to_numpy()
    intended = table["intended_reward"].to_numpy(zero_copy_only=False).astype(np.float64)
    event = reward_events(reward, intended)
    kept = np.zeros(table.num_rows, dtype=bool)
    for value in (np.abs(tau) * event, -corrections(reward, intended) * tau):
        order = np.lexsort((np.arange(len(value)), -value, failure))
        rank = np.arange(len(value)) - np.searchsorted(failure[order], failure[order])
        kept[order[(rank < k) & (value[order] > 0.0)]] = True
    return table.filter(pa.array(kept))
