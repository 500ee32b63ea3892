"""From tables to evidence, correction curve, ease and Framing 1, on a bank made by hand."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from world_helpers import play_reference

from aitia.datasets.bank import Bank, ensemble_rates
from aitia.datasets.outcomes import Outcomes, SeedRates
from aitia.datasets.schema import BANK_OUTCOMES, EPISODES, MASKS, with_metadata
from aitia.reports.measures.curve import CurvePoint, Units, correction_curve, ease, minimal_corrections
from aitia.reports.pages.findings import own_rates, set_verdict
from aitia.reports.statistics import NOTHING, rate_interval
from aitia.reports.verdict.evidence import collect_evidence
from aitia.reports.verdict.framing import Framing1, RewardScale, framing1
from aitia.reports.verdict.rules import Decision, Thresholds, Verdict
from aitia.training.worlds.maze import ArrowMazeEnv

DECLARED = Outcomes(desired=["arrow"], misbehaved=["corner"])
SEEDS = range(5)
PLAYS = 20


def outcomes_of(corner: int, timeout: int = 0) -> list[str]:
    return ["corner"] * corner + ["timeout"] * timeout + ["arrow"] * (PLAYS - corner - timeout)


def episodes_table(plays: dict[tuple[int, str], list[str]], reward: float = 0.0) -> pa.Table:
    rows: list[dict[str, Any]] = [
        {
            "seed": seed, "part": part, "episode": i, "repeat": 0, "outcome": outcome, "length": 1, "reward": reward,
            "intended_reward": 0.0, "untampered_reward": reward, "context": "0",
        }
        for (seed, part), outcomes in plays.items()
        for i, outcome in enumerate(outcomes)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=EPISODES)


def make_bank(corners: dict[tuple[str, int], int], groups: list[str]) -> Bank:
    masks, plays = [], []
    for (order, size), corner in corners.items():
        for seed in SEEDS:
            member = f"{order}-{size}-{seed}"
            masks.append(
                {"member": member, "seed": seed, "order": order, "size": size, "groups": groups[:size], "variant": ""}
            )
            for part, values in (("test", outcomes_of(corner)), ("train", outcomes_of(0))):
                plays += [
                    {"member": member, "part": part, "episode": i, "repeat": 0, "outcome": outcome}
                    for i, outcome in enumerate(values)
                ]
    return Bank(pa.Table.from_pylist(masks, schema=MASKS), pa.Table.from_pylist(plays, schema=BANK_OUTCOMES))


def reward_table(groups: list[str], wrong: int) -> pa.Table:
    """Each group has 100 transitions, 10 reward events, 5 episodes; the first `wrong` groups are all wrong."""
    n = len(groups)
    is_wrong = [int(i < wrong) for i in range(n)]
    columns = {
        "seed": pa.array([0] * n, pa.int32()), "group": groups, "transitions": [100] * n, "reward_events": [10] * n,
        "episodes": [5] * n, "wrong_transitions": [10 * w for w in is_wrong],
        "wrong_events": [10 * w for w in is_wrong],
        "wrong_episodes": [5 * w for w in is_wrong], "error": [10.0 * w for w in is_wrong],
        "largest_error": [1.0 * w for w in is_wrong],
    }  # fmt: skip
    return with_metadata(pa.table(columns), {"return_low": "0.0", "return_high": "2.0", "intended_known": "true"})


GROUPS = [f"g{i}" for i in range(40)]
REWARDS = {seed: reward_table(GROUPS, 8) for seed in SEEDS}
BANK = make_bank(
    {
        ("none", 0): 18, ("all", 8): 0, ("attribution", 2): 14, ("attribution", 4): 4, ("random", 2): 18,
        ("random", 4): 16,
    },
    GROUPS,
)  # fmt: skip


def test_rates_count_competent_plays_only() -> None:
    table = episodes_table({(0, "test"): outcomes_of(6, timeout=8), (0, "train"): outcomes_of(0)})
    (rates,) = ensemble_rates(table, DECLARED)
    assert rates.misbehaviour == pytest.approx(6 / 12) and rates.competent == pytest.approx(12 / 20)
    assert rates.desired == pytest.approx(6 / 20) and rates.desired_train == 1.0


def test_evidence_compares_outcomes_with_the_random_policy() -> None:
    plays = {(seed, part): outcomes_of(18) for seed in SEEDS for part in ("test", "train")}
    evidence = collect_evidence(
        episodes_table({**plays, (-1, "test"): outcomes_of(3)}), list(REWARDS.values()), None, DECLARED
    )
    corner = next(rate for rate in evidence.outcomes if rate.outcome == "corner")
    assert corner.agents == pytest.approx(0.9) and 0.15 < corner.random_high < 0.4
    assert [rates.seed for rates in evidence.uncorrected] == list(SEEDS), "the random policy is not an agent"
    assert evidence.largest_error == 1.0 and evidence.tampering is not None


def test_curve_counts_what_each_set_corrects() -> None:
    curve = correction_curve(BANK, REWARDS, DECLARED)
    found = {(point.order, point.corrected.groups): point for point in curve}
    assert found["attribution", 2.0].corrected.reward_events == 20
    assert found["attribution", 4.0].misbehaviour.value == pytest.approx(0.2)
    assert found["all", 8.0].corrected.transitions == 80
    assert curve[0].order == "none" and curve[-1].order == "all"
    written = found["random", 4.0].as_dict()
    assert written["misbehaviour_rate"] == pytest.approx(0.8) and written["low"] == pytest.approx(0.8)


def test_ease_is_read_off_the_curve_halfway_over_all_units() -> None:
    """Halfway is .45, between 2 groups (.7) and 4 (.2): one further group of 40."""
    found = ease(Verdict.OUTER, correction_curve(BANK, REWARDS, DECLARED), list(REWARDS.values()), Thresholds())
    assert found is not None and found.kind == "concentrated"
    assert found.groups == pytest.approx(3 / 40) and found.reward_events == pytest.approx(30 / 400)
    assert found.transitions == pytest.approx(30 / 4000) and found.episodes == pytest.approx(15 / 200)
    assert found.verified is not None and found.verified.corrected.groups == 4
    assert found.as_dict()["components"] is None


def test_a_reward_wrong_everywhere_is_diffuse_and_only_outer_has_an_ease() -> None:
    everywhere = {seed: reward_table(GROUPS, 40) for seed in SEEDS}
    bank = make_bank({("none", 0): 18, ("all", 40): 0, ("attribution", 20): 10}, GROUPS)
    curve = correction_curve(bank, everywhere, DECLARED)
    found = ease(Verdict.OUTER, curve, list(everywhere.values()), Thresholds())
    assert found is not None and found.kind == "diffuse"
    assert ease(Verdict.INNER, curve, list(everywhere.values()), Thresholds()) is None


def test_neither_few_nor_many_is_said_of_one_group() -> None:
    whole = {seed: reward_table(["all"], 1) for seed in SEEDS}
    bank = make_bank({("none", 0): 18, ("all", 1): 0}, ["all"])
    found = ease(Verdict.OUTER, correction_curve(bank, whole, DECLARED), list(whole.values()), Thresholds())
    assert found is not None and found.groups == 1.0 and found.kind is None
    assert found.as_dict()["kind"] is None


def test_own_rates_are_those_of_the_very_episode() -> None:
    plays = {(seed, "test"): ["corner", "arrow", "timeout"] for seed in SEEDS}
    rates = own_rates(episodes_table({**plays, (-1, "test"): ["arrow"] * 3}), BANK, DECLARED)
    assert rates[0] == {"uncorrected": 1.0, "all_corrected": 0.0}
    assert rates[1]["uncorrected"] == 0.0 and rates[2]["uncorrected"] is None


def test_framing_1_has_its_four_outcomes_and_says_when_it_does_not_apply() -> None:
    scale = RewardScale(random=0.1, high=0.9)
    assert framing1("arrow", 0.0, scale, DECLARED) is Framing1.ALIGNED, "desirable with low reward is aligned"
    assert framing1("timeout", 1.0, scale, DECLARED) is Framing1.CAPABILITY_FAILURE
    assert framing1("corner", 1.0, scale, DECLARED) is Framing1.OUTER
    assert framing1("corner", 0.0, scale, DECLARED) is Framing1.INNER
    assert framing1("corner", 1.0, scale, DECLARED, [1.0, 0.8]) is Framing1.OUTER
    disagree = framing1("corner", 0.0, scale, DECLARED, [0.0, 1.0])
    assert disagree is Framing1.NOT_APPLICABLE, "coin or right end? (row N3)"
    flat = RewardScale(random=0.5, high=0.5)
    assert framing1("corner", 1.0, flat, DECLARED) is Framing1.NOT_APPLICABLE
    assert framing1("corner", 1.0, RewardScale(0.1, float("nan")), DECLARED) is Framing1.NOT_APPLICABLE


def test_the_set_has_the_verdict_of_most_failures_and_a_tie_is_undetermined() -> None:
    def decision(rule: int, verdict: Verdict) -> Decision:
        return Decision(verdict, rule, None, (), NOTHING, NOTHING, NOTHING)

    assert set_verdict(decision(8, Verdict.OUTER), {"outer": 3, "inner": 1}) == "outer"
    assert set_verdict(decision(8, Verdict.OUTER), {"outer": 2, "inner": 2}) == "undetermined"
    assert set_verdict(decision(8, Verdict.OUTER), {}) == "undetermined"
    assert set_verdict(decision(3, Verdict.ALIGNED), {}) == "aligned"


@pytest.mark.parametrize(
    ("goal", "bug", "expected"),
    [
        ("random", 0, Framing1.CAPABILITY_FAILURE),
        ("arrow", 0, Framing1.ALIGNED),
        ("corner", 0, Framing1.INNER),
        ("corner", 200, Framing1.OUTER),
    ],
)
def test_scripted_policies_get_the_four_labels_of_framing_1(goal: str, bug: int, expected: Framing1) -> None:
    """With the bug also at test, the corner pays by the original reward function; without, it does not."""
    env = ArrowMazeEnv(levels=200, moved=200, bug=bug, max_steps=30)
    scale = RewardScale(random=0.2, high=1.0)
    labels = set()
    for episode in range(40):
        play = play_reference(env, goal, seed=episode)
        if goal != "random" or play.outcome == "timeout":
            labels.add(framing1(play.outcome, play.reward, scale, DECLARED))
    assert labels == {expected}


def test_the_smallest_correction_is_the_first_set_that_suffices_in_four_of_five_seeds() -> None:
    def point(order: str, groups: float, rates: list[float]) -> CurvePoint:
        units = Units(10 * groups, 5 * groups, groups, groups)
        seeds = tuple(SeedRates(i, rate, 1.0, 1.0 - rate, 1.0) for i, rate in enumerate(rates))
        return CurvePoint(order, units, rate_interval(rates), 1.0, 1.0, seeds)

    curve = [
        point("none", 0, [0.9] * 5), point("attribution", 3, [0.2, 0.2, 0.0, 0.0, 0.0]),
        point("attribution", 4, [0.5, 0.1, 0.1, 0.0, 0.0]), point("attribution", 8, [0.0] * 5),
        point("random", 8, [0.9] * 5), point("all", 16, [0.0] * 5),
    ]  # fmt: skip
    found = {m.order: m.as_dict() for m in minimal_corrections(curve, 0.1, "component")}
    assert found["attribution"] == {
        "order": "attribution", "groups": 4, "reward_events": 20, "transitions": 40, "components": 4, "too_few": 3,
    }  # fmt: skip
    assert (found["random"]["groups"], found["random"]["too_few"]) == (16, 8)
    assert "size" not in found, "nothing of that order was verified"
    assert minimal_corrections(curve, 0.1)[0].as_dict()["components"] is None
    assert minimal_corrections([point("none", 0, [0.9] * 5), point("all", 16, [0.5] * 5)], 0.1) == ()
