"""Stage verify: which rewards are edited, and how many agents are trained on them, to decide the verdict.

Three budgets, never mixed: corrective (rewards as intended), arbitrary (rewards within the range seen), coverage
(more varied levels). In addition the factorial: rewards as paid or corrected, times the task's inductive biases.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from ...attribution.effects.order import (
    BoundedEdit,
    attribution_order,
    bounded_edits,
    nested_sizes,
    placebo_edits,
    random_order,
)
from ...attribution.effects.search import MeasuredSet, next_set
from ...datasets.errors import InputError, nearest
from ...datasets.files.store import read_table
from ...datasets.rewards import reward_bounds, wrong_groups
from ...datasets.schema import Order
from ...reports.measures.budgets import COVERAGE
from ...reports.measures.curve import suffices
from ...reports.measures.predictions import log_odds
from ...reports.pages.findings import group_means
from ...reports.verdict.rules import removal
from ..runs.clusters import Cluster, find_clusters
from ..runs.outcomes import require_outcomes
from ..runs.recorded import estimator_of
from ..runs.run import Run
from ..workers.pool import Workers
from .bank import BankBuilder
from .members import Mask

log = logging.getLogger("aitia")
_NOTHING_TO_EXPLAIN = 4  # rules up to here speak of agents as they are
_UNKNOWN_RULE, _NOTHING_WRONG_RULE, _UNDECIDED_RULE = 5, 6, 11
_SEEDS_ADDED = 2


def verify_stage(run: Run, set_name: str, workers: Workers) -> None:
    """Make the counterfactual bank of an evaluation set.

    Nothing is trained where there is nothing to explain (rules 1 to 4), and nothing is corrected where nothing can be
    or no reward is wrong (rules 5 and 6).

    Raises:
        InputError: an earlier stage is missing, a set of the task names a group that training never met, or no desired
            or no misbehaved outcome ever occurred.
    """
    run.require_trained()
    build, spec = BankBuilder(run, set_name, workers), run.task.verify
    clusters = _clusters_to_explain(build)
    if not clusters:
        build.write()
        return
    require_outcomes(run)
    named = _named_sets(build)  # first: what the task names must be there
    rule = build.decision(clusters[0]).rule  # 5 and 6 speak of the training: they apply to all clusters or to none
    if rule not in (_UNKNOWN_RULE, _NOTHING_WRONG_RULE) and wrong_groups(build.rewards):
        _correct(build, clusters, named)
    if rule == _UNKNOWN_RULE or spec.arbitrary:
        _search_arbitrary(build, clusters)
    if spec.coverage is not None:
        build.train([Mask(Order.NONE, variant=COVERAGE)])
    if run.task.biases and rule != _UNKNOWN_RULE:
        orders = (Order.NONE,) if rule == _NOTHING_WRONG_RULE else (Order.NONE, Order.ALL)
        masks = [Mask(order, variant=name) for name in run.task.biases for order in orders]
        build.train([mask if mask.order == Order.NONE else _everything(build, mask.variant) for mask in masks])
    build.write()


def _clusters_to_explain(build: BankBuilder) -> list[Cluster]:
    """Return the clusters of failures that recur; none under rules 1 to 4."""
    task, evaluated = build.task, build.evaluated
    whole = build.decision(evaluated.whole)
    if whole.of_set or not evaluated.failure_ids:
        log.info("verify %s: rule %d applies, nothing to train again", task.name, whole.rule)
        return []
    clusters = []
    for cluster in find_clusters(task, evaluated.attributed.sums, evaluated.failure_ids):
        if build.decision(cluster).rule > _NOTHING_TO_EXPLAIN:
            clusters.append(cluster)
        else:
            log.info("verify %s: cluster %d does not recur, nothing to train again", task.name, cluster.number)
    return clusters


def _named_sets(build: BankBuilder) -> list[Mask]:
    """Return the masks of the sets that the task names.

    Raises:
        InputError: one names a group that training never met.
    """
    masks = []
    for name, named in build.task.verify.sets.items():
        groups = build.task.groups_of(named, f"verify.sets.{name}")
        for group in sorted(groups.difference(build.groups)):
            raise InputError(
                f"verify.sets.{name}: the group `{group}` was given, expected groups ({build.task.group_by}) that "
                f"training met: {', '.join(build.groups[:5])}, ... ({len(build.groups)}).{nearest(group, build.groups)}"
            )
        masks.append(Mask(name, tuple(sorted(groups))))
    return masks


def _everything(build: BankBuilder, variant: str = "") -> Mask:
    return Mask(Order.ALL, tuple(sorted(wrong_groups(build.rewards))), variant=variant)


def _correct(build: BankBuilder, clusters: Sequence[Cluster], named: Sequence[Mask]) -> None:
    """Correct everything with as many seeds as decide; then nested sets, where correcting everything helps.

    Nested sets, in the order of the whole set and of each of several clusters, and their random control are verified
    only where correcting everything brings the misbehaviour rate below `1 - inner_share` of the uncorrected.
    """
    task = build.task
    if not build.train([_everything(build)]):
        log.warning(
            "verify %s: the budget of %s trainings is too small for any verdict: correcting everything takes %d",
            task.name, task.verify.budget, len(task.paired_seeds),
        )  # fmt: skip
    _add_seeds(build, clusters)
    build.train(named)
    every = clusters if len(clusters) == 1 else [build.evaluated.whole, *clusters]
    helped = {cluster: _orders(build, cluster) for cluster in every if _correction_helps(build, cluster)}
    sizes = nested_sizes(len(wrong_groups(build.rewards)), task.verify.points)
    masks = [
        _nested(cluster, name, orders[name], size)
        for size in sizes
        for name in (Order.ATTRIBUTION, Order.RANDOM)
        for cluster, orders in helped.items()
    ]
    build.train(list(dict.fromkeys(masks)))
    if task.verify.minimal is not None:
        for cluster, orders in helped.items():
            _search_minimal(build, cluster, orders, task.verify.minimal)


def _nested(cluster: Cluster, order: str, groups: Sequence[str], size: int) -> Mask:
    """Return the first groups of an order; attribution and the search are the cluster's own, the others are shared."""
    own = order in (Order.ATTRIBUTION, Order.ADAPTIVE) and cluster.selection is not None
    return Mask(order, tuple(groups[:size]), cluster=cluster.number if own else None)


