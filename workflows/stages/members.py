"""Agents trained again with edited rewards: those of the counterfactual bank, and of validation's random sets.

Trained agents are kept, by what they were trained with: one agent serves every evaluation set and order that asks for
the same edit.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from ...datasets.files.remote import exist
from ...datasets.files.store import RunFolder, write_tensors
from ...datasets.groups import Grouping
from ...datasets.manifest import digest
from ...datasets.schema import Order
from ...training.edits.edit import RewardEdit
from ...training.retraining.arrays import Member
from ...training.retraining.stack import members_at_once, train_members
from ..runs.groups import load_grouping
from ..runs.task import Task
from ..workers.pool import Workers

log = logging.getLogger("aitia")


@dataclass(frozen=True)
class Mask:
    """What is edited for an agent, and which variant of the task it is trained on.

    Attributes:
        order: an `Order`, or the name of a set of the task's.
        groups: the groups it edits (`all` corrects every transition, also of groups not listed).
        values: of arbitrary edits, what each group pays; None: as intended.
        units: of arbitrary edits, transitions changed, sum of |dr|, and share (see `ArbitraryTrial`).
        variant: a bias of the task, or `coverage`; empty: the task as it is.
        listed_size: the size it is listed under where that is not the number of its groups: a placebo has that of the
            arbitrary set whose control it is.
        cluster: of attribution and adaptive, the one of several clusters of failures that it is for.
    """

    order: str
    groups: tuple[str, ...] = ()
    values: tuple[float, ...] | None = None
    units: tuple[float, float, float] | None = None
    variant: str = ""
    listed_size: int | None = None
    cluster: int | None = None

    @property
    def size(self) -> int:
        """The size that it is listed under."""
        return len(self.groups) if self.listed_size is None else self.listed_size

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
    """One agent trained with a mask, and the evaluation set that it plays."""

    root: Path
    task: Task
    set_name: str
    mask: Mask
    seed: int

    @property
    def path(self) -> Path:
        """The finished piece: the episodes it played; clusters that correct the same groups share it."""
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


def train_agents(pieces: Sequence[MemberPiece], workers: Workers, label: str) -> None:
    """Train the agents of pieces that are not kept yet; those that masks have in common once."""
    there = exist([piece.policy_path for piece in pieces])
    missing = [piece for piece, done in zip(pieces, there, strict=True) if not done]
    for piece in missing:
        for plays in (piece.path, piece.policy_path.with_suffix(".parquet")):
            plays.unlink(missing_ok=True)  # of an agent that is no more
    distinct = {piece.policy_path: piece for piece in missing}.values()
    ordered = sorted(distinct, key=lambda piece: piece.mask.variant)  # a stack is of one variant
    variants = [list(alike) for _, alike in groupby(ordered, lambda piece: piece.mask.variant)]
    workers.map(_train_members, [stack for alike in variants for stack in _stacks(alike, label)], label)


def _stacks(pieces: Sequence[MemberPiece], label: str) -> list[Sequence[MemberPiece]]:
    """Split pieces of one variant into as many as are trained together."""
    task = pieces[0].task.variant(pieces[0].mask.variant)
    at_once, reason = members_at_once(task.agent, task.training_env)
    if reason is not None:
        log.info("%s: agents are trained one by one, because %s", label, reason)
    return [pieces[i : i + at_once] for i in range(0, len(pieces), at_once)]


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
