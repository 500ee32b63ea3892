r"""Targets: the misbehaviour functional f of a failure, as a differentiable function of what the policy says.

`labels`: the mean over decisive steps of log sum pi(misbehaving actions) - log sum pi(desired actions).
A step is decisive if its labels hold both signs and the action taken misbehaves. `log-odds`: the mean of
log p/(1-p) of the actions taken (of Box actions: of their log density). A failure without a decisive step has the
log-odds target in any case; `auto` also accepts an environment that gives no labels at all. `episode`: the sum of
log pi(a|s) over the whole failing episode, its log-likelihood but for what the environment adds. `value`: V(s) of
the state in which it began.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...datasets.arrays import Array, array_format, decode_actions, decode_arrays, pack, whole_numbers
from ...datasets.errors import InputError, TaskError
from ...datasets.outcomes import failure_ids
from ...datasets.schema import failure_id
from ...datasets.words import counted
from ...training.environments.hooks import load_callable
from ..actors.inputs import OBSERVATION_ALONE, History, PolicyInputs, inputs_of_episodes
from ..actors.outputs import Outputs, difference_of_log_sums
from ..shapes import distinct_rows, require_rows

BUILT_IN: tuple[str, ...] = ("auto", "labels", "log-odds", "episode", "value")


class UserSteps(NamedTuple):
    """What a user's target function gets of one failure in addition to log pi(.|s) [T, A] of its steps.

    Where the actions are not Discrete the function gets log pi(a|s) [T] of the actions taken instead.

    Attributes:
        observations: [T, ...].
        actions: int64 [T], or [T, K] where an action is several numbers.
        labels: int8 [T, A]; zeros without labels.
    """

    observations: Array
    actions: Array
    labels: NDArray[np.int8]


UserTarget = Callable[[Tensor, UserSteps], Tensor]


@dataclass(frozen=True)
class Targets:
    """The steps that the targets of F failures depend on; `from_arrays` makes them of plain arrays.

    Attributes:
        ids: failure ids, length F.
        kinds: what each target is, length F.
        failure: int64 [T], index of the failure of each step, ascending.
        observations: [T, ...].
        actions: int64 [T], or [T, K] where an action is several numbers.
        labels: int8 [T, A].
        decisive: bool [T].
        user: a user's own function, instead of the built-in ones.
        inputs: what the policy takes in addition to the observations.

    Raises:
        InputError: arrays of another length than T, kinds of another than F, or failures that do not ascend.
    """

    ids: tuple[str, ...]
    kinds: tuple[str, ...]
    failure: NDArray[np.int64]
    observations: Array
    actions: Array
    labels: NDArray[np.int8]
    decisive: NDArray[np.bool_]
    user: UserTarget | None = None
    inputs: PolicyInputs = OBSERVATION_ALONE

    def __post_init__(self) -> None:
        require_rows("Targets", len(self.ids), kinds=self.kinds)
        require_rows(
            "Targets", len(self.failure), observations=self.observations, actions=self.actions, labels=self.labels,
            decisive=self.decisive,
        )  # fmt: skip
        self.inputs.require_rows("Targets", len(self.failure))
        bounds = self.failure[[0, -1]] if len(self.failure) else np.empty(0)
        if (np.diff(self.failure) < 0).any() or ((bounds < 0) | (bounds >= self.failures)).any():
            raise InputError(
                f"Targets: the failure of each step is {self.failure.tolist()[:20]}, expected ascending indices of "
                f"{counted(self.failures, 'failure')}"
            )

    @staticmethod
    def from_arrays(
        observations: Array | Mapping[str, Array],
        actions: Array,
        failure: Sequence[int] | NDArray[np.integer] | None = None,
        *,
        target: str | UserTarget = "log-odds",
        labels: NDArray[np.integer] | None = None,
        ids: Sequence[str] | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> Targets:
        """Return the targets of failures, of plain arrays: the steps of failing episodes, one after the other.

        Args:
            observations: [T, ...], as the policy sees them; of a dictionary of observations an array each.
            actions: the actions taken, [T] or [T, K].
            failure: index of the failure of each step, [T], ascending from 0 without a gap; None: all are of one.
            target: `log-odds`, `episode`, `value`, `labels` (or `auto`, the same): see the head of this file; or a
                function of one's own, of log pi(.|s) [T, A] and `UserSteps`.
            labels: [T, A], of each action 1 (misbehaving), -1 (desired) or 0; for `labels`.
            ids: a name for each failure, length F; None: 0, 1, ...
            mask: bool [T, A], allowed actions of a policy that is masked.

        Raises:
            InputError: no step, arrays of different lengths, an unknown target, or `labels` without labels.
        """
        observed = pack(dict(observations)) if isinstance(observations, Mapping) else np.array(observations)
        taken, steps = whole_numbers(np.array(actions)), len(observed)
        index = np.zeros(steps, np.int64) if failure is None else np.array(failure)
        if not steps or index.ndim != 1 or not np.issubdtype(index.dtype, np.integer):
            raise InputError(
                f"Targets: {counted(steps, 'step')}, failure of dtype {index.dtype}; expected a whole number each"
            )
        if isinstance(target, str) and target not in BUILT_IN:
            raise InputError(f"Targets: target {target!r}, expected a function or one of {', '.join(BUILT_IN)}")
        names = tuple(map(str, range(int(index.max(initial=-1)) + 1))) if ids is None else tuple(ids)
        signs = np.zeros((steps, 0), np.int8) if labels is None else np.array(labels, dtype=np.int8)
        require_rows("Targets", steps, actions=taken, failure=index, labels=signs, mask=mask)
        if gaps := sorted(set(range(len(names))) - set(index.tolist())):
            raise InputError(f"Targets: failure {names[gaps[0]]} has no step, expected one or more of each failure")
        if target == "labels" and labels is None:
            raise InputError("Targets: target 'labels' without labels, expected labels [T, A] or the target 'log-odds'")
        if labels is not None and (signs.ndim != 2 or taken.ndim != 1 or taken.dtype != np.int64):
            raise InputError(
                f"Targets: labels of shape {signs.shape} for actions of shape {taken.shape} and dtype {taken.dtype}, "
                "expected [T, A] for whole numbers [T]"
            )
        decisive = decisive_steps(signs, taken)
        first = np.diff(index, prepend=-1) != 0
        own = None if isinstance(target, str) else target
        return Targets(
            names, _kinds(target if isinstance(target, str) else "user", index[decisive], len(names)), index,
            observed, taken, signs, decisive, own, PolicyInputs(mask, History(first)),
        )  # fmt: skip

    @property
    def failures(self) -> int:
        """F."""
        return len(self.ids)

    def of(self, chosen: NDArray[np.int64]) -> Targets:
        """Return the steps of some failures, in ascending order."""
        steps = np.isin(self.failure, chosen)
        return replace(
            self, ids=tuple(self.ids[i] for i in chosen), kinds=tuple(self.kinds[i] for i in chosen),
            failure=np.searchsorted(chosen, self.failure[steps]), observations=self.observations[steps],
            actions=self.actions[steps], labels=self.labels[steps], decisive=self.decisive[steps],
            inputs=self.inputs.whole_episodes(steps),
        )  # fmt: skip

    def values(self, outputs: Outputs) -> Tensor:
        """Return f of each failure, [F], from what the policy says of all steps."""
        if self.user is not None:
            distribution, taken = outputs.distribution, torch.as_tensor(self.actions)
            log_probs = distribution.log_probs() if distribution.discrete else distribution.log_prob(taken)
            counts = np.bincount(self.failure, minlength=self.failures).tolist()
            return torch.stack([self._user_value(i, part) for i, part in enumerate(torch.split(log_probs, counts))])
        labels, actions = torch.as_tensor(self.labels), torch.as_tensor(self.actions)
        per_kind = {
            "labels": lambda: difference_of_log_sums(outputs.distribution.log_probs(), labels > 0, labels < 0),
            "log-odds": lambda: outputs.distribution.log_odds(actions),
            "episode": lambda: outputs.distribution.log_prob(actions),
            "value": lambda: outputs.values,
        }
        kind, weights = self._step_kinds(), self.step_weights()
        total: Tensor | None = None
        for name in sorted(set(self.kinds)):
            chosen = torch.as_tensor((kind == name) & (weights > 0.0))
            part = per_kind[name]()
            part = torch.where(chosen.to(part.device), part, 0.0)
            total = part if total is None else total + part
        assert total is not None
        weight, failure = torch.as_tensor(weights).to(total), torch.as_tensor(self.failure, device=total.device)
        return total.new_zeros(self.failures).index_add(0, failure, weight * total)

    def _step_kinds(self) -> NDArray[np.str_]:
        return np.array(self.kinds)[self.failure]

    def step_weights(self) -> NDArray[np.float64]:
        """Return the weight of each step in the target of its failure, [T]: 0 where it does not count."""
        kind = self._step_kinds()
        first = np.diff(self.failure, prepend=-1) > 0
        used = np.select([kind == "labels", kind == "value"], [self.decisive, first], True)
        count = np.bincount(self.failure[used], minlength=self.failures)
        return np.where(kind == "episode", 1.0, used / np.maximum(count, 1)[self.failure])

    def distinct(self, remembers: bool) -> DistinctSteps:
        """Return the steps that count, equal ones once: with the same observation, action, labels and allowed actions.

        Args:
            remembers: whether what a policy says of a step depends on what came before: then every step stays, as with
                a user's own function.
        """
        weight = self.step_weights() if self.user is None else np.ones(len(self.failure))
        used = np.flatnonzero(weight > 0.0)
        if remembers or self.user is not None or type(self) is not Targets:
            return DistinctSteps(self, used, self.failure[used], np.ones(len(used)))
        kinds, kind = np.unique(self._step_kinds()[used], return_inverse=True)
        labels = np.where((kinds == "labels")[kind, None], self.labels[used], 0).astype(np.int8)
        mask = self.inputs.mask
        parts = [self.observations[used], self.actions[used], labels, kind, *([] if mask is None else [mask[used]])]
        first, step, _ = distinct_rows(parts)
        chosen, order = used[first], np.argsort(step, kind="stable")
        rows = np.arange(len(first))
        steps = replace(
            self, ids=tuple(self.ids[i] for i in self.failure[chosen]), kinds=tuple(kinds[kind[first]].tolist()),
            failure=rows, observations=self.observations[chosen], actions=self.actions[chosen],
            labels=self.labels[chosen], decisive=np.ones(len(rows), np.bool_), inputs=self.inputs.rows(chosen),
        )  # fmt: skip
        return DistinctSteps(steps, step[order], self.failure[used][order], weight[used][order])

    def functional(self) -> Callable[[Outputs], Tensor]:
        """Return the sum of all targets, whose derivative by a step is that of the step's own failure."""
        return lambda outputs: self.values(outputs).sum()

    def _user_value(self, index: int, log_probs: Tensor) -> Tensor:
        rows = slice(*np.searchsorted(self.failure, [index, index + 1]))
        steps = UserSteps(self.observations[rows], self.actions[rows], self.labels[rows])
        assert self.user is not None
        value = self.user(log_probs, steps)
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise InputError(
                f"the target function returned {value!r} for failure {self.ids[index]}, expected one number as a tensor"
            )
        return value.reshape(())


