"""Stage verify: the counterfactual bank. Correct rewards, train again, play, and keep what happened."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from stable_baselines3.common.policies import ActorCriticPolicy

from ..attribution.order import attribution_order, effect_table, nested_sizes, random_order
from ..datasets.manifest import digest
from ..datasets.outcomes import failure_ids
from ..datasets.rewards import Grouping, reward_summary
from ..datasets.schema import BANK_OUTCOMES, MASKS, metadata_of, with_metadata
from ..datasets.store import RunFolder, read_table, write_table
from ..reports.curve import suffices
from ..reports.evidence import Bank, collect_evidence
from ..reports.findings import group_means
from ..reports.verdict import decide
from ..training.array_envs import Member
from ..training.edits import RewardEdit
from ..training.evaluation import evaluate_policy
from ..training.stack_training import members_at_once, train_members
from .attribute import attributed_tables
from .groups import load_grouping
from .runs import Run
from .task import Task
from .workers import Workers

log = logging.getLogger("aitia")
_LAST_RULE_WITHOUT_RETRAINING = 6
_UNDECIDED_RULE = 11
_SEEDS_ADDED = 2


@dataclass(frozen=True)
class Mask:
    """A correction set of the bank.

    Attributes:
        order: none | all | attribution | random.
        groups: the groups it corrects (`all` corrects every transition, also of groups not listed).
    """

    order: str
    groups: tuple[str, ...]

    def edit(self, grouping: Grouping) -> RewardEdit:
        """Return the reward edit of the mask."""
        return RewardEdit(None if self.order == "all" else frozenset(self.groups), grouping)

    def member(self, seed: int) -> str:
        """Return the name of the agent trained with this mask and seed."""
        size = "" if self.order == "all" else f"-{len(self.groups):05d}"
        return f"{self.order}{size}-seed={seed}"


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
        """The finished piece: its plays."""
        corrected = [self.task.group_by, *sorted(self.mask.groups)] if self.mask.order != "all" else None
        key = digest(corrected)[:12]
        folder = RunFolder(self.root).parts_folder("bank", self.set_name)
        return folder / f"{self.mask.member(self.seed)}-{key}.parquet"


def verify_stage(run: Run, set_name: str, workers: Workers) -> None:
    """Make the counterfactual bank of an evaluation set.

    Nothing is trained where retraining cannot change the verdict (rules 1 to 6 without a bank). All
    corrections come first; nested sets and their random control are verified only where correcting
    everything brings the misbehaviour rate below `1 - inner_share` of the uncorrected.
    """
    run.require_trained()
    run.task.evaluation_env(set_name)
    episodes = read_table(run.folder.evaluation_path(set_name, "episodes"))
    grouping = load_grouping(run.folder, run.task)
    rewards = [reward_summary(run.folder, seed, grouping) for seed in run.task.seeds]
    before = decide(collect_evidence(episodes, rewards, None, run.task.outcomes), run.task.verdict.thresholds)
    if before.rule <= _LAST_RULE_WITHOUT_RETRAINING:
        log.info("verify %s: rule %d applies, nothing to train again", run.task.name, before.rule)
        _write_bank(run, set_name, episodes, [])
        return
    wrong = wrong_groups(rewards)
    orders = _orders(run, set_name, episodes, wrong, rewards)  # first: attributions are needed, and said to be missing
    done: list[MemberPiece] = []
    everything = Mask("all", tuple(sorted(wrong)))
    _extend(run, set_name, [everything], done, workers, run.task.paired_seeds)
    if not done:
        log.warning(
            "verify %s: the budget of %s trainings is too small for any verdict: correcting everything takes %d",
            run.task.name, run.task.verify.budget, len(run.task.paired_seeds),
        )  # fmt: skip
    _decided(run, set_name, episodes, rewards, everything, done, workers)
    if _correction_helps(run, set_name, episodes, rewards):
        sizes = nested_sizes(len(wrong), run.task.verify.points)
        masks = [Mask(name, tuple(orders[name][:size])) for size in sizes for name in ("attribution", "random")]
        _extend(run, set_name, masks, done, workers, run.task.paired_seeds)
        _write_bank(run, set_name, episodes, done)
        if run.task.verify.minimal is not None:
            _bisect(run, set_name, episodes, orders, done, workers)


def wrong_groups(rewards: Sequence[pa.Table]) -> set[str]:
    """Return the groups with a wrong reward in some seed's training."""
    return {
        group
        for table in rewards
        for group, wrong in zip(table["group"].to_pylist(), table["wrong_transitions"].to_pylist(), strict=True)
        if wrong
    }


