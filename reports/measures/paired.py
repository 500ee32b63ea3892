"""Two runs of one question, before and after a fix: their episodes and rates in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...datasets.outcomes import Outcomes, PlayCounts, SeedRates
from ...datasets.schema import RANDOM_POLICY_SEED, failure_id
from ..statistics import Interval, mean_interval, rate_interval

Change = Literal["no_longer", "new", "still", "neither"]
KEYS = ("seed", "episode", "repeat")
RATES = {"misbehaviour_rate": "misbehaviour", "competence": "competent", "desired_rate": "desired"}


def pair_plays(before: pa.Table, after: pa.Table, declared: Outcomes) -> pa.Table:
    """Pair the test episodes that agents of two runs played, by seed, episode and repeat.

    Returns:
        One row a pair, sorted: `seed, episode, repeat, context_a, context_b, outcome_a, outcome_b, change`. `change`:
        misbehaved in A only (no_longer), in B only (new), in both (still), in neither. Rows without a partner are
        left out.
    """
    sides = []
    for table, side in ((before, "a"), (after, "b")):
        plays = table.filter((pc.field("part") == "test") & (pc.field("seed") != RANDOM_POLICY_SEED))
        columns = {f"{name}_{side}": plays[name] for name in ("context", "outcome")}
        sides.append(pa.table({**{key: plays[key] for key in KEYS}, **columns}))
    pairs = sides[0].join(sides[1], list(KEYS), join_type="inner").sort_by([(key, "ascending") for key in KEYS])
    pairs = pairs.select([*KEYS, "context_a", "context_b", "outcome_a", "outcome_b"])
    failed = [np.isin(pairs[name].to_numpy(), declared.misbehaved) for name in ("outcome_a", "outcome_b")]
    kinds: dict[tuple[bool, bool], Change] = {
        (True, False): "no_longer", (False, True): "new", (True, True): "still", (False, False): "neither",
    }  # fmt: skip
    change = [kinds[a, b] for a, b in zip(*(column.tolist() for column in failed), strict=True)]
    return pairs.append_column("change", pa.array(change, pa.string()))


def paired_rates(before: Sequence[SeedRates], after: Sequence[SeedRates]) -> dict[str, dict[str, Any]]:
    """Return each rate in both runs and their difference, B minus A, with 95% t-intervals over paired seeds.

    `change`: fell or rose, where the interval of the difference is clear of zero; else None.

    Args:
        before, after: rates of the same seeds in the same order. A seed without a competent episode has no
            misbehaviour rate and leaves that difference.
    """
    rates = {}
    for name, field in RATES.items():
        pairs = [(getattr(a, field), getattr(b, field)) for a, b in zip(before, after, strict=True)]
        both = [(a, b) for a, b in pairs if a is not None and b is not None]
        change = mean_interval([b - a for a, b in both])
        rates[name] = {
            "a": rate_interval([a for a, _ in pairs if a is not None]).as_dict(),
            "b": rate_interval([b for _, b in pairs if b is not None]).as_dict(),
            "difference": change.as_dict(),
            "seeds": len(both),
            "change": _way(change),
        }
    return rates


def _way(change: Interval) -> str | None:
    """Return whether a rate `fell` or `rose`; None where the interval holds zero or is unbounded."""
    if change.low is None or change.high is None:
        return None
    return "fell" if change.high < 0 else "rose" if change.low > 0 else None


def compared_failures(pairs: pa.Table, declared: Outcomes) -> list[dict[str, Any]]:
    """Return what became of each failure of either run: first plays that misbehaved in A, in B, or in both.

    `rate_a, rate_b`: misbehaviour among the competent repeats of that agent and episode; None without any.
    """
    repeats: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in pairs.to_pylist():
        repeats.setdefault((row["seed"], row["episode"]), []).append(row)
    return [
        {
            "failure": failure_id(seed, episode),
            "seed": seed,
            "episode": episode,
            "context": rows[0]["context_a"],
            "change": rows[0]["change"],
            "outcome_a": rows[0]["outcome_a"],
            "outcome_b": rows[0]["outcome_b"],
            **{
                f"rate_{side}": PlayCounts.of([r[f"outcome_{side}"] for r in rows], declared).misbehaviour
                for side in "ab"
            },
        }
        for (seed, episode), rows in repeats.items()
        if rows[0]["repeat"] == 0 and rows[0]["change"] != "neither"
    ]


def tally(changes: Sequence[str]) -> dict[str, int]:
    """Return how often each `Change` occurs."""
    return {name: changes.count(name) for name in get_args(Change)}


def failure_counts(entries: Sequence[Mapping[str, Any]], declared: Outcomes) -> dict[str, int]:
    """Return how many failures each run has, and what became of them."""
    counts = tally([entry["change"] for entry in entries])
    gone = [entry["outcome_b"] for entry in entries if entry["change"] == "no_longer"]
    return {
        "a": counts["no_longer"] + counts["still"],
        "b": counts["new"] + counts["still"],
        "no_longer": counts["no_longer"],
        "no_longer_desired": sum(outcome in declared.desired for outcome in gone),
        "still": counts["still"],
        "new": counts["new"],
    }


def other_contexts(pairs: pa.Table) -> int:
    """Return how many pairs have different contexts: they were not the same episode."""
    first, second = (pairs[name].to_pylist() for name in ("context_a", "context_b"))
    return sum(a != b for a, b in zip(first, second, strict=True))