def _orders(build: BankBuilder, cluster: Cluster) -> dict[str, list[str]]:
    """Return the wrong groups in every order in which they are corrected."""
    wrong = wrong_groups(build.rewards)
    error = {group: values[0] for group, values in group_means(build.rewards, ("error",)).items()}
    return {
        Order.ATTRIBUTION: attribution_order(build.evaluated.effects_of(cluster), wrong),
        Order.SIZE: sorted(wrong, key=lambda group: (-error[group], group)),
        Order.RANDOM: random_order(wrong),
    }


def _add_seeds(build: BankBuilder, clusters: Sequence[Cluster]) -> None:
    """Correct everything with more seeds of the ensemble, as long as those there are do not decide every verdict."""
    task = build.task
    while build.trained and any(build.decision(cluster).rule == _UNDECIDED_RULE for cluster in clusters):
        further = [seed for seed in task.seeds if seed not in build.seeds][:_SEEDS_ADDED]
        if not further:
            return
        log.info("verify %s: %d seeds do not decide, %d more are trained", task.name, len(build.seeds), len(further))
        if not build.train([_everything(build)], further):
            return  # the budget is spent


def _correction_helps(build: BankBuilder, cluster: Cluster) -> bool:
    before, after = build.evidence(cluster).paired()
    m0 = [rates.misbehaviour for rates in before if rates.misbehaviour is not None]
    m_all = [rates.misbehaviour for rates in after if rates.misbehaviour is not None]
    keep = 1 - build.task.verdict.inner_share
    return bool(m0 and m_all and np.mean(m_all) < keep * np.mean(m0))


