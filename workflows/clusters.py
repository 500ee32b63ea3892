"""What a report says of a cluster of failures; version 1 has one cluster an evaluation set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ..datasets.schema import RANDOM_POLICY_SEED
from ..reports.advice import Surroundings, explain
from ..reports.chart import Chart
from ..reports.corrections import EDITS_FILE, Correction
from ..reports.findings import PredictionFindings, SetFindings, own_rates
from ..reports.influence_charts import calibration_chart, concentration_chart, group_effects
from ..reports.pages import ClusterContext, ClusterView
from ..reports.timeline import Stretch
from .task import Task

_SHOWN_GROUPS = 20
_WORST = 5


def surroundings(task: Task, set_name: str, episodes: pa.Table, correction: Correction | None) -> Surroundings:
    """Collect what advice depends on beside the findings.

    Args:
        task: the task.
        set_name: the evaluation set.
        episodes: its episodes.
        correction: what is written to the file of corrections; None: nothing.
    """
    return Surroundings(
        task.train_kwargs, task.evaluation_env(set_name).kwargs, task.verify.coverage, _worst(task, episodes),
        None if correction is None else len(correction.groups),
        None if correction is None else correction.misbehaviour,
    )  # fmt: skip


def _worst(task: Task, episodes: pa.Table) -> list[str]:
    """Return the contexts of failing episodes that misbehave most, over all agents and repeats."""
    plays = episodes.filter(pc.field("seed") != RANDOM_POLICY_SEED)
    rates = own_rates(plays, None, task.outcomes)
    failed = task.outcomes.failures(plays)
    contexts = {
        row["episode"]: row["context"] for row in failed.select(["episode", "context"]).to_pylist() if row["context"]
    }
    order = sorted(contexts, key=lambda episode: (-(rates[episode]["uncorrected"] or 0.0), episode))
    return list(dict.fromkeys(contexts[episode] for episode in order))[:_WORST]


def cluster_context(
    number: int, findings: SetFindings, around: Surroundings, timeline: Sequence[Stretch]
) -> ClusterContext:
    """Return what the pages of a cluster share."""
    edits = None if around.corrected is None else EDITS_FILE
    return ClusterContext(number, findings, explain(findings, around), edits, timeline)


def cluster_view(groups: Sequence[Mapping[str, Any]], predictions: PredictionFindings, unit: str) -> ClusterView:
    """Return the figures of a cluster and its most suspected groups.

    Args:
        groups: all wrong groups, most suspected first.
        predictions: what predicted effects are worth.
        unit: what the groups are called.
    """
    charts: dict[str, Chart] = {}
    if groups:
        charts["groups"] = group_effects([(str(group["group"]), group["interval"]) for group in groups], unit)
    found, calibration = predictions.concentration, predictions.calibration
    if found is not None:
        charts["concentration"] = concentration_chart(found.curve, found.top)
    if calibration is not None and calibration.fit is not None:
        charts["calibration"] = calibration_chart(calibration)
    return ClusterView(charts, groups[:_SHOWN_GROUPS], len(groups))