class DistinctSteps(NamedTuple):
    """Steps of targets, each as often as it differs, and how much of each is in which target; n pairs.

    Attributes:
        steps: D steps: of targets of their own, of which `functional` is the sum.
        step: int64 [n], ascending.
        failure: int64 [n], of the F targets.
        weight: [n]; the gradient of a target is the sum of those of its steps, weighted.
    """

    steps: Targets
    step: NDArray[np.int64]
    failure: NDArray[np.int64]
    weight: NDArray[np.float64]


def decisive_steps(labels: NDArray[np.int8], actions: Array) -> NDArray[np.bool_]:
    """Return which steps are decisive, [T]: labels of both signs and a misbehaving action taken."""
    if not labels.shape[1]:
        return np.zeros(len(labels), dtype=np.bool_)  # no labels, or actions that cannot have any
    both = (labels > 0).any(axis=1) & (labels < 0).any(axis=1)
    taken = np.take_along_axis(labels, actions[:, None], axis=1)[:, 0]
    return np.asarray(both & (taken > 0), dtype=np.bool_)


def make_targets(steps: pa.Table, failures: pa.Table, target: str) -> Targets:
    """Collect the target steps of failures.

    Args:
        steps: the steps table of an evaluation set (repeat 0).
        failures: rows of the episodes table that failed (`seed`, `episode`).
        target: one of `BUILT_IN`, or `module:callable`.

    Raises:
        TaskError: an unknown target, or `labels` for an environment that gives none.
    """
    user = user_target(target)
    keys = list(zip(failures["seed"].to_pylist(), failures["episode"].to_pylist(), strict=True))
    rows = _rows_of(steps, keys)
    index = np.repeat(np.arange(len(keys)), [len(r) for r in rows])
    order = np.concatenate(rows) if rows else np.empty(0, np.int64)
    chosen = steps.take(pa.array(order))
    observations = decode_arrays(chosen["observation"], array_format(steps.schema, "observation"))
    actions = decode_actions(chosen)
    if target == "labels" and steps["action_labels"].null_count:
        raise TaskError(
            "target: `labels` was given, but the environment tells no `action_labels`. Use `auto` or `log-odds`, or "
            "let the environment tell them with every step"
        )
    inputs = inputs_of_episodes(chosen.replace_schema_metadata(steps.schema.metadata), index)
    labels = _labels(chosen, int((steps.schema.metadata or {}).get(b"actions", b"0")))
    if inputs.mask is not None and labels.shape[1]:
        labels = np.where(inputs.mask, labels, 0).astype(np.int8)  # an action that is not allowed has no part in odds
    decisive = decisive_steps(labels, actions)
    ids = tuple(failure_ids(failures))
    kinds = _kinds(target, index[decisive], len(ids))
    return Targets(ids, kinds, index, observations, actions, labels, decisive, user, inputs)


