"""When the page does not call groups most suspected: each rule with a known answer on both sides, and its words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa
import pytest
from made_report import AFTER, BEFORE, CAPABLE, seed_rates, write_report

from aitia.datasets.bank import Bank
from aitia.datasets.outcomes import SeedRates
from aitia.reports.measures.curve import CurvePoint, Units
from aitia.reports.measures.doubts import Direction, Doubt, curve_in_order, order_doubts, predicted_direction
from aitia.reports.statistics import Interval
from aitia.reports.verdict.rules import Evidence

EFFECTS = {"a": -4.0, "b": -3.0, "c": -2.0, "d": -1.0, "e": 0.5}
OUTER = Evidence(BEFORE, AFTER, CAPABLE, largest_error=1.0)


def rewards(
    wrong: Sequence[int] = (3, 5, 1, 4, 2), events: Sequence[int] | None = None, error: Sequence[float] | None = None
) -> pa.Table:
    """Return what one training paid: groups a, b, ... with so many wrong ones of so many reward events."""
    return pa.table(
        {
            "group": [chr(ord("a") + n) for n in range(len(wrong))],
            "wrong_transitions": list(wrong),
            "reward_events": [10] * len(wrong) if events is None else list(events),
            "error": [w * e for w, e in zip(wrong, error or [1.0] * len(wrong), strict=True)],
            "largest_error": list(error or [1.0] * len(wrong)),
        }
    )


def curve(sets: Mapping[tuple[str, int], tuple[SeedRates, ...]]) -> list[CurvePoint]:
    rate = Interval(None, None, None)
    return [
        CurvePoint(order, Units(1.0, 1.0, 1.0, float(size)), rate, 1.0, 1.0, rates)
        for (order, size), rates in sets.items()
    ]


GOOD = curve({("attribution", 2): AFTER, ("random", 2): BEFORE})


def kinds(doubts: Sequence[Doubt]) -> list[str]:
    return [doubt.kind for doubt in doubts]


def test_an_order_that_holds_raises_no_doubt() -> None:
    assert order_doubts(EFFECTS, [rewards()], GOOD, OUTER, "context", Direction(Interval(-0.5, -0.6, -0.4))) == ()


def test_one_group_has_no_order_to_doubt() -> None:
    assert order_doubts({"a": -1.0}, [rewards()], (), OUTER, "context") == ()
    assert kinds(order_doubts({"a": -1.0, "b": 1.0}, [rewards()], (), OUTER, "context")) == ["control"]


@pytest.mark.parametrize(
    ("chance", "doubted"),
    [
        ([0.5, 0.5, 0.5, 0.5, 0.5], False),  # every difference -.1
        ([0.4, 0.4, 0.4, 0.4, 0.4], True),  # none
        ([0.3, 0.3, 0.3, 0.3, 0.3], True),  # random order is better
        ([0.45, 0.65, 0.4, 0.41, 0.42], True),  # mean -.066, t(4) .975 = 2.776: half .128
        ([0.45, 0.47, 0.44, 0.46, 0.48], False),  # mean -.06, half .0196
    ],
)
def test_an_order_must_beat_the_random_one_over_seeds(chance: list[float], doubted: bool) -> None:
    verified = curve({("attribution", 2): seed_rates([0.4] * 5), ("random", 2): seed_rates(chance)})
    found = order_doubts(EFFECTS, [rewards()], verified, OUTER, "context")
    assert kinds(found) == ["control"] * doubted


def test_orders_are_compared_at_their_common_sizes_seed_by_seed() -> None:
    same = {("attribution", 1): BEFORE, ("random", 1): BEFORE}
    verified = curve({**same, ("attribution", 3): AFTER, ("random", 3): BEFORE, ("random", 4): AFTER})
    assert order_doubts(EFFECTS, [rewards()], verified, OUTER, "context") == (), "mean of 0 and -.88"
    (found,) = order_doubts(EFFECTS, [rewards()], curve({**same, ("random", 4): AFTER}), OUTER, "context")
    assert "+0 [+0, +0] percentage points, mean over 1 size, 5 paired seeds" in found.text
    incompetent = tuple(rates._replace(misbehaviour=None) for rates in AFTER[:4])
    few = curve({("attribution", 3): (*incompetent, AFTER[4]), ("random", 3): BEFORE})
    (found,) = order_doubts(EFFECTS, [rewards()], few, OUTER, "context")
    assert found.kind == "control" and "cannot be told from one seed" in found.text


@pytest.mark.parametrize("verified", [{}, {("attribution", 1): AFTER, ("random", 2): BEFORE}])
def test_what_was_not_verified_is_not_claimed(verified: dict[tuple[str, int], tuple[SeedRates, ...]]) -> None:
    (found,) = order_doubts(EFFECTS, [rewards()], curve(verified), OUTER, "context")
    assert found.kind == "control" and "was not measured" in found.text


def test_sets_of_an_earlier_order_say_nothing_of_the_present_one() -> None:
    sets = {("attribution", 1): AFTER, ("attribution", 2): AFTER, ("random", 1): BEFORE, ("random", 2): BEFORE}
    groups = {1: ["a"], 2: ["b", "a"]}
    rows = [{"order": order, "size": size, "groups": groups[size]} for order, size in sets]
    bank, verified = Bank(pa.Table.from_pylist(rows), pa.table({})), curve(sets)
    assert curve_in_order(verified, bank, ["a", "b", "c"]) == verified
    kept = curve_in_order(verified, bank, ["b", "a", "c"])
    assert [(point.order, point.corrected.groups) for point in kept] == [
        ("attribution", 2.0), ("random", 1.0), ("random", 2.0),
    ]  # fmt: skip
    assert curve_in_order((), None, ["a", "b"]) == []


def direction(by_seed: Sequence[Mapping[str, float]]) -> pa.Table:
    rows = [
        {"group": group, "seed": seed, "effect": effect}
        for seed, effects in enumerate(by_seed)
        for group, effect in effects.items()
    ]
    return pa.Table.from_pylist(
        rows, schema=pa.schema({"group": pa.string(), "seed": pa.int32(), "effect": pa.float64()})
    )


def test_the_share_of_a_seed_is_its_sum_over_its_absolute_sum() -> None:
    found = predicted_direction(direction([{"a": -3.0, "b": 1.0}, {"a": -1.0, "b": 0.0}, {"a": 0.0}]))
    assert found is not None and found.share.value == pytest.approx((-0.5 - 1.0) / 2), "a seed of zeros says nothing"
    assert found.share.low is not None and found.share.low == pytest.approx(-0.75 - 12.706 * 0.25, abs=1e-3)
    assert found.claimed is None, "the interval of two so different seeds holds everything"
    assert predicted_direction(direction([])) is None, "a run of 0.1"
    one = predicted_direction(direction([{"a": -1.0}]))
    assert one is not None and one.claimed is None and one.as_dict() == {
        "value": -1.0, "low": None, "high": None, "claimed": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("low", "high", "claimed"),
    [(-0.3, -0.16, "less"), (-0.3, -0.15, None), (-0.3, 0.1, None), (0.15, 0.3, None), (0.16, 0.3, "more")],
)
def test_a_direction_is_claimed_only_beyond_the_band_of_harmless_runs(
    low: float, high: float, claimed: str | None
) -> None:
    assert Direction(Interval((low + high) / 2, low, high)).claimed == claimed


LESS, MORE = Direction(Interval(-0.5, -0.6, -0.4)), Direction(Interval(0.5, 0.4, 0.6))
UNCLEAR = Direction(Interval(-0.1, -0.2, 0.1))
WORSE = seed_rates([0.95, 0.97, 0.96, 0.96, 0.94])


@pytest.mark.parametrize(
    ("predicted", "after", "words"),
    [
        (LESS, AFTER, None),
        (LESS, BEFORE, "less misbehaviour, but retraining with them did not clearly change it"),
        (LESS, WORSE, "less misbehaviour, but retraining with them raised it (change of the rate +6 [+"),
        (MORE, AFTER, "more misbehaviour, but retraining with them lessened it (change of the rate -87 [-"),
        (MORE, BEFORE, None),
        (MORE, WORSE, None),
        (UNCLEAR, WORSE, None),
        (LESS, (), None),
        (LESS, WORSE[:1], None),
    ],
)
def test_a_predicted_sign_that_retraining_did_not_show_is_said(
    predicted: Direction, after: tuple[SeedRates, ...], words: str | None
) -> None:
    evidence = Evidence(BEFORE, after, CAPABLE, largest_error=1.0)
    found = order_doubts(EFFECTS, [rewards()], GOOD, evidence, "context", predicted)
    assert kinds(found) == ([] if words is None else ["sign"])
    assert words is None or words in found[0].text


EVERYWHERE = [rewards([5] * 20, [10] * 20), rewards([6] * 20, [10] * 20)]
MANY = {chr(ord("a") + n): float(n % 7 - 4) for n in range(20)}


def test_groups_that_all_carry_the_same_error_cannot_be_ordered() -> None:
    (found,) = order_doubts(MANY, EVERYWHERE, GOOD, OUTER, "context")
    assert found.kind == "same error"
    assert "(1 a wrong reward, in about 55% of the reward events of 20 of 20 groups)" in found.text
    assert "group_by: component or group_by: transition" in found.text
    (found,) = order_doubts(MANY, EVERYWHERE, GOOD, OUTER, "component")
    assert "group_by: component" not in found.text and "group_by: transition" in found.text


@pytest.mark.parametrize(
    ("events", "wrong", "error", "doubted"),
    [
        ([10] * 20, [5] * 19 + [0], [1.0] * 20, True),  # 95% of the groups
        ([10] * 20, [5] * 18 + [0, 0], [1.0] * 20, False),  # 90%: those without an error tell the others apart
        ([10] * 18 + [0, 0], [5] * 18 + [0, 0], [1.0] * 20, True),  # what was never paid is no group of comparison
        ([10] * 20, [5] * 10 + [9] * 10, [1.0] * 20, False),  # shares of .5 and .9
        ([10] * 20, [5] * 10 + [6] * 10, [1.0] * 20, True),  # .5 and .6, .05 from the median
        ([10] * 20, [5] * 20, [1.0] * 19 + [0.96], True),
        ([10] * 20, [5] * 20, [1.0] * 19 + [0.94], False),
    ],
)
def test_the_same_error_is_within_a_twentieth_in_nearly_all_groups(
    events: list[int], wrong: list[int], error: list[float], doubted: bool
) -> None:
    effects = {group: effect for (group, effect), count in zip(MANY.items(), wrong, strict=True) if count}
    found = order_doubts(effects, [rewards(wrong, events, error)], GOOD, OUTER, "context")
    assert kinds(found) == ["same error"] * doubted


@pytest.mark.parametrize(
    ("wrong", "doubted"),
    [
        ([9, 8, 7, 6, 5], True),
        ([9, 8, 7, 5, 6], True),  # one neighbouring pair swapped: 1 - 6 * 2 / (5 * 24) = .9
        ([9, 7, 8, 5, 6], False),  # two: .8
        ([5, 6, 7, 8, 9], False),  # the other way round: counting would correct the wrong groups first
        ([5, 5, 5, 5, 5], False),
    ],
)
def test_counting_that_orders_groups_as_well_is_said(wrong: list[int], doubted: bool) -> None:
    found = order_doubts(EFFECTS, [rewards(wrong, [90, 10, 40, 20, 60])], GOOD, OUTER, "context")
    assert kinds(found) == ["counting"] * doubted
    if wrong == [9, 8, 7, 6, 5]:
        assert found[0].text == "The number of wrong rewards orders the groups as well (rank correlation 1.00)."
    if wrong == [9, 8, 7, 5, 6]:
        assert found[0].text.endswith("(rank correlation .90).")


def test_counting_is_no_competitor_where_few_groups_agree_by_chance() -> None:
    three = {group: EFFECTS[group] for group in "abc"}
    assert order_doubts(three, [rewards([9, 8, 7], [90, 10, 40])], GOOD, OUTER, "context") == ()


def test_nearest_observation_is_compared_where_it_was_asked_for() -> None:
    alike = {group: 2 * effect for group, effect in EFFECTS.items()}
    (found,) = order_doubts(EFFECTS, [rewards()], GOOD, OUTER, "context", nearest=alike)
    assert found.kind == "counting" and "Nearness to what was observed in the failures orders" in found.text
    other = {group: -effect for group, effect in EFFECTS.items()}
    assert order_doubts(EFFECTS, [rewards()], GOOD, OUTER, "context", nearest=other) == ()
    assert order_doubts(EFFECTS, [rewards()], GOOD, OUTER, "context", nearest={"a": -4.0}) == (), "not of all groups"


def test_the_order_is_that_of_the_mean_over_seeds_of_the_counts() -> None:
    first, second = rewards([1, 8, 7, 6, 5], [90, 10, 40, 20, 60]), rewards([9, 0, 0, 0, 0], [90, 10, 40, 20, 60])
    assert kinds(order_doubts(EFFECTS, [first, second], GOOD, OUTER, "context")) == ["counting"]


DOUBT = Doubt("control", "Whether this order is better than a random one cannot be told from one seed.")


@pytest.mark.parametrize("doubts", [(), (DOUBT, DOUBT._replace(kind="counting"))])
def test_pages_claim_most_suspected_groups_only_without_doubts(tmp_path: Path, doubts: tuple[Doubt, ...]) -> None:
    made = write_report(tmp_path / "run", failures=1, pages=1, doubts=doubts)
    pages = [made.folder / name for name in ("index.html", "clusters/0.html", "failures/0-0.html")]
    for page in pages:
        text = page.read_text()
        assert text.count(DOUBT.text) == len(doubts), page.name
        claims = re.findall(r"(.{20}most suspected.{10})", text, re.I)
        if doubts:
            assert claims == [claim for claim in claims if "No group is called" in claim], page.name
        elif page.name == "0.html":
            assert "The most suspected of 6 groups" in text
    assert "attribution predicts less misbehaviour" in pages[0].read_text()
