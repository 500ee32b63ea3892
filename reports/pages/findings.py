"""Results of an evaluation set and of each failure: the entries of summary.json and verdicts.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...attribution.effects.order import EffectTable
from ...datasets.bank import Bank, Selection
from ...datasets.outcomes import Outcomes, PlayCounts, SeedRates
from ...datasets.schema import RANDOM_POLICY_SEED, Order, failure_id
from ..measures.budgets import Budget, budgets
from ..measures.curve import (
    CurvePoint,
    Ease,
    MinimalCorrection,
    arbitrary_ease,
    correction_curve,
    ease,
    minimal_corrections,
)
from ..measures.doubts import Direction, Doubt
from ..measures.factorial import Factorial, factorial
from ..measures.learning import Learning
from ..measures.predictions import Calibration, Concentration
from ..measures.preference import Preference
from ..statistics import Interval, mean_half_width, rate_interval
from ..verdict.competence import Goals, find_goals
from ..verdict.evidence import collect_evidence
from ..verdict.framing import RewardScale, framing1
from ..verdict.rules import Decision, Evidence, Thresholds, Verdict, decide, removal

_TOP_GROUPS = 10


@dataclass(frozen=True)
class SetFindings:
    """Results of a whole evaluation set, or of a cluster of its failures.

    Attributes:
        evidence, decision, curve, ease: see their types.
        minimal: smallest verified sets that remove the misbehaviour, by order; empty unless asked for.
        scale: what low and high return mean, for Framing 1.
        goals: what reference solvers show; None where the environment offers none.
        thresholds, declared: as the task gives them.
        budgets: what each kind of change was able to do.
        factorial: shares of rewards and inductive biases; None unless the task lists biases.
    """

    evidence: Evidence
    decision: Decision
    curve: tuple[CurvePoint, ...]
    ease: Ease | None
    minimal: tuple[MinimalCorrection, ...]
    scale: RewardScale
    goals: Goals | None
    thresholds: Thresholds
    declared: Outcomes
    budgets: tuple[Budget, ...] = ()
    factorial: Factorial | None = None

    def rates_before_and_after(self) -> dict[str, tuple[Interval, Interval]]:
        """Return the shares of competent and of desired episodes, uncorrected and with all corrected."""
        return {name: _rates_of(self.evidence.paired(), name) for name in ("competent", "desired")}


def find_for_set(
    episodes: pa.Table,
    references: pa.Table,
    rewards: Mapping[int, pa.Table],
    bank: Bank | None,
    declared: Outcomes,
    thresholds: Thresholds,
    group_by: str = "context",
    minimal: float | None = None,
    biases: Sequence[str] = (),
    selection: Selection | None = None,
) -> SetFindings:
    """Decide the verdict of an evaluation set, or of one of several clusters of its failures, from its tables.

    Args:
        episodes: episodes of the set: the ensemble's and the random policy's.
        references: episodes of the set's reference solvers; no rows without them.
        rewards: reward summary of the training of each seed.
        bank: the counterfactual bank; None if nothing was trained again.
        declared, thresholds, group_by: from the task.
        minimal: highest misbehaviour rate that counts as removed; None: not asked.
        biases: the task's variants of the inductive bias.
        selection: the episodes played that count for the cluster; None: all. The bank is the cluster's.
    """
    evidence = collect_evidence(episodes, list(rewards.values()), bank, declared, selection)
    decision = decide(evidence, thresholds)
    curve = correction_curve(bank, rewards, declared) if bank is not None else ()
    paired = [rewards[rates.seed] for rates in evidence.paired()[0]]
    if decision.basis == "arbitrary" and decision.verdict is Verdict.OUTER:
        removes = [removal(evidence, trial.edited, thresholds).removes for trial in evidence.arbitrary]
        ease_of_correction = arbitrary_ease(evidence.arbitrary, list(rewards.values()), removes, group_by)
    else:
        ease_of_correction = ease(decision.verdict, curve, paired, thresholds, group_by)
    any_wrong = (evidence.largest_error or 0.0) > thresholds.wrong_reward
    smallest = () if minimal is None else minimal_corrections(curve, minimal, group_by)
    return SetFindings(
        evidence, decision, curve, ease_of_correction, smallest, RewardScale.of(episodes, references),
        find_goals(episodes, references, declared), thresholds, declared,
        budgets(evidence, curve, bank, declared, thresholds), factorial(bank, biases, declared, any_wrong),
    )  # fmt: skip


def failure_entry(
    episode: Mapping[str, Any],
    cluster: int,
    findings: SetFindings,
    own_rates: Mapping[str, float | None],
    effects: EffectTable,
    group_counts: Mapping[str, tuple[float, ...]],
) -> dict[str, Any]:
    """Return the entry of one failure in `verdicts.json`.

    Args:
        episode: its row of the episodes table.
        cluster: number of its cluster, whose verdict the failure inherits.
        findings: of the cluster.
        own_rates: `uncorrected` and `all_corrected` misbehaviour rate of its own test episode.
        effects: predicted effects of the groups on each failure.
        group_counts: mean transitions and reward events of each group in an uncorrected training.
    """
    decision, name = findings.decision, failure_id(episode["seed"], episode["episode"])
    others = [value for _, value in episode.get("extensions") or []]
    label = framing1(episode["outcome"], episode["reward"], findings.scale, findings.declared, others)
    return {
        "failure": name,
        "seed": episode["seed"],
        "episode": episode["episode"],
        "context": episode["context"],
        "outcome": episode["outcome"],
        "cluster": cluster,
        "framing1": str(label),
        "verdict": str(decision.verdict),
        "rule": decision.rule,
        "basis": decision.basis,
        "outer_share": decision.outer_share.as_dict(),
        "ease": findings.ease.as_dict() if findings.ease else None,
        "own_rates": dict(own_rates),
        "reasons": list(decision.reasons),
        "top_groups": _top_groups(name, effects, group_counts),
    }


def _top_groups(name: str, effects: EffectTable, counts: Mapping[str, tuple[float, ...]]) -> list[dict[str, Any]]:
    if name not in effects.failures:
        return []
    index = effects.failures.index(name)
    row, error = effects.effect[index], effects.error[index]
    half = mean_half_width(len(effects.by_seed))
    order = [i for i in np.argsort(row, kind="stable")[:_TOP_GROUPS] if row[i] < 0.0]
    return [
        {
            "group": effects.groups[i],
            "effect": float(row[i]),
            "low": float(row[i] - half * error[i]) if half is not None else None,
            "high": float(row[i] + half * error[i]) if half is not None else None,
            "transitions": round(counts.get(effects.groups[i], (0.0, 0.0))[0]),
            "reward_events": round(counts.get(effects.groups[i], (0.0, 0.0))[1]),
        }
        for i in order
    ]


def group_means(rewards: Sequence[pa.Table], columns: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Return columns of the reward summaries for each group, means over the seeds' trainings."""
    sums: dict[str, NDArray[np.float64]] = {}
    for table in rewards:
        values = np.stack([table[name].to_numpy() for name in columns], axis=1) / len(rewards)
        for group, row in zip(table["group"].to_pylist(), values, strict=True):
            sums[group] = sums.get(group, np.zeros(len(columns))) + row
    return {group: tuple(total.tolist()) for group, total in sums.items()}


