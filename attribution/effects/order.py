"""The order in which groups are corrected: predicted effect, most negative first, and the random null."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ...datasets.errors import InputError

_RANDOM_ORDER_SEED = 0


class EffectTable(NamedTuple):
    """Predicted effects of correcting each group on each failure, averaged over the ensemble's seeds.

    Attributes:
        failures: ids, length F.
        groups: names, length G.
        effect: float64 [F, G]; negative: the correction is predicted to reduce the misbehaviour. Ranks,
            not units of misbehaviour rate.
        error: float64 [F, G], standard error of the effect between seeds; NaN with one seed.
        by_seed: float64 [S, G], mean over failures, one row a seed.
    """

    failures: list[str]
    groups: list[str]
    effect: NDArray[np.float64]
    error: NDArray[np.float64]
    by_seed: NDArray[np.float64]

    def mean(self) -> dict[str, float]:
        """Return the mean effect of each group over all failures."""
        return dict(zip(self.groups, self.effect.mean(axis=0).tolist(), strict=True)) if len(self.failures) else {}


def at_own_damping(sums: pa.Table) -> pa.Table:
    """Return group sums at an estimator's own damping, which stands first; of others only where they were asked for.

    Args:
        sums: rows of one estimator, as they stand in `influence/SET/groups.parquet`.
    """
    return sums if sums.num_rows == 0 else sums.filter(pc.field("lambda") == sums["lambda"][0].as_py())


def effect_table(sums: pa.Table, lam: float | None = None) -> EffectTable:
    """Average the group sums of an influence table over seeds, at one lambda.

    Args:
        sums: rows of `influence/SET/groups.parquet` of one estimator.
        lam: the damping; None: the estimator's own.

    Raises:
        InputError: rows of several estimators.
    """
    require_one_estimator(sums)
    chosen = at_own_damping(sums) if lam is None else sums.filter(pc.field("lambda") == lam)
    chosen = chosen.filter(pc.field("effect").is_valid())
    failure, group = (chosen[name].combine_chunks().dictionary_encode() for name in ("failure", "group"))
    failures, groups = failure.dictionary.to_pylist(), group.dictionary.to_pylist()
    seeds = pc.unique(chosen["seed"]).to_pylist()
    count, where = max(len(seeds), 1), chosen["seed"].to_numpy()
    total, squares = np.zeros((2, len(failures), len(groups)))
    by_seed = np.zeros((len(seeds), len(groups)))
    for number, seed in enumerate(seeds):
        rows = where == seed
        mine = np.zeros_like(total)
        np.add.at(
            mine, (failure.indices.to_numpy()[rows], group.indices.to_numpy()[rows]), chosen["effect"].to_numpy()[rows]
        )
        total += mine
        squares += mine**2
        by_seed[number] = mine.mean(axis=0)
    mean = total / count
    unknown = np.full_like(mean, np.nan)
    spread = np.sqrt(np.maximum(squares / count - mean**2, 0.0) / (count - 1)) if count > 1 else unknown
    return EffectTable(failures, groups, mean, spread, by_seed)


def require_one_estimator(table: pa.Table) -> None:
    """Check that an influence table holds one estimator: another one's effects are in another unit."""
    names = sorted(pc.unique(table["estimator"]).to_pylist()) if "estimator" in table.column_names else []
    if len(names) > 1:
        raise InputError(
            f"the influence table holds rows of {len(names)} estimators ({', '.join(names)}), expected those of one: "
            f"their effects cannot be added. Filter it first, as in estimator == '{names[0]}'"
        )


def attribution_order(effects: EffectTable, wrong: Collection[str]) -> list[str]:
    """Return the wrong groups by mean effect, most negative first; ties by name."""
    mean = effects.mean()
    return sorted(wrong, key=lambda group: (mean.get(group, 0.0), group))


def random_order(wrong: Collection[str]) -> list[str]:
    """Return the wrong groups in a fixed random order: the null that attribution must beat."""
    names = sorted(wrong)
    return [names[i] for i in np.random.default_rng(_RANDOM_ORDER_SEED).permutation(len(names))]


