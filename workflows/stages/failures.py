"""What a report says of each failure: its entry in `verdicts.json`, and what its page shows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ...attribution.targets.steps import target_kinds
from ...datasets.schema import RANDOM_POLICY_SEED
from ...reports.pages.findings import failure_entry, group_means, own_rates
from ...reports.pages.write import FailureView
from ..runs.evaluated_set import EvaluatedSet
from .episodes import failing_steps, table_of
from .shown import Drawn, ShownRewards, shown_rewards

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
    """Return what there is to report of every failure of a set, in the order of their ids' seeds and episodes.

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
        view = FailureView(
            frames, reason, _TARGETS.get(kinds[name], kinds[name]), *drawn.training(name, rewards),
            evaluated.timeline.of([name]), table_of(steps, name, drawn.action_name, frames),
        )  # fmt: skip
        reported.append(ReportedFailure(entry, view))
    return reported


def _by_failure(top: pa.Table) -> Mapping[str, pa.Table]:
    """Return the most influential transitions of each failure."""
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(top["failure"].to_pylist()):
        rows.setdefault(name, []).append(row)
    return {name: top.take(pa.array(mine)) for name, mine in rows.items()}
