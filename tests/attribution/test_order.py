"""Arbitrary edits: bounded, against the misbehaviour, and a placebo of the same size."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from aitia.attribution.effects.order import bounded_edits, placebo_edits
from aitia.datasets.schema import UNIT_EFFECTS

GROUPS = 60
BOUNDS = (-1.0, 3.0)


def units(tau: list[float], reward_tau: list[float], count: list[int], paid: list[float]) -> pa.Table:
    """Two seeds that saw the same."""
    rows = [
        {
            "group": f"g{group:02d}", "seed": seed, "transitions": count[group], "paid": paid[group],
            "tau": tau[group], "reward_tau": reward_tau[group], "estimator": "trak",
        }
        for seed in (0, 1)
        for group in range(len(tau))
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=UNIT_EFFECTS)


def test_each_group_is_paid_the_end_that_lowers_the_misbehaviour() -> None:
    """Two transitions paid 1 each: positive tau is paid the lowest reward, negative tau the highest."""
    found = bounded_edits(units([0.4, -0.2], [0.4, -0.2], [2, 2], [2.0, 2.0]), BOUNDS)
    assert [(edit.group, edit.value) for edit in found] == [("g00", -1.0), ("g01", 3.0)]
    assert found[0].effect == pytest.approx(-0.8) and found[1].effect == pytest.approx(-0.4)
    assert found[0].transitions == pytest.approx(2) and found[0].change == pytest.approx(4)
    assert found[1].change == pytest.approx(4), "from 1 to 3, twice"


def test_a_placebo_has_as_many_transitions_and_the_same_change() -> None:
    generator = np.random.default_rng(0)
    tau, count = generator.normal(size=GROUPS).tolist(), generator.integers(1, 30, GROUPS).tolist()
    edits = bounded_edits(units(tau, tau, count, [float(n) for n in count]), BOUNDS)
    for size in (4, 12, 24):
        drawn = placebo_edits(edits, size, BOUNDS)
        assert {edit.group for edit in drawn} != {edit.group for edit in edits[:size]}
        assert all(edit.value in BOUNDS for edit in drawn) and len({edit.group for edit in drawn}) == len(drawn)
        for name in ("transitions", "change"):
            mine, other = (sum(getattr(edit, name) for edit in chosen) for chosen in (drawn, edits[:size]))
            assert mine == pytest.approx(other, rel=0.2)
