"""The counterfactual bank while it is made: agents trained with edited rewards, one stack a piece of work.

Trained agents are kept, by what they were trained with: one bank serves all evaluation sets of a run, which only
play its agents, and more episodes are only played.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ...datasets.bank import Bank, read_bank
from ...datasets.errors import RunFolderError
from ...datasets.files.remote import exist
from ...datasets.files.store import (
    RunFolder,
    read_table,
    read_tensor_metadata,
    read_tensors,
    write_table,
    write_tensors,
)
from ...datasets.groups import Grouping
from ...datasets.learning import learning_rows
from ...datasets.manifest import digest
from ...datasets.outcomes import failure_ids
from ...datasets.plays import episode_count, episodes_at, with_earlier
from ...datasets.rewards import reward_summary
from ...datasets.schema import BANK_LEARNING, BANK_OUTCOMES, MASKS, Order, metadata_of, with_metadata
from ...datasets.words import counted
from ...reports.verdict.evidence import collect_evidence
from ...reports.verdict.rules import Decision, Evidence, decide
from ...training.agents.play import evaluate_policy
from ...training.agents.spec import load_policy
from ...training.edits.edit import RewardEdit
from ...training.retraining.arrays import Member
from ...training.retraining.stack import members_at_once, train_members
from ..runs.clusters import Cluster
from ..runs.groups import load_grouping
from ..runs.run import Run
from ..runs.task import Task
from ..workers.pool import Workers
from .train import training_plays

log = logging.getLogger("aitia")
_PLAY_COLUMNS = ("part", "episode", "repeat", "outcome")


@dataclass(frozen=True)
class Mask:
    """What is edited for an agent of the bank, and which variant of the task it is trained on.

    Attributes:
        order: an `Order`, or the name of a set of the task's.
        groups: the groups it edits (`all` corrects every transition, also of groups not listed).
        values: of arbitrary edits, what each group pays; None: as intended.
        units: of arbitrary edits, transitions changed, sum of |dr|, and share (see `ArbitraryTrial`).
        variant: a bias of the task, or `coverage`; empty: the task as it is.
        beside: of a placebo, the size of the set that it stands beside.
        cluster: of an attribution order, the one of several clusters of failures that it is for.
    """

    order: str
    groups: tuple[str, ...] = ()
    values: tuple[float, ...] | None = None
    units: tuple[float, float, float] | None = None
    variant: str = ""
    beside: int | None = None
    cluster: int | None = None

    @property
    def size(self) -> int:
        """The size that it is known by."""
        return len(self.groups) if self.beside is None else self.beside

    def edit(self, grouping: Grouping, first: RewardEdit | None = None) -> RewardEdit:
        """Return the reward edit of the mask, made after what the run itself was trained with (`first`)."""
        if self.order == Order.ALL:
            return RewardEdit(None, grouping, first=first)
        values = None if self.values is None else dict(zip(self.groups, self.values, strict=True))
        return RewardEdit(frozenset(self.groups), grouping, values, first)

    def member(self, seed: int) -> str:
        """Return the name of the agent trained with this mask and seed."""
        size = "" if self.order in (Order.ALL, Order.NONE) else f"-{self.size:05d}"
        cluster = "" if self.cluster is None else f"-cluster={self.cluster}"
        return f"{self.variant}{'/' if self.variant else ''}{self.order}{size}{cluster}-seed={seed}"


@dataclass(frozen=True)
class MemberPiece:
    """One agent of the bank: trained with a mask, then played."""

    root: Path
    task: Task
    set_name: str
    mask: Mask
    seed: int

    @property
    def path(self) -> Path:
        """The finished piece: its plays; clusters that correct the same groups share it."""
        mask, task = replace(self.mask, cluster=None), self.task.variant(self.mask.variant)
        envs = [task.training_env, task.evaluation_env(self.set_name)]
        changed = [task.agent.model_dump(mode="json"), *([env.id, dict(env.kwargs)] for env in envs)]
        key = digest([self._edited, [*changed, self.task.initial_seed(0, mask.variant)] if mask.variant else None])[:12]
        folder = RunFolder(self.root).parts_folder("bank", self.set_name)
        return folder / f"{mask.member(self.seed).replace('/', '+')}-{key}.parquet"

    @property
    def policy_path(self) -> Path:
        """The trained agent, named by what it was trained with: evaluation sets and orders have no part in it."""
        task, variant = self.task.variant(self.mask.variant), self.mask.variant
        trained = [task.agent.model_dump(mode="json"), task.training_env.id, dict(task.training_env.kwargs)]
        key = digest([self._edited, *trained, self.task.initial_seed(self.seed, variant)])[:16]
        return RunFolder(self.root).parts_folder("policies") / f"seed={self.seed}-{key}.safetensors"

    @property
    def _edited(self) -> list[object] | None:
        """What its rewards are edited by; None: everything is corrected."""
        paid = self.mask.values or (None,) * len(self.mask.groups)
        whole = self.mask.order == Order.ALL
        return None if whole else [self.task.group_by, sorted(zip(self.mask.groups, paid, strict=True))]


class BankBuilder:
    """The bank of an evaluation set, in the making; finished members are never trained again.

    Attributes:
        grouping: what a group is.
        rewards: the reward summary of each seed's training.
        episodes: plays of the ensemble and of the random policy.
        failures: ids of the failures.
    """

    def __init__(self, run: Run, set_name: str, workers: Workers) -> None:
        run.task.evaluation_env(set_name)
        self.run, self.set_name, self.task = run, set_name, run.task
        self._workers, self._done = workers, list[MemberPiece]()
        self.grouping = load_grouping(run.folder, run.task)
        self.rewards = [reward_summary(run.folder, seed, self.grouping) for seed in run.task.seeds]
        self.episodes = read_table(run.folder.evaluation_path(set_name, "episodes"))
        self.failures = failure_ids(self.task.outcomes.failures(self.episodes))
        played, wanted = episode_count(self.episodes), run.task.evaluation.episodes
        if played < wanted:
            raise RunFolderError(
                f"the set `{set_name}` of {run.folder.root} was played with {counted(played, 'episode')}, the "
                f"task has {wanted}: "
                f"run `aitia evaluate {run.folder.root} --set {set_name}` first, then `aitia attribute`"
            )

    @property
    def trained(self) -> int:
        """Members trained."""
        return len(self._done)

    @property
    def seeds(self) -> set[int]:
        """Seeds of the members trained."""
        return {piece.seed for piece in self._done}

    @cached_property
    def groups(self) -> list[str]:
        """Every group that some seed's training met."""
        return sorted({group for table in self.rewards for group in table["group"].to_pylist()})

    def train(self, masks: Sequence[Mask], seeds: Sequence[int] | None = None) -> bool:
        """Train the agents of masks, as many whole masks as the budget allows; return whether any was added.

        Args:
            masks: what to train; those that are trained already cost nothing.
            seeds: of each mask; None: the task's paired seeds.
        """
        task, seeds = self.task, self.task.paired_seeds if seeds is None else seeds
        if (budget := task.verify.budget) is not None:
            allowed = max(budget - self.trained, 0) // len(seeds)  # a mask without all seeds could not be compared
            if allowed < len(masks):
                log.warning("verify %s: the budget of %d trainings ends the bank early", task.name, budget)
            masks = masks[:allowed]
        pieces = [
            MemberPiece(self.run.folder.root, task, self.set_name, mask, seed) for mask in masks for seed in seeds
        ]
        by_path = {piece.path: piece for piece in pieces}
        waiting = [piece for path, piece in by_path.items() if episodes_at(path) < task.evaluation.episodes]
        there = exist([piece.policy_path for piece in waiting])
        self._train([piece for piece, done in zip(waiting, there, strict=True) if not done])
        self._workers.map(_play_member, waiting, f"verify {task.name}, plays")
        self._done.extend(pieces)
        self.write()
        return bool(pieces)

    def _train(self, pieces: Sequence[MemberPiece]) -> None:
        """Train the agents of members; those that masks have in common once."""
        parts, name = self.run.folder.parts_folder, self.task.name
        if pieces and parts("bank").exists() and not parts("policies").exists():
            log.info("verify %s: an earlier version kept no trained agents; those needed are trained again, once", name)
        for piece in pieces:
            for plays in (piece.path, piece.policy_path.with_suffix(".parquet")):
                plays.unlink(missing_ok=True)  # of an agent that is no more
        distinct = {piece.policy_path: piece for piece in pieces}.values()
        ordered = sorted(distinct, key=lambda piece: piece.mask.variant)  # a stack is of one variant
        together = [
            stack
            for variant, found in groupby(ordered, lambda piece: piece.mask.variant)
            for stack in self._stacks(self.task.variant(variant), list(found))
        ]
        self._workers.map(_train_members, together, f"verify {name}")

    def _stacks(self, task: Task, pieces: Sequence[MemberPiece]) -> list[Sequence[MemberPiece]]:
        at_once, reason = members_at_once(task.agent, task.training_env)
        if reason is not None:
            log.info("verify %s: agents are trained one by one, because %s", task.name, reason)
        return [pieces[i : i + at_once] for i in range(0, len(pieces), at_once)]

    def read(self) -> Bank:
        """Return the bank as written."""
        found = read_bank(self.run.folder, self.set_name, self.task.seeds, self.task.evaluation.most_plays)
        assert found is not None
        return found

    def evidence(self, cluster: Cluster) -> Evidence:
        """Return what the verdict of a cluster of failures depends on, so far."""
        bank = self.read().of_cluster(cluster.number, cluster.selection) if self._done else None
        return collect_evidence(self.episodes, self.rewards, bank, self.task.outcomes, cluster.selection)

    def decision(self, cluster: Cluster) -> Decision:
        """Return the verdict that the bank gives a cluster of failures so far."""
        return decide(self.evidence(cluster), self.task.verdict.thresholds)

    def write(self) -> None:
        """Write masks and outcomes: the ensemble itself as mask `none`, then every member trained."""
        none = Mask(Order.NONE)
        seeds = sorted({*self.task.paired_seeds, *self.seeds}) if self._done else []
        masks = [(none, seed) for seed in seeds] + [(piece.mask, piece.seed) for piece in self._done]
        plays = [
            (none.member(seed), self.episodes.filter(pc.field("seed") == seed).select(_PLAY_COLUMNS)) for seed in seeds
        ]
        found = {piece.mask.member(piece.seed): read_table(piece.path) for piece in self._done}
        corrected = {member: _corrected(table) for member, table in found.items()}
        learned = [learning_rows(member, _outcomes(table)) for member, table in found.items()]
        plays += [(member, table.replace_schema_metadata(None)) for member, table in found.items()]
        rows = [
            {
                "member": mask.member(seed),
                "seed": seed,
                "order": mask.order,
                "size": mask.size,
                "groups": list(mask.groups),
                "values": mask.values,
                **dict(zip(("edited", "change", "share"), mask.units or (None,) * 3, strict=True)),
                "variant": mask.variant,
                "cluster": mask.cluster,
                "corrected": corrected.get(mask.member(seed), 0),
            }
            for mask, seed in masks
        ]
        outcomes = [
            table.add_column(0, "member", pa.array([member] * table.num_rows, pa.string())).cast(BANK_OUTCOMES)
            for member, table in plays
        ]
        folder = self.run.folder
        outcomes_path = folder.bank_path(self.set_name, "outcomes")
        write_table(outcomes_path, pa.concat_tables([BANK_OUTCOMES.empty_table(), *outcomes]))
        learning = pa.concat_tables([BANK_LEARNING.empty_table(), *learned])
        write_table(folder.bank_path(self.set_name, "learning"), learning)
        write_table(folder.bank_path(self.set_name, "masks"), pa.Table.from_pylist(rows, schema=MASKS))


