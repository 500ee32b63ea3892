"""The counterfactual bank while it is made: which agents are in it, how they play, and its tables.

One bank serves all evaluation sets of a run, which only play its agents (members.py); more episodes are only played.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ...datasets.bank import Bank, read_bank
from ...datasets.errors import RunFolderError
from ...datasets.files.store import read_table, read_tensor_metadata, read_tensors, write_table
from ...datasets.learning import learning_rows
from ...datasets.plays import episode_count, episodes_at, with_earlier
from ...datasets.rewards import reward_summary
from ...datasets.schema import BANK_LEARNING, BANK_OUTCOMES, MASKS, Order, metadata_of, with_metadata
from ...datasets.words import counted
from ...reports.verdict.evidence import collect_evidence
from ...reports.verdict.rules import Decision, Evidence, decide
from ...training.agents.play import evaluate_policy
from ...training.agents.spec import load_policy
from ..runs.clusters import Cluster
from ..runs.run import Run
from ..workers.pool import Workers
from .members import Mask, MemberPiece, train_agents
from .train import training_plays

log = logging.getLogger("aitia")
_PLAY_COLUMNS = ("part", "episode", "repeat", "outcome")


class BankBuilder:
    """The bank of an evaluation set, in the making; finished members are never trained again.

    Attributes:
        run, task: whose bank it is.
        evaluated: the evaluation set.
        rewards: the reward summary of each seed's training.
    """

    def __init__(self, run: Run, set_name: str, workers: Workers) -> None:
        self.run, self.task, self.evaluated = run, run.task, run[set_name]
        self.rewards = [reward_summary(run.folder, seed, run.grouping) for seed in run.task.seeds]  # kept where missing
        self._workers, self._done, self._played = workers, list[MemberPiece](), dict[Path, pa.Table]()
        played, wanted = episode_count(self.evaluated.episodes), run.task.evaluation.episodes
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
        root, name = self.run.folder.root, self.evaluated.name
        pieces = [MemberPiece(root, task, name, mask, seed) for mask in masks for seed in seeds]
        by_path = {piece.path: piece for piece in pieces}
        waiting = [piece for path, piece in by_path.items() if episodes_at(path) < task.evaluation.episodes]
        parts, label = self.run.folder.parts_folder, f"verify {task.name}"
        if waiting and parts("bank").exists() and not parts("policies").exists():
            log.info("%s: an earlier version kept no trained agents; those needed are trained again, once", label)
        train_agents(waiting, self._workers, label)
        self._workers.map(_play_member, waiting, f"{label}, plays")
        self._done.extend(pieces)
        self.write()
        return bool(pieces)

    def read(self) -> Bank:
        """Return the bank as written."""
        bank = read_bank(self.run.folder, self.evaluated.name, self.task.seeds, self.task.evaluation.most_plays)
        assert bank is not None
        return bank

    def evidence(self, cluster: Cluster) -> Evidence:
        """Return what the verdict of a cluster of failures depends on, so far."""
        bank = self.read().of_cluster(cluster.number, cluster.selection) if self._done else None
        return collect_evidence(self.evaluated.episodes, self.rewards, bank, self.task.outcomes, cluster.selection)

    def decision(self, cluster: Cluster) -> Decision:
        """Return the verdict that the bank gives a cluster of failures so far."""
        return decide(self.evidence(cluster), self.task.verdict.thresholds)

    def write(self) -> None:
        """Write the tables of the bank: the run's own agents under the order `none`, then every member trained."""
        none, rows = Mask(Order.NONE), list[dict[str, object]]()
        outcomes, learned = [BANK_OUTCOMES.empty_table()], [BANK_LEARNING.empty_table()]
        for seed in sorted({*self.task.paired_seeds, *self.seeds}) if self._done else []:
            rows.append(_row(none, seed, 0))
            plays = self.evaluated.episodes.filter(pc.field("seed") == seed).select(_PLAY_COLUMNS)
            outcomes.append(_of_member(none.member(seed), plays))
        for piece in self._done:
            if piece.path not in self._played:
                self._played[piece.path] = read_table(piece.path)
            plays, member = self._played[piece.path], piece.mask.member(piece.seed)
            about = metadata_of(plays.schema)  # an earlier version wrote neither of the two
            rows.append(_row(piece.mask, piece.seed, int(about["corrected"]) if "corrected" in about else None))
            outcomes.append(_of_member(member, plays.replace_schema_metadata(None)))
            learned.append(learning_rows(member, json.loads(about.get("outcomes", "{}"))))
        masks = pa.Table.from_pylist(rows, schema=MASKS)
        tables = {"outcomes": pa.concat_tables(outcomes), "learning": pa.concat_tables(learned), "masks": masks}
        for name, table in tables.items():
            write_table(self.run.folder.bank_path(self.evaluated.name, name), table)


def _row(mask: Mask, seed: int, corrected: int | None) -> dict[str, object]:
    """Return the row of a member in the table of masks.

    Args:
        mask: of the member.
        seed: its seed.
        corrected: transitions whose reward the edit changed while it was trained; None: an earlier version did not
            count them.
    """
    units = dict(zip(("edited", "change", "share"), mask.units or (None,) * 3, strict=True))
    return {
        "member": mask.member(seed), "seed": seed, "order": mask.order, "size": mask.size, "groups": list(mask.groups),
        "values": mask.values, **units, "variant": mask.variant, "cluster": mask.cluster, "corrected": corrected,
    }  # fmt: skip


def _of_member(member: str, plays: pa.Table) -> pa.Table:
    """Return the episodes that a member played, as rows of the bank's table of outcomes."""
    return plays.add_column(0, "member", pa.array([member] * plays.num_rows, pa.string())).cast(BANK_OUTCOMES)


def _play_member(piece: MemberPiece) -> None:
    """Play the test and training episodes that a trained member has not played yet."""
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
    counts = {name: value for name, value in about.items() if name in ("corrected", "outcomes")}
    write_table(piece.path, with_metadata(pa.concat_tables([test, train]), counts))