def _orders(
    run: Run, set_name: str, episodes: pa.Table, wrong: set[str], rewards: Sequence[pa.Table]
) -> dict[str, list[str]]:
    """Return the wrong groups in every order in which they are corrected."""
    failures = failure_ids(run.task.outcomes.failures(episodes))
    sums = attributed_tables(run.folder, run.task, set_name, failures)["groups"]
    error = {group: values[0] for group, values in group_means(rewards, ("error",)).items()}
    return {
        "attribution": attribution_order(effect_table(sums), wrong),
        "size": sorted(wrong, key=lambda group: (-error[group], group)),
        "random": random_order(wrong),
    }


def _bisect(
    run: Run, set_name: str, episodes: pa.Table, orders: Mapping[str, Sequence[str]],
    done: list[MemberPiece], workers: Workers,
) -> None:  # fmt: skip
    """Verify sets until, of each order, the smallest that removes the misbehaviour is known to a group."""
    while True:
        bank = read_bank(run.folder, set_name, run.task.seeds)
        assert bank is not None
        masks = [mask for name, groups in orders.items() if (mask := _next_mask(run.task, bank, name, groups))]
        before = len(done)
        _extend(run, set_name, masks, done, workers, run.task.paired_seeds)
        if len(done) == before:
            return  # all are known, or the budget is spent
        _write_bank(run, set_name, episodes, done)


