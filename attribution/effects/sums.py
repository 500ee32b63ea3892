"""Sums of effects over windows of one training: sums of blocks of windows add up, so merging is parallel."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

EFFECTS = ("effect", "effect_raw", "effect_value")
Numbers = NDArray[np.floating]


@dataclass(frozen=True)
class Sums:
    """What the attribution of some windows of one training leaves.

    Attributes:
        groups: [G] with a wrong reward in one of the windows, sorted.
        effects: by name (`EFFECTS`), [L, F, G], one plane a damping: of correcting each group, each window divided by
            its mass; without those that were not computed.
        null: [D, G], mean effect over failures if chance had distributed the influence (`window.attribute_window`).
        direction: [G], mean effect over failures with the critic corrected too, undivided (`adjoints.critic`); NaN: not
            known.
        unit_groups: [U] that an arbitrary edit would change, sorted.
        units: [4, U], of each: number of transitions, and sums of r, tau and r * tau; tau is the mean over failures.
        windows: int64 [W], their numbers.
        together: [W, F], effect of all corrections of each window together, undivided.
        mass: [W, L], what each window's effects were divided by; 0: nothing was to correct.
        transitions: int64 [W], of each window.
        scores: float32 [sum of N], s of their transitions, mean over failures, one window after the other.
    """

    groups: Sequence[str]
    effects: Mapping[str, Numbers]
    null: Numbers
    direction: Numbers
    unit_groups: Sequence[str]
    units: Numbers
    windows: NDArray[np.int64]
    together: Numbers
    mass: Numbers
    transitions: NDArray[np.int64]
    scores: Numbers

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return all arrays by name, as they are written; effects under their own names."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return dict(named.pop("effects")) | {k: v for k, v in named.items() if isinstance(v, np.ndarray)}

    def names(self) -> dict[str, str]:
        """Return the names of groups, as they are written."""
        return {"groups": json.dumps(list(self.groups)), "unit_groups": json.dumps(list(self.unit_groups))}

    @staticmethod
    def none(dampings: int) -> Sums:
        """Return the sums of no failure and no window."""
        nothing, numbers = np.zeros(0), np.zeros(0, np.int64)
        return Sums(
            [], {"effect": np.zeros((dampings, 0, 0))}, np.zeros((0, 0)), nothing, [], np.zeros((4, 0)), numbers,
            np.zeros((0, 0)), np.zeros((0, dampings)), numbers, nothing,
        )  # fmt: skip

    @staticmethod
    def of(arrays: Mapping[str, NDArray[np.generic]], names: Mapping[str, str]) -> Sums:
        """Return the sums that `arrays` and `names` are of."""
        effects = {name: arrays[name] for name in EFFECTS if name in arrays}
        rest = {name: values for name, values in arrays.items() if name not in EFFECTS}
        return Sums(effects=effects, **rest, **{name: json.loads(text) for name, text in names.items()})  # type: ignore[arg-type]


def add(parts: Iterable[Sums]) -> Sums:
    """Return the sums of windows, in the order in which they come; in float64."""
    every = list(parts)
    if len(every) == 1:
        return every[0]
    groups, places = _union([part.groups for part in every])
    unit_groups, unit_places = _union([part.unit_groups for part in every])

    def total(values: Sequence[Numbers], where: Sequence[NDArray[np.int64]], count: int) -> Numbers:
        result = np.zeros((*values[0].shape[:-1], count))
        for part, place in zip(values, where, strict=True):
            result[..., place] += part
        return result

    return Sums(
        groups=groups,
        effects={name: total([part.effects[name] for part in every], places, len(groups)) for name in every[0].effects},
        null=total([part.null for part in every], places, len(groups)),
        direction=total([part.direction for part in every], places, len(groups)),
        unit_groups=unit_groups,
        units=total([part.units for part in every], unit_places, len(unit_groups)),
        **{
            name: np.concatenate([getattr(part, name) for part in every])
            for name in ("windows", "together", "mass", "transitions", "scores")
        },
    )


def _union(names: Sequence[Sequence[str]]) -> tuple[list[str], list[NDArray[np.int64]]]:
    """Return all names, sorted, and where those of each part are among them."""
    every = sorted({name for part in names for name in part})
    position = {name: i for i, name in enumerate(every)}
    return every, [np.array([position[name] for name in part], dtype=np.int64) for part in names]
