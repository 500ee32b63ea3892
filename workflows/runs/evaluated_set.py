"""An evaluation set of a run: its tables, each read once when first asked for, and what follows from them.

Stages and notebooks ask the same object, so a notebook's verdict is the report's. Nothing here writes, and nothing that
the task names is imported.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc

from ...attribution.effects.order import EffectTable, at_own_damping, effect_table
from ...attribution.estimators.registry import Chosen
from ...attribution.targets.steps import Targets, make_targets
from ...datasets.bank import Bank, read_bank
from ...datasets.errors import InputError, nearest
from ...datasets.files.remote import exist
from ...datasets.files.store import RunFolder, read_table, read_table_schema, require_rows
from ...datasets.influence import attribution_id, covered, covered_by_all
from ...datasets.learning import bank_outcomes
from ...datasets.outcomes import failure_ids
from ...datasets.plays import read_plays
from ...datasets.schema import (
    DIRECTION_EFFECTS,
    SET_EFFECTS,
    WINDOW_EFFECTS,
    current_top_transitions,
    metadata_of,
)
from ...datasets.words import counted
from ...reports.measures.learning import Learning, find_learning
from ...reports.measures.timeline import Timeline
from ...reports.pages.findings import SetFindings, deciding, find_for_set, set_verdict
from .answers import (
    Card,
    SetVerdict,
    Shown,
    by_group,
    by_transition,
    by_window,
    curve_table,
    failures_table,
    rates_table,
)
from .clusters import Cluster, find_clusters, whole_set
from .recorded import recorded_estimator
from .task import Task

if TYPE_CHECKING:
    from .run import Run

INFLUENCE_TABLES = ("groups", "transitions", "windows", "null", "units", "direction", "scores")
By = Literal["group", "window", "transition"]
_EFFECT_COLUMNS = ("failure", "group", "seed", "lambda", "effect", "estimator")  # all that orders and clusters need


class Attributed(NamedTuple):
    """Influence of one estimator on all failures: `sums` of groups at the default damping, and top `transitions`."""

    sums: pa.Table
    transitions: pa.Table


class EvaluatedSet(Shown):
    """An evaluation set of a run (docs/library.md).

    Args:
        run: the run.
        name: of the set.

    Raises:
        TaskError: the task has no such set.
    """

    def __init__(self, run: Run, name: str) -> None:
        run.task.evaluation_env(name)
        self.run, self.name = run, name

    # What a notebook asks for

    @property
    def failures(self) -> pa.Table:
        """The failures: `failure, seed, episode, context, outcome, cluster, verdict`.

        `cluster` and `verdict` are null before `aitia attribute` has attributed all of them.
        """
        clusters: dict[str, tuple[int, str]] = {}
        if self._path("groups").exists() and self._why_not_current(self._tables, self.failure_ids) is None:
            for cluster in self.clusters:
                verdict = str(self.findings_of(cluster).decision.verdict)
                clusters |= dict.fromkeys(cluster.failures, (cluster.number, verdict))
        return failures_table(self.failing_episodes, clusters)

    def influence(self, by: By = "group", failure: str | None = None) -> pa.Table:
        """Return whose rewards are predicted to be responsible, the most responsible (smallest effect) first.

        An effect is what correcting the rewards is predicted to do: negative means less of the misbehaviour. Of the
        estimator that the verdict rests on. Without an intended reward groups and windows have no rows.

        Args:
            by: `group`: a row a group (`group, effect, low, high, transitions, reward_events`), means over seeds with
                the effect's 95% interval; `window`: `seed, window, effect`; `transition`: the most influential
                transitions of a failure, as in `influence/SET/transitions.parquet`, and their `effect`.
            failure: id of a failure; None: means over all failures.

        Raises:
            InputError: no such failure, or `aitia attribute` has not run, or is out of date.
            ValueError: `by` is something else, or a transition without a failure.
        """
        if by not in get_args(By):
            raise ValueError(f"by={by!r} was given, expected {', '.join(get_args(By))}")
        if failure is not None:
            self.require_failures([failure])
        elif by == "transition":
            example = f" such as failure={self.failure_ids[0]!r}" if self.failure_ids else ""
            raise ValueError(
                f"by='transition' was given without a failure, expected one{example}: each has its own most "
                "influential transitions"
            )
        tables = (
            self.attributed if failure is None else self._attributed_of([failure])
        )  # windows' are checked with them
        mine = pc.scalar(True) if failure is None else pc.field("failure").cast(pa.string()) == failure
        if by == "group":
            effects = self.effects if failure is None else _effects_on(tables.sums, [failure])
            return by_group(effects, self.run.rewards)
        if by == "window":
            return by_window(self.window_effects.filter(mine))
        return by_transition(tables.transitions.filter(mine))

    @cached_property
    def verdict(self) -> SetVerdict:
        """The verdict, computed from the tables as `aitia report` does.

        Raises:
            InputError: an earlier stage is missing.
        """
        counts = Counter(
            str(self.findings_of(cluster).decision.verdict) for cluster in self.clusters for _ in cluster.failures
        )
        label = set_verdict(self.findings.decision, counts)
        decision = deciding(self.findings, self.cluster_findings, label).decision
        share = self.findings.decision.outer_share
        return SetVerdict(label, decision.rule, decision.basis, share, decision.reasons)

    @property
    def curve(self) -> pa.Table:
        """The correction curve, a row a verified set of corrections, as in `summary.json`; no rows before `verify`."""
        return curve_table(self.findings.curve)

    @property
    def rates(self) -> pa.Table:
        """Rates of misbehaviour, competence and desired outcomes, as paid and all corrected, as in `summary.json`."""
        return rates_table(self.findings)

    @property
    def stages(self) -> list[str]:
        """What was done with the set, in words."""
        folder = self.run.folder
        paths = {
            "evaluated": folder.evaluation_path(self.name, "episodes"),
            "attributed": self._path("groups"),
            "verified": folder.bank_path(self.name, "masks"),
            "validated": folder.validation_path(self.name),
            "reported": folder.reports_folder(self.name) / "summary.json",
        }
        return [name for name, there in zip(paths, exist(list(paths.values())), strict=True) if there]

    # Tables

    @cached_property
    def episodes(self) -> pa.Table:
        """Episodes of the agents and of the random policy (`EPISODES`)."""
        task = self.run.task
        return read_plays(self.run.folder, self.name, task.outcomes, task.evaluation.most_plays)

    @cached_property
    def steps(self) -> pa.Table:
        """Steps of the test episodes, repeat 0."""
        return read_table(self.run.folder.evaluation_path(self.name, "steps"))

    @cached_property
    def references(self) -> pa.Table:
        """Episodes of the environment's reference solvers (`REFERENCES`)."""
        path = self.run.folder.evaluation_path(self.name, "references")
        return require_rows(path, read_table(path))

    @cached_property
    def failing_episodes(self) -> pa.Table:
        """Rows of `episodes` that are failures, sorted by seed and episode."""
        return self.run.task.outcomes.failures(self.episodes)

    @cached_property
    def failure_ids(self) -> list[str]:
        """Ids of the failures, in the order of `failing_episodes`."""
        return failure_ids(self.failing_episodes)

    @cached_property
    def bank(self) -> Bank | None:
        """The counterfactual bank; None before `aitia verify`."""
        task = self.run.task
        return read_bank(self.run.folder, self.name, task.seeds, task.evaluation.most_plays)

    @cached_property
    def learning(self) -> Learning | None:
        """Outcomes over training, as paid and corrected; None: no training episode ended."""
        run = self.run
        windows = {seed: run.folder.window_count(seed) for seed in run.task.seeds}
        learned = bank_outcomes(run.folder, self.name)
        return find_learning(run.training_outcomes, self.bank, learned, run.task.outcomes, windows)

    # Influence, of the estimator that the verdict rests on

    @cached_property
    def estimator(self) -> Chosen:
        """The estimator that the verdict rests on, and why."""
        return recorded_estimator(self.run.folder, self.run.manifest, self.name)

    @cached_property
    def attributed(self) -> Attributed:
        """Group sums and top transitions of all failures.

        Raises:
            InputError: some were not attributed, or another target, other seeds or another grouping were.
        """
        return self._attributed_of(self.failure_ids)

    def _attributed_of(self, failures: Sequence[str]) -> Attributed:
        """Return the tables, if they cover some failures, as the task asks for them now.

        Raises:
            InputError: they do not.
        """
        tables = self._tables
        if reason := self._why_not_current(tables, failures):
            raise InputError(reason)
        return tables

    @cached_property
    def _tables(self) -> Attributed:
        own = pc.field("estimator") == self.estimator.name
        sums = read_table(self._path("groups"), _EFFECT_COLUMNS)
        top = current_top_transitions(read_table(self._path("transitions"))).filter(own)
        return Attributed(at_own_damping(sums.filter(own)), top)

    @cached_property
    def effects(self) -> EffectTable:
        """Predicted effects of correcting each group on each failure."""
        return effect_table(self.attributed.sums)

    def effects_on(self, failures: Sequence[str]) -> EffectTable:
        """Return predicted effects of correcting each group on some of the failures, whose mean counts."""
        return _effects_on(self.attributed.sums, failures)

    @cached_property
    def window_effects(self) -> pa.Table:
        """Effects of windows (`WINDOW_EFFECTS`); no rows where an earlier version attributed."""
        path = self._path("windows")
        return self._own_rows("windows") if path.exists() else WINDOW_EFFECTS.empty_table()

    @cached_property
    def null_sums(self) -> pa.Table:
        """Group sums of permuted influence (`NULL_EFFECTS`)."""
        return self._own_rows("null")

    @property
    def scores_path(self) -> Path:
        """File of the mean scores of training transitions (`MEAN_SCORES`)."""
        return self._path("scores")

    @property
    def attribution_id(self) -> str:
        """Digest of what the estimator that the verdict rests on attributed, and in which unit."""
        key = self.run.manifest.attribution or ""
        return attribution_id(self._path("groups"), self._path("masses"), key, self.estimator.name)

    def set_effects(self, cluster: Cluster) -> dict[str, float] | None:
        """Return the predicted effect of each correction set of the bank on a cluster, by member, where it is known.

        None: effects add up (of version 0.1), so no table of sets is needed.
        """
        path = self.run.folder.bank_path(self.name, "sets")
        if not self._path("masses").exists():
            return None
        if not path.exists() or metadata_of(read_table_schema(path)).get("of") != self.attribution_id:
            return {}
        number = pc.field("cluster")
        own = number.is_null() if cluster.selection is None else number == cluster.number
        rows = read_table(path, SET_EFFECTS.names).cast(SET_EFFECTS)
        rows = rows.filter(own & (pc.field("estimator") == self.estimator.name) & pc.is_finite(pc.field("effect")))
        return dict(zip(rows["member"].to_pylist(), rows["effect"].to_pylist(), strict=True))

    @cached_property
    def direction_effects(self) -> pa.Table:
        """Effects with the critic corrected too (`DIRECTION_EFFECTS`); no rows where an earlier version attributed."""
        path = self._path("direction")
        if not path.exists():
            return DIRECTION_EFFECTS.empty_table()
        rows = read_table(path, DIRECTION_EFFECTS.names).cast(DIRECTION_EFFECTS)
        return rows.filter((pc.field("estimator") == self.estimator.name) & pc.is_finite(pc.field("effect")))

    def other_effects(self, estimator: str, failures: Sequence[str]) -> dict[str, float] | None:
        """Return another estimator's mean effect of each group; None where it did not attribute all of the failures."""
        covers = covered(self._path("groups"), self.run.manifest.attribution or "") or {}
        if not failures or not set(failures) <= set(covers.get(estimator, ())):
            return None
        rows = read_table(self._path("groups"), _EFFECT_COLUMNS).filter(pc.field("estimator") == estimator)
        return _effects_on(at_own_damping(rows), failures).mean()

    @cached_property
    def timeline(self) -> Timeline:
        """Influence over training time."""
        return Timeline(self.window_effects)

    # Clusters of failures, and what was measured of each

    @cached_property
    def whole(self) -> Cluster:
        """All failures as one cluster, for which every test episode counts."""
        return whole_set(self.failure_ids)

    @cached_property
    def findings(self) -> SetFindings:
        """What was measured of the whole set."""
        return self._find(self.whole)

    @cached_property
    def clusters(self) -> list[Cluster]:
        """The clusters of failures that have a verdict each, the largest first; often one, `whole`; none: no failures.

        Raises:
            InputError: some failures were not attributed, where that decides.
        """
        if not self.failure_ids:
            return []
        if self.findings.decision.of_set:
            return [self.whole]
        split = find_clusters(self.run.task, self.attributed.sums, self.failure_ids)
        return split if len(split) > 1 else [self.whole]

    @cached_property
    def cluster_findings(self) -> dict[int, SetFindings]:
        """What was measured of each cluster, by its number."""
        return {c.number: self.findings if c is self.whole else self._find(c) for c in self.clusters}

    def findings_of(self, cluster: Cluster) -> SetFindings:
        """Return what was measured of one of the clusters, or of the whole set."""
        return self.findings if cluster is self.whole else self.cluster_findings[cluster.number]

    def bank_of(self, cluster: Cluster) -> Bank | None:
        """Return the bank as a cluster of failures sees it; None before `aitia verify`."""
        return None if self.bank is None else self.bank.of_cluster(cluster.number, cluster.selection)

    def effects_of(self, cluster: Cluster) -> EffectTable:
        """Return predicted effects of correcting each group on the failures of a cluster, or on all."""
        return self.effects if cluster.selection is None else self.effects_on(cluster.failures)

    def _find(self, cluster: Cluster) -> SetFindings:
        task = self.run.task
        return find_for_set(
            self.episodes, self.references, self.run.rewards, self.bank_of(cluster), task.outcomes,
            task.verdict.thresholds, task.group_by, task.verify.minimal, list(task.biases), cluster.selection,
        )  # fmt: skip

    def require_failures(self, names: Sequence[str]) -> None:
        """Check that the set has failures of these ids.

        Raises:
            InputError: it has not, with the nearest id.
        """
        known, there = self.failure_ids, frozenset(self.failure_ids)
        for name in names:
            if name not in there:
                raise InputError(
                    f"the failure {name} was given; {self.run.folder.root} has {counted(len(known), 'failure')} in set "
                    f"`{self.name}` (ids are SEED-EPISODE, such as {known[0] if known else '0-3'})."
                    f"{nearest(name, known)}"
                )

    def _why_not_current(self, tables: Attributed, failures: Sequence[str]) -> str | None:
        """Return why influence tables do not cover failures as the task asks for them now; None where they do."""
        key = self.run.manifest.attribution
        again = f"`aitia attribute {self.run.folder.root} --set {self.name}`"
        known = {  # group sums, or, where no group is wrong, top transitions
            name for table in tables for name in pc.unique(table["failure"].cast(pa.string())).to_pylist()
        }
        if missing := [name for name in failures if name not in known]:
            return (
                f"{len(missing)} of {counted(len(failures), 'failure')} were not attributed (the first is "
                f"{missing[0]}); run {again} first"
            )
        paths = [path for name in INFLUENCE_TABLES if (path := self._path(name)).exists()]
        done = covered_by_all(paths, key, self.estimator.name) if key is not None else frozenset(failures)
        if done is None or not done.issuperset(failures):
            return (
                f"the influence tables of set `{self.name}` are out of date: they were made with another target, other "
                "seeds, another group_by or another version of aitia than the task of the run has now, or not all of "
                f"them were finished. Run {again} again"
            )
        return None

    def _path(self, table: str) -> Path:
        return self.run.folder.influence_path(self.name, table)

    def _own_rows(self, table: str) -> pa.Table:
        return read_table(self._path(table)).filter(pc.field("estimator") == self.estimator.name)

    @property
    def in_a_line(self) -> str:
        """Failures, verdict and stages, for the run's card."""
        try:
            share = self.verdict.outer_share.as_percent()
            said = f"{counted(len(self.failure_ids), 'failure')}; {self.verdict.label}, outer share {share}"
        except InputError:  # before a stage, or a damaged table: its own card says
            said = "no verdict yet"
        return f"{said} ({', '.join(self.stages)})"

    @property
    def card(self) -> Card:
        """How it shows itself; computes verdicts."""
        lines = {"done": ", ".join(self.stages) or "nothing yet"}
        try:
            lines["failures"] = str(len(self.failure_ids))
            lines["failures"] += f" in {counted(len(self.clusters), 'cluster')}"
            lines |= self.verdict.card.lines
        except InputError as error:
            lines["verdict"] = f"not yet: {error}"
        return Card(f"Evaluation set {self.name} of {self.run.task.name}", lines)


def _effects_on(sums: pa.Table, failures: Sequence[str]) -> EffectTable:
    names = sums["failure"].cast(pa.string())  # a dictionary would still hold all failures, those left out as zero
    sums = sums.set_column(sums.column_names.index("failure"), "failure", names)
    return effect_table(sums.filter(pc.field("failure").isin(list(failures))))


def load_targets(folder: RunFolder, task: Task, set_name: str, failures: Sequence[str]) -> Targets:
    """Collect the targets of failures from the tables of a run, in the order of the episodes table; for workers."""
    episodes = task.outcomes.failures(read_table(folder.evaluation_path(set_name, "episodes")))
    steps = read_table(folder.evaluation_path(set_name, "steps"))
    wanted = frozenset(failures)
    keep = pa.array([name in wanted for name in failure_ids(episodes)], pa.bool_())
    return make_targets(steps, episodes.filter(keep), task.target)