def own_rates(episodes: pa.Table, bank: Bank | None, declared: Outcomes) -> dict[int, dict[str, float | None]]:
    """Return the misbehaviour rates of each test episode, over its competent repeats: of the uncorrected and of the
    all-corrected agents; None where no repeat was competent."""
    test = episodes.filter((pc.field("part") == "test") & (pc.field("seed") != RANDOM_POLICY_SEED))
    corrected = None
    if bank is not None:
        members = pa.array(list(bank.members(Order.ALL)), pa.string())
        corrected = bank.outcomes.filter((pc.field("part") == "test") & pc.field("member").isin(members))
    before, after = _rates_by_episode(test, declared), _rates_by_episode(corrected, declared)
    return {e: {"uncorrected": before[e], "all_corrected": after.get(e)} for e in before}


def _rates_by_episode(played: pa.Table | None, declared: Outcomes) -> dict[int, float | None]:
    if played is None:
        return {}
    outcomes: dict[int, list[str]] = {}
    for episode, outcome in zip(played["episode"].to_pylist(), played["outcome"].to_pylist(), strict=True):
        outcomes.setdefault(episode, []).append(outcome)
    return {episode: PlayCounts.of(values, declared).misbehaviour for episode, values in outcomes.items()}


@dataclass(frozen=True)
class PredictionFindings:
    """What the predicted effects of a set are worth.

    Attributes:
        estimator: whose they are.
        concentration, calibration: see their types; None where there is nothing to say.
        noise_ceiling: of a validation; None before one.
        doubts: why no group is called most suspected; empty where nothing speaks against the order.
        direction: of all corrections together; None: not known, or of one of several clusters.
    """

    estimator: str
    concentration: Concentration | None
    calibration: Calibration | None
    noise_ceiling: float | None
    doubts: tuple[Doubt, ...] = ()
    direction: Direction | None = None


