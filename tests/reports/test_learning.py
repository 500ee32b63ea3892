"""Outcomes over training: what the figure shows, when agents count as still learning, what advice follows."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import vl_convert
from made_report import AFTER, BEFORE, CAPABLE, made_findings, made_learning, made_training, seed_rates

from aitia.datasets.bank import Bank
from aitia.datasets.outcomes import Outcomes
from aitia.datasets.schema import BANK_LEARNING, BANK_OUTCOMES, MASKS
from aitia.reports.figures.learning import learning_chart
from aitia.reports.measures.learning import AS_PAID, CORRECTED, Learning, find_learning, in_words
from aitia.reports.pages.advice import Costs, Surroundings, explain
from aitia.reports.verdict.rules import Evidence

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


def test_the_end_of_training_is_that_of_all_its_windows() -> None:
    trainings = {n: made_training(line(20, 3, 20)) for n in range(2)}
    found = find_learning(trainings, None, NONE, DECLARED, {0: 100, 1: 100})
    assert found is not None and not found.still and found.changes[0].seeds == 0
    assert "in the earliest case after window 19 of windows 0 to 99" in in_words(found) and "In every seed" in in_words(
        found
    )
    one = find_learning(trainings, None, NONE, DECLARED, {0: 100, 1: 20})
    assert one is not None and "In 1 of 2 seeds (rewards as paid) no episode ended near" in in_words(one)
    whole = find_learning(trainings, None, NONE, DECLARED, {0: 20, 1: 20})
    assert whole is not None and whole.still and "no episode ended" not in in_words(whole)


def test_six_shares_that_do_not_change_are_rarely_called_changing() -> None:
    """Nothing changes: a share is called changing in at most 5% of runs, not 5% of shares."""
    generator = np.random.default_rng(7)
    false = 0
    for _ in range(200):
        seeds = [
            [tuple(generator.multinomial(30, [0.4, 0.3, 0.3])) for _ in range(12)]  # a window of 30 episodes
            for _ in range(8)
        ]
        paid = {n: made_training(shares) for n, shares in enumerate(seeds[:4])}
        rows = [made_training(shares).drop_columns(["seed", "reward"]) for shares in seeds[4:]]
        table = pa.concat_tables(
            row.add_column(0, "member", pa.array([f"all-seed={n}"] * row.num_rows)).cast(BANK_LEARNING)
            for n, row in enumerate(rows)
        )
        found = find_learning(paid, bank(4), table, DECLARED)
        assert found is not None
        false += bool(found.still)
    assert false <= 18, f"{false} of 200 runs"  # 10 are expected at 5%; 18 or fewer in 99%


def test_a_panel_of_two_points_is_no_line_whatever_the_other_has() -> None:
    rows = made_training(line(50, 4, 2)).drop_columns(["seed", "reward"])
    table = rows.add_column(0, "member", pa.array(["all-seed=0"] * rows.num_rows)).cast(BANK_LEARNING)
    found = find_learning({0: made_training(line(10, 0))}, bank(1), table, DECLARED)
    assert found is not None
    marks = [layer["mark"]["type"] for layer in learning_chart(found).spec["spec"]["layer"]]
    assert "line" not in marks and "point" in marks


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


def lost(start: int = 80, slope: int = -5) -> Shares:
    """Return shares of agents that stop to misbehave and do nothing that is declared in its place."""
    return [(10, start + slope * w, 90 - start - slope * w) for w in range(12)]


def both(paid: Learning, corrected: Learning) -> Learning:
    return replace(paid, changes=(*paid.changes, *(replace(c, agents=CORRECTED) for c in corrected.changes)))


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (learning(lost(), lost()), "changing"),
        (both(learning(line(90, -5), line(80, -5)), learning(line(20, 5), line(30, 5))), "changing"),
        (both(learning(line(20, 5), line(30, 5)), learning(lost(), lost())), "changing"),
        (both(learning(line(20, 5), line(30, 5)), learning(line(20, 0), line(30, 0))), "improving"),
    ],
)
def test_improving_is_a_rise_of_the_desired_share_with_nothing_worse(found: Learning, said: str) -> None:
    step = explain(made_findings(OPEN), Surroundings(learning=found)).next_steps[0]
    assert step.startswith(f"Still {said}: over the last third")


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


def test_no_seeds_are_priced_where_no_number_of_them_would_decide() -> None:
    rare = made_findings(replace(OPEN, uncorrected=seed_rates([0.0, 0.4, 0.1, 0.3, 0.0]), corrected=()))
    still = learning(line(20, 5), line(30, 5))
    first, second = explain(rare, Surroundings(learning=still, costs=COSTS)).next_steps
    assert rare.decision.rule == 4 and "More seeds do not help at this rate" in second, "a mean of .16 is under .2"
    assert first.endswith("; more seeds would not decide.") and "more seeds would cost" not in first
    frequent = made_findings(replace(OPEN, uncorrected=seed_rates([0.0, 0.8, 0.1, 0.6, 0.0]), corrected=()))
    assert "would cost" in explain(frequent, Surroundings(learning=still, costs=COSTS)).next_steps[0].split("; ")[-1]


def test_of_one_seed_nobody_says_that_more_do_not_help() -> None:
    one = made_findings(replace(OPEN, uncorrected=seed_rates([0.9]), corrected=()))
    (step,) = explain(one, Surroundings()).next_steps
    assert one.decision.rule == 4 and step.startswith("Train at least 5 seeds (now 1)")


def test_costs_are_of_all_agents_again_and_of_each_seed_with_its_retrainings() -> None:
    assert COSTS.longer() == "15 trainings, about 300 s"
    assert COSTS.more_seeds(1) == "3 trainings, about 30 s"
    assert Costs(2, 0, 0, 36_000.0, 0.0).longer() == "2 trainings, about 20 h"
    assert np.isfinite(float(Costs(1, 0, 0, 0.0, 0.0).more_seeds(3).split()[3])), "seconds may be unknown"
