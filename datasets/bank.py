"""The counterfactual bank: agents trained with edited rewards, what was edited for each, and how they behave.

`aitia verify` makes it; the verdict compares its rates with those of the agents that were trained with rewards as paid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from .files.store import RunFolder, read_table, require_rows
from .outcomes import Outcomes, PlayCounts, SeedRates, require_plays
from .schema import RANDOM_POLICY_SEED, Order, seed_and_episode


@dataclass(frozen=True)
class Selection:
    """The test episodes that count for one of several clusters of failures.

    A cluster is chosen by its failures, so an agent's own failures must not count for it: of an agent count
    those that another seed's agent failed, without repeat 0, which may have made a failure of the cluster.

    Attributes:
        episodes: numbers of the episodes, by the agent's seed.
    """

    episodes: Mapping[int, frozenset[int]]

    @staticmethod
    def of(failures: Sequence[str], seeds: Sequence[int]) -> Selection:
        """Select for a cluster of failures, by their ids (`SEED-EPISODE`)."""
        made_by = [seed_and_episode(name) for name in failures]
        return Selection({seed: frozenset(e for other, e in made_by if other != seed) for seed in seeds})

    def plays(self, table: pa.Table, seed: int) -> pa.Table:
        """Return the rows of an agent of this seed that count; those of training episodes all do."""
        chosen = pc.field("episode").isin(list(self.episodes.get(seed, ()))) & (pc.field("repeat") > 0)
        return table.filter((pc.field("part") == "train") | chosen)


@dataclass(frozen=True)
class Bank:
    """The counterfactual bank of an evaluation set.

    Attributes:
        masks: one row a member: what was edited for it (`schema.MASKS`).
        outcomes: one row an episode that a member played, and how it ended (`schema.BANK_OUTCOMES`).
        selection: the test episodes that count; None: all.
    """

    masks: pa.Table
    outcomes: pa.Table
    selection: Selection | None = None

    def of_cluster(self, number: int, selection: Selection | None) -> Bank:
        """Return the bank as it concerns one cluster of failures, with the attribution order and search made for it.

        Args:
            number: the cluster's.
            selection: the test episodes that count for it; None: the bank of the whole set.
        """
        of_set, order = pc.field("cluster").is_null(), pc.field("order")
        own = (of_set & ~order.isin([Order.ATTRIBUTION, Order.ADAPTIVE])) | (pc.field("cluster") == number)
        return Bank(self.masks.filter(of_set if selection is None else own), self.outcomes, selection)

    def members(self, order: str, size: int | None = None, variant: str = "") -> dict[str, int]:
        """Return the seed of each member of an `Order` or named set (and size), trained on a variant of the task."""
        return {
            row["member"]: row["seed"]
            for row in self.masks.select(["member", "seed", "order", "size", "variant"]).to_pylist()
            if row["order"] == order and row["variant"] == variant and (size is None or row["size"] == size)
        }

    def rates(self, members: dict[str, int], declared: Outcomes) -> tuple[SeedRates, ...]:
        """Return the rates of members, by seed; those that played no selected episode are left out."""
        rates = [
            _rates(seed, self.outcomes.filter(pc.field("member") == member), declared, self.selection)
            for member, seed in sorted(members.items(), key=lambda item: item[1])
        ]
        return tuple(agent for agent in rates if agent is not None)


def ensemble_rates(episodes: pa.Table, declared: Outcomes, selection: Selection | None = None) -> tuple[SeedRates, ...]:
    """Return the rates of the agents trained with rewards as paid, by seed, from the episodes table of a set."""
    seeds = sorted(seed for seed in set(episodes["seed"].to_pylist()) if seed != RANDOM_POLICY_SEED)
    rates = [_rates(seed, episodes.filter(pc.field("seed") == seed), declared, selection) for seed in seeds]
    return tuple(agent for agent in rates if agent is not None)


def _rates(seed: int, plays: pa.Table, declared: Outcomes, selection: Selection | None) -> SeedRates | None:
    """Return the rates of an agent; None where none of its test episodes are selected."""
    if selection is not None:
        plays = selection.plays(plays, seed)
        if "test" not in plays["part"].to_pylist():
            return None
    test, train = (
        PlayCounts.of(plays.filter(pc.field("part") == part)["outcome"].to_pylist(), declared)
        for part in ("test", "train")
    )
    desired_train = train.desired_share if train.total else None
    return SeedRates(seed, test.misbehaviour, test.competent, test.desired_share, desired_train)


def read_bank(folder: RunFolder, set_name: str, seeds: Sequence[int], most_plays: int) -> Bank | None:
    """Return the bank of an evaluation set; None before `aitia verify`.

    Args:
        folder: the run folder.
        set_name: the evaluation set.
        seeds: those of the task; members of others are left out.
        most_plays: episodes that one agent can have played, of test and training together.

    Raises:
        RunFolderError: a table is missing or damaged; one member has more plays than that; or what becomes Python
            values takes more memory than `limits.read_limit`.
    """
    path = folder.bank_path(set_name, "outcomes")
    if not folder.bank_path(set_name, "masks").exists():
        return None
    masks = read_table(folder.bank_path(set_name, "masks")).filter(pc.field("seed").isin(seeds))
    require_rows(folder.bank_path(set_name, "masks"), masks)
    if "cluster" not in masks.column_names:  # of an earlier version, which had one cluster a set
        masks = masks.append_column("cluster", pa.nulls(masks.num_rows, pa.int32()))
    outcomes = read_table(path)
    require_plays(path, outcomes, "member", most_plays)
    corrected = masks.filter(pc.field("order") == Order.ALL)["member"]
    own = outcomes.filter(pc.field("member").isin(corrected.combine_chunks()))
    require_rows(path, own.select(["episode", "outcome"]))
    return Bank(masks, outcomes)