def _search_minimal(build: BankBuilder, cluster: Cluster, orders: Mapping[str, Sequence[str]], level: float) -> None:
    """Verify ever smaller sets: first by bisection of the baselines' orders, then as everything measured suggests.

    The adaptive search begins with the smallest set that suffices in any order, and verifies no more sets than the
    bisection of the attribution order would from its nested sets.
    """
    while True:
        masks = []
        for name in (Order.SIZE, Order.RANDOM):
            low, high = _bounds(build, cluster, name, len(orders[name]), level)
            if high - low > 1:
                masks.append(_nested(cluster, name, orders[name], (low + high) // 2))
        if not masks:
            break  # all are known to a group
        if not build.train(masks):
            return  # the budget is spent
    low, high = _bounds(build, cluster, Order.ATTRIBUTION, len(orders[Order.ATTRIBUTION]), level)
    for _ in range((high - low).bit_length() - 1):
        groups = _next_adaptive(build, cluster, orders[Order.ATTRIBUTION], level)
        if groups is None or not build.train([_nested(cluster, Order.ADAPTIVE, groups, len(groups))]):
            return  # nothing smaller is left to try, or the budget is spent


def _bounds(build: BankBuilder, cluster: Cluster, order: str, groups: int, level: float) -> tuple[int, int]:
    """Return the largest verified size of an order below all that remove the misbehaviour, and the smallest that does.

    The smallest is 0 where not even correcting everything does.
    """
    bank = build.read().of_cluster(cluster.number, cluster.selection)
    verified = {groups: bank.members(Order.ALL)}
    for row in bank.masks.select(["order", "size", "variant"]).to_pylist():
        if row["order"] == order and not row["variant"]:
            verified[row["size"]] = bank.members(order, row["size"])
    rates = {size: bank.rates(members, build.task.outcomes) for size, members in verified.items()}
    high = min((size for size, by_seed in rates.items() if suffices(by_seed, level)), default=0)
    return max((size for size in verified if size < high), default=0), high


def _next_adaptive(build: BankBuilder, cluster: Cluster, order: Sequence[str], level: float) -> tuple[str, ...] | None:
    """Return the groups to correct next, from every corrective set of the bank; None: there is nothing to try."""
    bank, declared = build.read().of_cluster(cluster.number, cluster.selection), build.task.outcomes
    paid = {rates.seed: log_odds(rates.misbehaviour) for rates in bank.rates(bank.members(Order.NONE), declared)}
    before = {seed: odds for seed, odds in paid.items() if odds is not None}
    sets = {
        (row["order"], row["size"]): frozenset(row["groups"]).intersection(order)
        for row in bank.masks.to_pylist()
        if row["values"] is None and not row["variant"] and row["order"] != Order.NONE
    }
    measured, above = [], 0
    for (name, size), groups in sets.items():
        rates = bank.rates(bank.members(name, size), declared)
        odds = {each.seed: log_odds(each.misbehaviour) for each in rates}
        changes = tuple(after - before[s] for s, after in odds.items() if after is not None and s in before)
        measured.append(MeasuredSet(groups, changes, suffices(rates, level)))
        if name == Order.ADAPTIVE and not measured[-1].suffices:
            above = max(above, size)
    edge = log_odds(level)
    assert edge is not None
    taken = {size for name, size in sets if name in (Order.ATTRIBUTION, Order.ADAPTIVE)}
    return next_set(order, measured, edge - float(np.mean(list(before.values()))), above, taken)


def _search_arbitrary(build: BankBuilder, clusters: Sequence[Cluster]) -> None:
    """Verify nested sets of bounded edits against the misbehaviour; a placebo for each that removes it.

    Edits are predicted from all failures of the set, not of one cluster. Sizes double up to the share `few` of all
    groups; the last set is every edit that is predicted to help.
    """
    task, bounds = build.task, reward_bounds(build.rewards)
    units = read_table(build.run.folder.influence_path(build.evaluated.name, "units"))
    edits = bounded_edits(units.filter(pc.field("estimator") == estimator_of(task).name), bounds)
    helpful = sum(edit.effect < 0.0 and edit.change > 0.0 for edit in edits)
    if not helpful:
        return
    few = task.verdict.few * len(edits)
    sizes = sorted({max(1, int(few / 2**k)) for k in range(task.verify.points)})
    nested = [size for size in sizes if size < helpful]
    build.train([_arbitrary_mask(Order.ARBITRARY, edits, edits[:size], size) for size in (*nested, helpful)])
    evidence, thresholds = [build.evidence(cluster) for cluster in clusters], task.verdict.thresholds
    removing = {t.groups for e in evidence for t in e.arbitrary if removal(e, t.edited, thresholds).removes}
    placebos = [(size, placebo_edits(edits, size, bounds)) for size in sorted(removing)]
    build.train([_arbitrary_mask(Order.PLACEBO, edits, drawn, size) for size, drawn in placebos])


def _arbitrary_mask(order: str, every: Sequence[BoundedEdit], edits: Sequence[BoundedEdit], size: int) -> Mask:
    groups, values = tuple(edit.group for edit in edits), tuple(edit.value for edit in edits)
    edited, change = sum(edit.transitions for edit in edits), sum(edit.change for edit in edits)
    share = min(len(edits) / len(every), edited / sum(edit.transitions for edit in every))
    return Mask(order, groups, values, (edited, change, share), listed_size=size)