def target_kinds(steps: pa.Table, failures: pa.Table, target: str) -> dict[str, str]:
    """Return by failure what its target is; a user's own function, which is none of `BUILT_IN`, is not imported."""
    if target not in BUILT_IN:
        return dict.fromkeys(failure_ids(failures), target)
    targets = make_targets(steps, failures, target)
    return dict(zip(targets.ids, targets.kinds, strict=True))


def _kinds(target: str, decisive: NDArray[np.int64], failures: int) -> tuple[str, ...]:
    """Return what the target of each failure is: without a decisive step also `labels` is the log-odds.

    Args:
        target: one of `BUILT_IN`, or the name of a user's own.
        decisive: the failure of each decisive step.
        failures: F.
    """
    if target not in ("auto", "labels"):
        return (target,) * failures
    return tuple("labels" if count else "log-odds" for count in np.bincount(decisive, minlength=failures))


def user_target(target: str) -> UserTarget | None:
    """Return the function that a task names as target; None for a built-in one.

    Raises:
        TaskError: there is no such function.
    """
    if target in BUILT_IN:
        return None
    function: UserTarget = load_callable(target, "target", f"{', '.join(BUILT_IN)} or module:callable")
    return function


def _rows_of(steps: pa.Table, keys: list[tuple[int, int]]) -> list[NDArray[np.int64]]:
    """Return the row numbers of the steps of each (seed, episode), in time order."""
    seeds, episodes, t = (steps[name].to_numpy() for name in ("seed", "episode", "t"))
    where: dict[tuple[int, int], list[int]] = {}
    for row in np.lexsort((t, episodes, seeds)):
        where.setdefault((int(seeds[row]), int(episodes[row])), []).append(int(row))
    missing = [failure_id(*key) for key in keys if key not in where]
    if missing:
        raise InputError(f"the steps table has no steps of failure {missing[0]}: evaluate the run again")
    return [np.array(where[key], dtype=np.int64) for key in keys]


def _labels(steps: pa.Table, actions: int) -> NDArray[np.int8]:
    column = steps["action_labels"]
    if column.null_count:
        return np.zeros((steps.num_rows, actions), dtype=np.int8)
    values = np.array(column.combine_chunks().flatten().to_numpy(), dtype=np.int8)
    return values.reshape(steps.num_rows, actions)
