"""What the figures are drawn from, on hand-made tables with known answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from made_report import made_findings

from aitia.datasets.schema import WINDOW_EFFECTS
from aitia.reports.figures.evidence import correction_curve, factorial_shares, failure_counts, shares
from aitia.reports.figures.influence import group_effects
from aitia.reports.measures.predictions import concentration
from aitia.reports.measures.timeline import MOST_STRETCHES, Timeline
from aitia.reports.statistics import NOTHING, Interval
from aitia.reports.verdict.rules import Thresholds


def window_rows(effects: dict[tuple[str, int, int], float]) -> pa.Table:
    rows = [
        {"failure": failure, "seed": seed, "window": window, "effect": effect, "estimator": "trak"}
        for (failure, seed, window), effect in effects.items()
    ]
    return pa.Table.from_pylist(rows).cast(
        pa.schema([f if f.name != "failure" else pa.field("failure", pa.string()) for f in WINDOW_EFFECTS])
    )


def test_a_timeline_is_the_mean_over_failures_and_seeds_with_its_interval() -> None:
    table = window_rows(
        {("0-0", 0, 0): -1.0, ("0-0", 1, 0): -3.0, ("1-0", 0, 0): 1.0, ("1-0", 1, 0): 1.0, ("0-0", 0, 1): 4.0}
    )
    one, both = Timeline(table).of(["0-0"]), Timeline(table).of(["0-0", "1-0"])
    assert [(s.first, s.last) for s in one] == [(0, 0), (1, 1)]
    half = 12.706 * np.sqrt(2) / np.sqrt(2)  # t(1), spread of -1 and -3
    assert one[0].effect == pytest.approx((-2.0, -2.0 - half, -2.0 + half), rel=1e-4)
    assert one[1].effect.value == 2.0, "a seed without rows has no effect there"
    assert both[0].effect.value == -0.5


def test_long_trainings_are_summed_over_stretches_and_lose_nothing() -> None:
    windows = 5 * MOST_STRETCHES + 3
    found = Timeline(window_rows({("0-0", seed, w): 1.0 for seed in range(2) for w in range(windows)})).of(["0-0"])
    assert len(found) <= MOST_STRETCHES and found[0].first == 0 and found[-1].last == windows - 1
    assert sum(stretch.effect.value or 0.0 for stretch in found) == pytest.approx(windows)


def test_no_effects_no_timeline_and_one_seed_no_interval() -> None:
    assert Timeline(WINDOW_EFFECTS.empty_table()).of(["0-0"]) == []
    assert Timeline(window_rows({("0-0", 0, 0): 0.0})).of(["0-0"]) == []
    assert Timeline(window_rows({("0-0", 0, 0): 1.0})).of(["0-0", "9-9"])[0].effect == (1.0, None, None)


def test_concentration_is_the_summed_share_of_the_largest_drops() -> None:
    by_seed = {"a": np.array([-6.0, -6.0]), "b": np.array([-3.0, -3.0]), "c": np.array([-1.0, -1.0]), "d": np.ones(2)}
    rows = [{"group": g, "seed": s, "draw": 0, "effect": -1.0} for g in "abcd" for s in range(2)]
    found = concentration(by_seed, pa.Table.from_pylist(rows))
    assert found is not None
    assert [point.groups for point in found.curve] == [1, 2, 3, 4]
    assert [point.measured.value for point in found.curve] == pytest.approx([0.6, 0.9, 1.0, 1.0])
    assert [point.null.value for point in found.curve] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert found.measured == found.curve[0].measured and found.top == 1


def test_the_curve_shows_both_ends_on_every_line_and_the_seeds() -> None:
    chart = correction_curve(made_findings().curve, Thresholds(), "groups")
    limits, points = chart.spec["layer"][0]["data"]["values"], chart.spec["layer"][-1]["data"]["values"]
    assert [limit["level"] for limit in limits] == pytest.approx([0.45, 0.72]), "half and four fifths of .90"
    assert sorted((point["line"][:6], point["groups"]) for point in points) == sorted(
        (line, groups) for line in ("attrib", "random") for groups in (0, 3, 6)
    )
    assert len(chart.spec["layer"][2]["data"]["values"]) == 20, "4 sets of 5 seeds"
    assert len(chart.rows.rows) == 4
    searched = tuple(replace(p, order="adaptive") if p.order == "random" else p for p in made_findings().curve)
    adaptive = correction_curve(searched, Thresholds(), "groups").spec["layer"]
    assert "adaptive search (chosen after looking)" in str(adaptive[-1]), "told from nested points"
    assert "adaptive" not in str(adaptive[3]["data"]), "adaptive sets are not nested: no line joins them"
    ends = tuple(point for point in made_findings().curve if point.order in ("none", "all"))
    assert "none and all corrected" in str(correction_curve(ends, Thresholds(), "groups").spec)


def test_what_was_not_measured_is_not_drawn() -> None:
    chart = shares({"rate": (Interval(0.5, 0.4, 0.6), NOTHING)}, NOTHING, Thresholds())
    assert [row["state"] for row in chart.spec["data"]["values"]] == ["rewards as paid"]
    assert chart.rows.rows[1] == ("rate", "all rewards corrected", None, None, None)


def test_of_very_many_groups_both_ends_are_drawn_and_all_are_rows() -> None:
    effects = [(str(n), Interval(float(n), None, None)) for n in range(1000)]
    chart = group_effects(effects, "groups")
    drawn = [row["rank"] for row in chart.spec["data"]["values"]]
    assert drawn == [*range(1, 101), *range(901, 1001)] and len(chart.rows.rows) == 1000
    assert "of 1000" in chart.caption


def test_failures_are_counted_by_seed_verdict_and_outcome() -> None:
    entries = [{"seed": n % 2, "verdict": "outer", "outcome": "corner"} for n in range(5)]
    assert failure_counts(entries).rows.rows == ((0, "outer", "corner", 3), (1, "outer", "corner", 2))


def test_shares_of_the_factorial_keep_their_intervals() -> None:
    chart = factorial_shares({"rewards": Interval(0.7, 0.6, 0.8)})
    assert chart.rows.rows == (("rewards", 0.7, 0.6, 0.8),)
