"""What a report says of each failure: its entry in `verdicts.json`, and what its page shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ....attribution.targets.steps import target_kinds
from ....datasets.errors import RunFolderError
from ....datasets.schema import RANDOM_POLICY_SEED, seed_and_episode
from ....datasets.words import counted
from ....reports.pages.episode import episode_table
from ....reports.pages.findings import failure_entry, group_means, own_rates
from ....reports.pages.views import FailureView
from ....training.agents.play import MOST_STEPS
from ...runs.evaluated_set import EvaluatedSet
from .shown import Drawn, ShownRewards, shown_rewards

_COLUMNS = (
    "seed", "episode", "t", "observation", "action", "action_labels", "log_prob", "value", "reward", "probabilities",
)  # fmt: skip
_TARGETS = {
    "labels": "log-odds of misbehaving against desired actions at the decisive steps",
    "log-odds": "log-odds of the actions taken",
    "episode": "log-likelihood of the whole failing episode",
    "value": "value of the state in which the episode began",
}


class ReportedFailure(NamedTuple):
    """A failure's entry in `verdicts.json`, and what its page shows."""

    entry: dict[str, Any]
    view: FailureView


def report_failures(evaluated: EvaluatedSet, drawn: Drawn) -> list[ReportedFailure]:
    """Return what there is to report of every failure of a set, by seed and episode.

    Args:
        evaluated: the set.
        drawn: its pictures; what pages show of them is copied.
    """
    task, names = evaluated.run.task, evaluated.failure_ids
    cluster_of = {name: cluster for cluster in evaluated.clusters for name in cluster.failures}
    plays = evaluated.episodes.filter(pc.field("seed") != RANDOM_POLICY_SEED)
    rates = own_rates(plays, evaluated.bank, task.outcomes)
    counts = group_means(list(evaluated.run.rewards.values()), ("transitions", "reward_events"))
    kinds = target_kinds(evaluated.steps, evaluated.failing_episodes, task.target)
    top, steps = _by_failure(evaluated.attributed.transitions), failing_steps(evaluated.steps, names)
    reported = []
    for name, episode in zip(names, evaluated.failing_episodes.to_pylist(), strict=True):
        number, findings = cluster_of[name].number, evaluated.findings_of(cluster_of[name])
        entry = failure_entry(episode, number, findings, rates[episode["episode"]], evaluated.effects, counts)
        rewards = shown_rewards(top[name]) if name in top else ShownRewards([], [])
        frames, reason = drawn.episode(name)
        texts = {frame.step: frame.text for frame in frames if frame.text is not None}
        view = FailureView(
            frames, reason, _TARGETS.get(kinds[name], kinds[name]), *drawn.training(name, rewards),
            evaluated.timeline.of([name]), episode_table(steps[name], drawn.action_name, texts),
        )  # fmt: skip
        reported.append(ReportedFailure(entry, view))
    return reported


def _by_failure(top: pa.Table) -> Mapping[str, pa.Table]:
    """Return the most influential transitions of each failure."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(top["failure"].to_pylist()):
        rows.setdefault(name, []).append(row)
    return {name: top.take(pa.array(mine)) for name, mine in rows.items()}


def failing_steps(steps: pa.Table, failures: Sequence[str]) -> dict[str, pa.Table]:
    """Return the steps of failures, by id, each in its order; columns that an earlier version did not keep are absent.

    Args:
        steps: of an evaluation set, as written.
        failures: ids.

    Raises:
        RunFolderError: a failure has no steps.
    """
    table = steps.select([name for name in _COLUMNS if name in steps.column_names])
    seeds, episodes, t = (table[name].to_numpy() for name in ("seed", "episode", "t"))
    order = np.lexsort((t, episodes, seeds))
    keys = np.stack([seeds, episodes], axis=1)[order]
    begins = np.flatnonzero((np.diff(keys, axis=0, prepend=keys[:1] - 1) != 0).any(axis=1))
    spans = {tuple(keys[start]): (start, end) for start, end in zip(begins, [*begins[1:], len(order)], strict=True)}
    by_failure = {}
    for name in failures:
        if (span := spans.get(seed_and_episode(name))) is None:
            raise RunFolderError(f"the steps of failure {name} are missing, expected those of all: evaluate again")
        if span[1] - span[0] > MOST_STEPS:
            raise RunFolderError(
                f"failure {name} has {counted(span[1] - span[0], 'step')}, expected at most {MOST_STEPS:,}: evaluate "
                "again"
            )
        by_failure[name] = table.take(pa.array(order[slice(*span)])).combine_chunks()
    return by_failure