def _next_mask(task: Task, bank: Bank, order: str, groups: Sequence[str]) -> Mask | None:
    """Return the set half-way between what removes the misbehaviour and what does not; None where they touch."""
    level = task.verify.minimal
    assert level is not None
    verified = {len(groups): bank.members("all")}
    for row in bank.masks.select(["order", "size"]).to_pylist():
        if row["order"] == order:
            verified[row["size"]] = bank.members(order, row["size"])
    good = [size for size, members in verified.items() if suffices(bank.rates(members, task.outcomes), level)]
    high = min(good, default=0)  # 0: not even correcting everything removes it
    low = max((size for size in verified if size < high), default=0)
    return Mask(order, tuple(groups[: (low + high) // 2])) if high - low > 1 else None


def _decided(
    run: Run, set_name: str, episodes: pa.Table, rewards: Sequence[pa.Table], everything: Mask,
    done: list[MemberPiece], workers: Workers,
) -> None:  # fmt: skip
    """Correct everything with more seeds of the ensemble, as long as those there are do not decide the verdict."""
    task = run.task
    while True:
        _write_bank(run, set_name, episodes, done)
        bank = read_bank(run.folder, set_name, task.seeds)
        found = decide(collect_evidence(episodes, rewards, bank, task.outcomes), task.verdict.thresholds)
        used = {piece.seed for piece in done}
        further = [seed for seed in task.seeds if seed not in used][:_SEEDS_ADDED]
        if found.rule != _UNDECIDED_RULE or not further or not used:
            return
        log.info("verify %s: %d seeds do not decide, %d more are trained", task.name, len(used), len(further))
        before = len(done)
        _extend(run, set_name, [everything], done, workers, further)
        if len(done) == before:
            return  # the budget is spent


def _extend(
    run: Run, set_name: str, masks: Sequence[Mask], done: list[MemberPiece], workers: Workers, seeds: Sequence[int]
) -> None:
    """Train the agents of masks, as many whole masks as the budget allows, and add them to `done`."""
    budget = run.task.verify.budget
    if budget is not None:
        allowed = max(budget - len(done), 0) // len(seeds)  # a mask without all its seeds could not be compared
        if allowed < len(masks):
            log.warning("verify %s: the budget of %d trainings ends the bank early", run.task.name, budget)
        masks = masks[:allowed]
    pieces = [MemberPiece(run.folder.root, run.task, set_name, mask, seed) for mask in masks for seed in seeds]
    waiting = [piece for piece in pieces if not piece.path.exists()]
    name = f"verify {run.task.name}"
    at_once, reason = members_at_once(run.task.agent, run.task.training_env)
    if reason is not None:
        log.info("%s: agents are trained one by one, because %s", name, reason)
    together = [waiting[i : i + at_once] for i in range(0, len(waiting), at_once)]
    workers.map(_train_members, together, f"{name}, {at_once} agents at a time" if at_once > 1 else name)
    done.extend(pieces)


def _train_members(pieces: Sequence[MemberPiece]) -> None:
    """Train several members together; each is written as soon as it has played."""
    task, grouping = pieces[0].task, load_grouping(RunFolder(pieces[0].root), pieces[0].task)
    members = [Member(piece.seed, piece.mask.edit(grouping)) for piece in pieces]
    for piece, trained in zip(pieces, train_members(task.agent, task.training_env, members), strict=True):
        _write_plays(piece, trained.policy, trained.corrected)


def _write_plays(piece: MemberPiece, policy: ActorCriticPolicy, corrected: int) -> None:
    """Let a trained member play test and training episodes, and write the finished piece."""
    task, parts = piece.task, []
    for part, env in (("test", task.evaluation_env(piece.set_name)), ("train", task.training_env)):
        episodes, _ = evaluate_policy(policy, env, task.evaluation, piece.seed, part)
        parts.append(episodes.select(["part", "episode", "repeat", "outcome"]))
    write_table(piece.path, with_metadata(pa.concat_tables(parts), {"corrected": str(corrected)}))


def _correction_helps(run: Run, set_name: str, episodes: pa.Table, rewards: Sequence[pa.Table]) -> bool:
    evidence = collect_evidence(episodes, rewards, read_bank(run.folder, set_name, run.task.seeds), run.task.outcomes)
    before, after = evidence.paired()
    m0 = [rates.misbehaviour for rates in before if rates.misbehaviour is not None]
    m_all = [rates.misbehaviour for rates in after if rates.misbehaviour is not None]
    keep = 1 - run.task.verdict.inner_share
    return bool(m0 and m_all and np.mean(m_all) < keep * np.mean(m0))


def read_bank(folder: RunFolder, set_name: str, seeds: Sequence[int]) -> Bank | None:
    """Return the bank of an evaluation set, without seeds that the task has no more; None before `verify`."""
    if not folder.bank_path(set_name, "masks").exists():
        return None
    masks = read_table(folder.bank_path(set_name, "masks")).filter(pc.field("seed").isin(list(seeds)))
    return Bank(masks, read_table(folder.bank_path(set_name, "outcomes")))


def _corrected(plays: pa.Table) -> int | None:
    """Return how many transitions a member's edit changed while it was trained; None of an earlier version."""
    found = metadata_of(plays.schema).get("corrected")
    return None if found is None else int(found)


def _write_bank(run: Run, set_name: str, episodes: pa.Table, pieces: Sequence[MemberPiece]) -> None:
    """Write masks and outcomes: the ensemble itself as mask `none`, then every member trained."""
    none = Mask("none", ())
    seeds = sorted({*run.task.paired_seeds, *(piece.seed for piece in pieces)})
    masks = [(none, seed) for seed in seeds] + [(piece.mask, piece.seed) for piece in pieces]
    columns = ["part", "episode", "repeat", "outcome"]
    plays = [(none.member(seed), episodes.filter(pc.field("seed") == seed).select(columns)) for seed in seeds]
    found = {piece.mask.member(piece.seed): read_table(piece.path) for piece in pieces}
    corrected = {member: _corrected(table) for member, table in found.items()}
    plays += [(member, table.replace_schema_metadata(None)) for member, table in found.items()]
    rows = [
        {
            "member": m.member(s),
            "seed": s,
            "order": m.order,
            "size": len(m.groups),
            "groups": list(m.groups),
            "corrected": corrected.get(m.member(s), 0),
        }
        for m, s in masks
    ]
    outcomes = [
        table.add_column(0, "member", pa.array([member] * table.num_rows, pa.string())).cast(BANK_OUTCOMES)
        for member, table in plays
    ]
    write_table(run.folder.bank_path(set_name, "outcomes"), pa.concat_tables(outcomes))
    write_table(run.folder.bank_path(set_name, "masks"), pa.Table.from_pylist(rows, schema=MASKS))