def summarise(
    findings: SetFindings,
    clusters: Mapping[int, SetFindings],
    predictions: PredictionFindings,
    entries: Sequence[Mapping[str, Any]],
    trainings: int,
    seconds: Mapping[str, float],
    learning: Learning | None = None,
    preference: Preference | None = None,
) -> dict[str, Any]:
    """Return `summary.json`.

    Args:
        findings: of the set.
        clusters: of each cluster of its failures.
        predictions: what predicted effects are worth.
        entries: the failures' entries.
        trainings: agents trained in all.
        seconds: wall-clock seconds a stage.
        learning: outcomes over training; None: not known.
        preference: returns by outcome, where the intended reward is not known; else None.
    """
    counts = Counter(str(entry["verdict"]) for entry in entries)
    rates = {
        name: {"uncorrected": before.as_dict(), "all_corrected": after.as_dict()}
        for name, (before, after) in findings.rates_before_and_after().items()
    }
    verdict = set_verdict(findings.decision, counts)
    decision = deciding(findings, clusters, verdict).decision
    return {
        "verdict": verdict,
        "verdict_share": counts[verdict] / len(entries) if entries else None,
        "verdict_counts": dict(counts),
        "rule": decision.rule,
        "basis": decision.basis,
        "reasons": list(decision.reasons),
        "failures": len(entries),
        "clusters": [_cluster_entry(number, each, entries) for number, each in clusters.items()],
        "misbehaviour_rate": {
            "uncorrected": findings.decision.uncorrected.as_dict(),
            "all_corrected": findings.decision.all_corrected.as_dict(),
        },
        "competence": rates["competent"],
        "desired_rate": rates["desired"],
        "outer_share": findings.decision.outer_share.as_dict(),
        "goals": findings.goals.as_dict() if findings.goals else None,
        "ease": findings.ease.as_dict() if findings.ease else None,
        "minimal_corrections": [each.as_dict() for each in findings.minimal],
        "budgets": [each.as_dict() for each in findings.budgets],
        "factorial": findings.factorial.as_dict() if findings.factorial else None,
        "correction_curve": [point.as_dict() for point in findings.curve],
        "estimator": predictions.estimator,
        "concentration": predictions.concentration.as_dict() if predictions.concentration else None,
        "calibration": predictions.calibration.as_dict() if predictions.calibration else None,
        "noise_ceiling": predictions.noise_ceiling,
        "order_doubts": [doubt._asdict() for doubt in predictions.doubts],
        "direction": predictions.direction.as_dict() if predictions.direction else None,
        "learning": learning.as_dict() if learning else None,
        "preference": preference.as_dict() if preference else None,
        "trainings": trainings,
        "seconds": dict(seconds),
    }


def deciding(findings: SetFindings, clusters: Mapping[int, SetFindings], verdict: str) -> SetFindings:
    """Return the findings that gave a set its verdict: its own, or else those of the largest cluster with it."""
    if findings.decision.verdict == verdict:
        return findings
    return next((candidate for candidate in clusters.values() if candidate.decision.verdict == verdict), findings)


def _cluster_entry(number: int, findings: SetFindings, entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    decision = findings.decision
    return {
        "cluster": number,
        "failures": sum(entry["cluster"] == number for entry in entries),
        "verdict": str(decision.verdict),
        "rule": decision.rule,
        "misbehaviour_rate": {
            "uncorrected": decision.uncorrected.as_dict(),
            "all_corrected": decision.all_corrected.as_dict(),
        },
        "outer_share": decision.outer_share.as_dict(),
        "ease": findings.ease.as_dict() if findings.ease else None,
    }


def set_verdict(decision: Decision, counts: Mapping[str, int]) -> str:
    """Return the set's verdict: rules 1 to 3, else that of most failures; a tie or no failures: undetermined."""
    if decision.of_set:
        return str(decision.verdict)
    most = sorted(counts.values(), reverse=True)
    if not most or (len(most) > 1 and most[0] == most[1]):
        return str(Verdict.UNDETERMINED)
    return max(counts, key=lambda verdict: counts[verdict])


def _rates_of(paired: tuple[Sequence[SeedRates], Sequence[SeedRates]], name: str) -> tuple[Interval, Interval]:
    before, after = (rate_interval([float(getattr(r, name)) for r in rates]) for rates in paired)
    return before, after


def entries_table(entries: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Return the entries as a table with the columns of `verdicts.json`."""
    number = pa.float64()
    interval = pa.struct([("value", number), ("low", number), ("high", number)])
    units = ("transitions", "reward_events", "episodes", "groups", "components")
    group = pa.struct(
        [
            ("group", pa.string()),
            ("effect", number),
            ("low", number),
            ("high", number),
            ("transitions", pa.int64()),
            ("reward_events", pa.int64()),
        ]
    )
    schema = pa.schema(
        [
            ("failure", pa.string()), ("seed", pa.int32()), ("episode", pa.int32()), ("context", pa.string()),
            ("outcome", pa.string()), ("cluster", pa.int32()), ("framing1", pa.string()),
            ("verdict", pa.string()), ("rule", pa.int32()), ("basis", pa.string()), ("outer_share", interval),
            ("ease", pa.struct([*[(unit, number) for unit in units], ("kind", pa.string())])),
            ("own_rates", pa.struct([("uncorrected", number), ("all_corrected", number)])),
            ("reasons", pa.list_(pa.string())), ("top_groups", pa.list_(group)),
        ]
    )  # fmt: skip
    return pa.Table.from_pylist(list(entries), schema=schema)
