"""Outcomes over training: what the figure shows, when agents count as still learning, what advice follows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import vl_convert
from made_report import AFTER, BEFORE, CAPABLE, made_findings, made_learning, made_training, seed_rates

from aitia.datasets.outcomes import Outcomes
from aitia.datasets.schema import BANK_LEARNING, BANK_OUTCOMES, MASKS
from aitia.reports.advice import Costs, Surroundings, explain
from aitia.reports.evidence import Bank
from aitia.reports.learning import AS_PAID, CORRECTED, Learning, find_learning, in_words, learning_chart
from aitia.reports.verdict import Evidence

DECLARED = Outcomes(desired=["arrow"], misbehaved=["corner"])
NONE = BANK_LEARNING.empty_table()
Shares = list[tuple[int, int, int]]


def learning(*seeds: Shares) -> Learning:
    found = find_learning({n: made_training(shares) for n, shares in enumerate(seeds)}, None, NONE, DECLARED)
    assert found is not None
    return found


def line(start: int, slope: int, windows: int = 12) -> Shares:
    return [(start + slope * w, 100 - start - slope * w, 0) for w in range(windows)]


def test_rates_are_shares_of_all_episodes_of_a_window_with_intervals_over_seeds() -> None:
    found = learning([(1, 3, 0), (0, 0, 2)], [(3, 1, 0), (0, 1, 1)])
    rates = {(s.kind, s.first): s.rate for s in found.stages}
    assert rates["desired", 0].value == 0.5 and rates["misbehaved", 1].value == 0.25
    assert rates["other", 1].value == 0.75 and rates["desired", 0].low == 0.0


def test_long_trainings_are_drawn_in_stretches_that_lose_no_episode() -> None:
    found = learning([(1, 0, 0)] * 100 + [(0, 1, 0)] * 100)
    desired = [s for s in found.stages if s.kind == "desired"]
    assert len(desired) == 32 and (desired[0].first, desired[-1].last) == (0, 199)
    assert all(later.first == earlier.last + 1 for earlier, later in pairwise(desired))


def test_a_change_is_the_slope_of_the_last_third_times_its_span() -> None:
    found = learning(line(20, 2), line(30, 2))
    change = {c.kind: c for c in found.changes}
    assert change["desired"].change.value == pytest.approx(0.06), "windows 8 to 11, two points each"
    assert change["misbehaved"].change.value == pytest.approx(-0.06) and change["desired"].clear
    assert not change["other"].clear


def test_windows_count_by_their_episodes() -> None:
    steady = [(10, 90, 0)] * 11 + [(1, 0, 0)]  # one episode, not a hundred
    weighted, light = learning(steady, steady), [(10, 90, 0)] * 11 + [(100, 0, 0)]
    change = next(c for c in weighted.changes if c.kind == "desired").change.value
    other = next(c for c in learning(light, light).changes if c.kind == "desired").change.value
    assert change is not None and other is not None and change < 0.05 < other


def test_what_is_small_unsure_or_of_one_seed_is_no_clear_change() -> None:
    assert not learning(line(20, 1), line(30, 1)).still, "three points are under the smallest change"
    assert not learning(line(20, 5), line(80, -4)).still, "seeds go either way"
    assert not learning(line(20, 5)).still and "cannot be said" in in_words(learning(line(20, 5)))
    assert learning(line(20, 5, 2), line(20, 5, 2)).changes[0].seeds == 0, "two windows have no third"
    assert "the largest change is" in in_words(learning(line(20, 5), line(80, -4)))


def bank(seeds: int) -> Bank:
    empty = {**dict.fromkeys(MASKS.names), "variant": ""}
    rows = [{**empty, "member": f"all-seed={n}", "seed": n, "order": "all"} for n in range(seeds)]
    return Bank(pa.Table.from_pylist(rows, schema=MASKS), BANK_OUTCOMES.empty_table())


def test_corrected_agents_are_a_panel_of_their_own() -> None:
    rows = made_training(line(50, 4)).drop_columns(["seed", "reward"])
    table = pa.concat_tables(
        [rows.add_column(0, "member", pa.array([f"all-seed={n}"] * rows.num_rows)).cast(BANK_LEARNING) for n in (0, 1)]
    )
    trainings = {n: made_training(line(10, 0)) for n in (0, 1)}
    found = find_learning(trainings, bank(2), table, DECLARED)
    assert found is not None and found.kept
    assert {change.agents for change in found.still} == {CORRECTED}
    chart = learning_chart(found)
    assert {row[0] for row in chart.rows.rows} == {AS_PAID, CORRECTED}
    assert vl_convert.vegalite_to_svg(chart.spec).count("<path") > 10
    older = find_learning(trainings, bank(2), NONE, DECLARED)
    assert older is not None and "an earlier version trained them" in learning_chart(older).caption
    assert "No agent was trained" in learning_chart(learning(line(1, 1))).caption


def test_a_window_far_off_costs_no_memory() -> None:
    far = made_training([(1, 1, 0), (2, 1, 0)]).set_column(1, "window", pa.array([-1, 0, 1, 2**31 - 1], pa.int32()))
    found = find_learning({0: far}, None, NONE, DECLARED)
    assert found is not None and found.stages[-1].last == 2**31 - 1


def test_no_episode_that_ended_no_figure() -> None:
    assert find_learning({0: made_training([])}, None, NONE, DECLARED) is None


OPEN = Evidence(BEFORE, seed_rates([0.1, 0.6, 0.2, 0.55, 0.35]), CAPABLE, largest_error=1.0)
COSTS = Costs(agents=5, retrained=10, seeds=5, train=50.0, verify=100.0)


def test_an_undetermined_verdict_says_to_train_longer_before_more_seeds_and_what_each_costs() -> None:
    findings = made_findings(OPEN)
    assert findings.decision.rule == 11
    still = learning(line(20, 5), line(30, 5))
    first, second = explain(findings, Surroundings(learning=still, costs=COSTS)).next_steps
    assert first.startswith("Still improving: over the last third of training desired +15 points [15, 15]")
    assert "More steps before more seeds" in first and "15 trainings, about 300 s" in first
    seeds = int(first.split("; ")[-1].split()[0])
    assert f"{seeds} more seeds would cost {seeds * 3} trainings" in first and COSTS.more_seeds(seeds) in first
    assert second.startswith("Train more seeds")
    (only,) = explain(findings, Surroundings(learning=learning(line(20, 0), line(30, 0)), costs=COSTS)).next_steps
    assert only == second, "nothing changes at the end of training"


def test_worse_is_no_improvement() -> None:
    around = Surroundings(learning=learning(line(90, -5), line(80, -5)))
    assert explain(made_findings(OPEN), around).next_steps[0].startswith("Still changing: over the last third")


def test_a_verdict_that_is_determined_speaks_of_no_further_training() -> None:
    outer = made_findings(Evidence(BEFORE, AFTER, CAPABLE, largest_error=1.0))
    assert not any("Still" in step for step in explain(outer, Surroundings(learning=made_learning())).next_steps)


def test_rule_4_looks_at_the_agents_as_paid_only() -> None:
    rare = made_findings(replace(OPEN, uncorrected=seed_rates([0.0, 0.8, 0.1, 0.6, 0.0]), corrected=()))
    assert rare.decision.rule == 4
    paid = learning(line(20, 5), line(30, 5))
    only_corrected = replace(paid, changes=tuple(replace(c, agents=CORRECTED) for c in paid.changes))
    assert explain(rare, Surroundings(learning=paid)).next_steps[0].startswith("Still improving")
    assert not explain(rare, Surroundings(learning=only_corrected)).next_steps[0].startswith("Still")


def test_costs_are_of_all_agents_again_and_of_each_seed_with_its_retrainings() -> None:
    assert COSTS.longer() == "15 trainings, about 300 s"
    assert COSTS.more_seeds(1) == "3 trainings, about 30 s"
    assert Costs(2, 0, 0, 36_000.0, 0.0).longer() == "2 trainings, about 20 h"
    assert np.isfinite(float(Costs(1, 0, 0, 0.0, 0.0).more_seeds(3).split()[3])), "seconds may be unknown"
