"""What a report says of a set of failures and of each of its clusters: findings, suspects, predictions, corrections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from ....attribution.effects.order import EffectTable
from ....attribution.estimators.baselines import NearestObservation
from ....datasets.bank import Bank
from ....datasets.files.typed import Part, read_model
from ....datasets.rewards import wrong_groups
from ....datasets.schema import RANDOM_POLICY_SEED, Order
from ....reports.figures.grammar import Chart
from ....reports.figures.influence import calibration_chart, concentration_chart, group_effects
from ....reports.measures.doubts import curve_in_order, order_doubts, predicted_direction
from ....reports.measures.predictions import calibrate, concentration
from ....reports.measures.timeline import Timeline
from ....reports.pages.advice import Costs, Surroundings, explain
from ....reports.pages.corrections import Correction, smallest_correction
from ....reports.pages.findings import PredictionFindings, SetFindings, group_means, own_rates
from ....reports.pages.views import ClusterContext, ClusterView
from ....reports.statistics import NOTHING, mean_interval
from ...runs.clusters import Cluster
from ...runs.evaluated_set import EvaluatedSet

_SHOWN_GROUPS = 20
_WORST = 5


class ClusterReport(NamedTuple):
    """What is reported of a cluster of failures, or of the whole set.

    Attributes:
        cluster: which failures.
        findings: its verdict and curve.
        around: what advice depends on in addition.
        groups: all wrong groups, the largest predicted drop of the misbehaviour first.
        predictions: what predicted effects are worth.
        correction: what to correct; None: nothing.
    """

    cluster: Cluster
    findings: SetFindings
    around: Surroundings
    groups: list[dict[str, Any]]
    predictions: PredictionFindings
    correction: Correction | None

    @property
    def edits_file(self) -> str:
        """Name of the file with what to correct, in the folder of the reports."""
        return "edits.yaml" if self.cluster.selection is None else f"edits-{self.cluster.number}.yaml"

    def context(self, timeline: Timeline) -> ClusterContext:
        """Return what the pages of the cluster share."""
        return ClusterContext(
            self.cluster.number,
            self.findings,
            explain(self.findings, self.around),
            None if self.correction is None else self.edits_file,
            timeline.of(self.cluster.failures),
            self.predictions.doubts,
            self.predictions.direction,
        )

    def view(self, unit: str) -> ClusterView:
        """Return the figures of the cluster and the first of its groups (`unit`: what groups are called)."""
        charts: dict[str, Chart] = {}
        if self.groups:
            charts["groups"] = group_effects([(str(g["group"]), g["interval"]) for g in self.groups], unit)
        concentrated, calibration = self.predictions.concentration, self.predictions.calibration
        if concentrated is not None:
            charts["concentration"] = concentration_chart(concentrated.curve, concentrated.top)
        if calibration is not None and calibration.fit is not None:
            charts["calibration"] = calibration_chart(calibration)
        return ClusterView(charts, self.groups[:_SHOWN_GROUPS], len(self.groups))


def report_cluster(evaluated: EvaluatedSet, cluster: Cluster) -> ClusterReport:
    """Return what there is to report of a cluster of failures, or of the whole set."""
    task = evaluated.run.task
    bank, findings = evaluated.bank_of(cluster), evaluated.findings_of(cluster)
    effects = evaluated.effects_of(cluster)
    groups = _ordered_groups(effects, evaluated.run.rewards)
    predictions = _predictions(evaluated, cluster, effects, groups, bank, findings)
    for group in groups:  # the misbehaviour rate that is predicted when only this group is corrected
        group["rate"] = NOTHING if predictions.calibration is None else predictions.calibration.rate(group["effect"])
    correction = None
    if task.group_by != "cluster":  # clusters of states belong to this run: no other can be trained with corrections
        correction = smallest_correction(findings, bank, [group["group"] for group in groups])
    around = _surroundings(evaluated, cluster, correction)
    return ClusterReport(cluster, findings, around, groups, predictions, correction)


def _surroundings(evaluated: EvaluatedSet, cluster: Cluster, correction: Correction | None) -> Surroundings:
    task = evaluated.run.task
    return Surroundings(
        task.train_kwargs, task.evaluation_env(evaluated.name).kwargs, task.verify.coverage,
        _worst(evaluated, cluster), None if correction is None else len(correction.groups),
        None if correction is None else correction.misbehaviour, evaluated.learning, _costs(evaluated),
    )  # fmt: skip


def _costs(evaluated: EvaluatedSet) -> Costs:
    """Return what the trainings of a run cost so far."""
    bank, seconds = evaluated.bank, evaluated.run.manifest.seconds
    retrained = [] if bank is None else bank.masks.filter(pc.field("order") != Order.NONE)["seed"].to_pylist()
    return Costs(
        len(evaluated.run.task.seeds), len(retrained), len(set(retrained)), seconds.get("train", 0.0),
        seconds.get("verify", 0.0),
    )  # fmt: skip


def _worst(evaluated: EvaluatedSet, cluster: Cluster) -> list[str]:
    """Return the contexts of failing episodes that misbehave most, over all agents and repeats."""
    outcomes = evaluated.run.task.outcomes
    plays = evaluated.episodes.filter(pc.field("seed") != RANDOM_POLICY_SEED)
    rates = own_rates(plays, None, outcomes)
    episodes = {int(name.rpartition("-")[2]) for name in cluster.failures}
    rows = outcomes.failures(plays).select(["episode", "context"]).to_pylist()
    contexts = {row["episode"]: row["context"] for row in rows if row["context"] and row["episode"] in episodes}
    order = sorted(contexts, key=lambda episode: (-(rates[episode]["uncorrected"] or 0.0), episode))
    return list(dict.fromkeys(contexts[episode] for episode in order))[:_WORST]


def _ordered_groups(effects: EffectTable, rewards: Mapping[int, pa.Table]) -> list[dict[str, Any]]:
    """Return the wrong groups, the largest predicted drop first, with what is wrong with them (means over seeds)."""
    totals = group_means(list(rewards.values()), ("wrong_transitions", "error"))
    mean, column = effects.mean(), {group: index for index, group in enumerate(effects.groups)}
    wrong_names = [group for group in wrong_groups(list(rewards.values())) if group in mean]
    return [
        {
            "group": group,
            "effect": mean[group],
            "interval": mean_interval(effects.by_seed[:, column[group]].tolist()),
            "wrong": totals[group][0],
            "error": totals[group][1],
        }
        for group in sorted(wrong_names, key=lambda group: (mean[group], group))
    ]


def _predictions(
    evaluated: EvaluatedSet, cluster: Cluster, effects: EffectTable, groups: Sequence[Mapping[str, Any]],
    bank: Bank | None, findings: SetFindings,
) -> PredictionFindings:  # fmt: skip
    """Say what the predicted effects are worth: concentration and direction (of the whole set), calibration, doubts."""
    column = {group: index for index, group in enumerate(effects.groups)}
    by_seed = {str(group["group"]): effects.by_seed[:, column[group["group"]]] for group in groups}
    whole, task = cluster.selection is None, evaluated.run.task
    direction = predicted_direction(evaluated.direction_effects) if whole and groups else None
    return PredictionFindings(
        evaluated.estimator.name,
        concentration(by_seed, evaluated.null_sums) if whole else None,
        calibrate(bank, effects.mean() if groups else {}, task.outcomes, evaluated.set_effects(cluster)),
        _noise_ceiling(evaluated),
        order_doubts(
            {group["group"]: group["effect"] for group in groups},
            list(evaluated.run.rewards.values()),
            curve_in_order(findings.curve, bank, [group["group"] for group in groups]),
            findings.evidence,
            task.group_by,
            direction,
            evaluated.other_effects(NearestObservation.name, cluster.failures),
        ),
        direction,
    )


class _Ceiling(Part):
    value: float | None


class _Interactive(Part):
    noise_ceiling: _Ceiling


class _Validation(Part):
    """What a report reads of `validation.json`."""

    interactive: _Interactive


def _noise_ceiling(evaluated: EvaluatedSet) -> float | None:
    """Return the noise ceiling that a validation measured; None before one."""
    path = evaluated.run.folder.validation_path(evaluated.name)
    if not path.exists():
        return None
    return read_model(path, _Validation, "aitia validate").interactive.noise_ceiling.value