class BoundedEdit(NamedTuple):
    """An arbitrary edit of one group: it pays an end of the range of rewards seen.

    Attributes:
        group: its group.
        value: what it pays.
        effect: predicted effect, mean over failures and seeds.
        transitions: transitions a run that it changes, mean over seeds.
        change: sum of their |dr|.
    """

    group: str
    value: float
    effect: float
    transitions: float
    change: float


def bounded_edits(units: pa.Table, bounds: tuple[float, float]) -> list[BoundedEdit]:
    """Return the edit of each group against the misbehaviour, the strongest predicted effect first.

    Rewards that feed the misbehaviour (positive tau) are paid as the lowest reward seen, others as the highest.

    Args:
        units: rows of `influence/SET/units.parquet` of one estimator.
        bounds: the smallest and the largest reward seen.

    Raises:
        InputError: rows of several estimators.
    """
    require_one_estimator(units)
    names = units.set_column(units.column_names.index("group"), "group", units["group"].cast(pa.string()))
    seeds = max(len(pc.unique(units["seed"])), 1)
    columns = ("transitions", "paid", "tau", "reward_tau")
    edits = []
    for row in names.group_by("group").aggregate([(name, "sum") for name in columns]).to_pylist():
        transitions, paid, tau, reward_tau = (row[f"{name}_sum"] / seeds for name in columns)
        effects = [value * tau - reward_tau for value in bounds]
        value, effect = bounds[int(np.argmin(effects))], min(effects)
        change = abs(value * transitions - paid)  # all rewards lie on one side of an end
        edits.append(BoundedEdit(row["group"], value, effect, transitions, change))
    return sorted(edits, key=lambda edit: (edit.effect, edit.group))


def placebo_edits(edits: Sequence[BoundedEdit], count: int, bounds: tuple[float, float]) -> list[BoundedEdit]:
    """Return random edits within the same bounds, of about as many transitions and the same sum of |dr| as the first
    `count` edits: groups in a random order, each paid the end that keeps the sums of |dr| together, until there are
    as many transitions.

    Args:
        edits: one for every group.
        count: size of the set that the placebo is compared with.
        bounds: the smallest and the largest reward seen.
    """
    wanted = sum(edit.transitions for edit in edits[:count])
    each = sum(edit.change for edit in edits[:count]) / max(wanted, 1e-12)
    by_group = {edit.group: edit for edit in edits}
    drawn: list[BoundedEdit] = []
    used = total = 0.0
    for group in random_order(by_group):
        edit = by_group[group]
        if used + 0.5 * edit.transitions > wanted:
            continue
        span = (bounds[1] - bounds[0]) * edit.transitions  # |dr| to one end and to the other add up to the span
        ends = (edit, edit._replace(value=sum(bounds) - edit.value, effect=0.0, change=span - edit.change))
        used += edit.transitions
        goal = each * used
        drawn.append(min(ends, key=lambda end: abs(total + end.change - goal)))
        total += drawn[-1].change
    return drawn


def nested_sizes(groups: int, points: int) -> list[int]:
    """Return sizes of nested correction sets strictly between none and all, halving from above.

    With 96 groups and 3 points: 12, 24, 48. Halving resolves small sets, where a concentrated cause shows.
    """
    sizes = {max(1, round(groups / 2**k)) for k in range(1, points + 1)}
    return sorted(size for size in sizes if size < groups)


def area_under_curve(order: Sequence[str], causal: Collection[str]) -> float:
    """Return the AUC of ranking causal groups before the others (1: all first, .5: by chance).

    Args:
        order: groups, the most suspected first.
        causal: the groups that are truly causal.
    """
    is_causal = np.array([group in causal for group in order])
    positives, negatives = int(is_causal.sum()), int((~is_causal).sum())
    if not positives or not negatives:
        raise ValueError(f"the AUC needs causal and other groups, {positives} and {negatives} were given")
    later_others = np.cumsum(~is_causal[::-1])[::-1]
    return float(later_others[is_causal].sum() / (positives * negatives))