def _train_members(pieces: Sequence[MemberPiece]) -> None:
    """Train several members of one variant together, and keep them."""
    pieces = [piece for piece in pieces if not piece.policy_path.exists()]  # a worker that was lost had finished some
    if not pieces:
        return
    task, variant = pieces[0].task, pieces[0].mask.variant
    grouping, varied = load_grouping(RunFolder(pieces[0].root), task), task.variant(variant)
    first = varied.training_edit
    members = [
        Member(piece.seed, piece.mask.edit(grouping, first), task.initial_seed(piece.seed, variant)) for piece in pieces
    ]
    for piece, trained in zip(pieces, train_members(varied.agent, varied.training_env, members), strict=True):
        about = {"corrected": str(trained.corrected), "outcomes": json.dumps(trained.outcomes)}
        write_tensors(piece.policy_path, trained.policy.state_dict(), about)


def _play_member(piece: MemberPiece) -> None:
    """Let a trained member play the test and training episodes that it has not played yet."""
    varied, first = piece.task.variant(piece.mask.variant), episodes_at(piece.path)
    spec = varied.evaluation
    if first >= spec.episodes:
        return  # by a worker that was lost when it had finished
    policy = load_policy(varied.agent, varied.training_env, read_tensors(piece.policy_path))
    later, _ = evaluate_policy(policy, varied.evaluation_env(piece.set_name), spec, piece.seed, "test", first=first)
    test = with_earlier(piece.path, later.select(_PLAY_COLUMNS), first)
    kept = piece.policy_path.with_suffix(".parquet")
    train = training_plays(kept, policy, varied.training_env, spec, piece.seed).select(_PLAY_COLUMNS)
    about = read_tensor_metadata(piece.policy_path)
    told = {name: value for name, value in about.items() if name in ("corrected", "outcomes")}
    write_table(piece.path, with_metadata(pa.concat_tables([test, train]), told))


def _corrected(plays: pa.Table) -> int | None:
    """Return how many transitions a member's edit changed while it was trained."""
    found = metadata_of(plays.schema).get("corrected")
    return None if found is None else int(found)


def _outcomes(plays: pa.Table) -> dict[str, list[int]]:
    """Return how a member's training episodes ended, by outcome and window; nothing of an earlier version."""
    found: dict[str, list[int]] = json.loads(metadata_of(plays.schema).get("outcomes", "{}"))
    return found
