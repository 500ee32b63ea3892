"""What the reward prefers, where nobody tells an intended one: mean return as paid, by outcome."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from made_report import made_preference, made_training, write_report

from aitia.datasets.outcomes import Outcomes
from aitia.datasets.schema import EPISODES, LEARNING
from aitia.reports.measures.preference import find_preference

DECLARED = Outcomes(desired=["arrow"], misbehaved=["corner"])
NONE = EPISODES.empty_table()


def returns(seed: int, **paid: float) -> pa.Table:
    rows = [
        {"seed": seed, "window": 0, "outcome": name, "episodes": 2, "reward": 2 * value} for name, value in paid.items()
    ]
    return pa.Table.from_pylist(rows, schema=LEARNING)


def test_the_best_paid_declared_outcome_is_preferred_and_its_lead_is_within_seeds() -> None:
    trainings = {n: returns(n, arrow=1.0 + n, corner=3.0 + n, timeout=9.0) for n in range(3)}
    found = find_preference(trainings, NONE, DECLARED)
    assert found is not None
    assert [paid.outcome for paid in found.outcomes] == ["timeout", "corner", "arrow"]
    assert found.least is not None and found.least.lead == pytest.approx((2.0, 2.0, 2.0)) and found.least.seeds == 3
    words = found.in_words()
    assert words.startswith("Mean return as paid, by outcome: your reward prefers “corner” (misbehaved): 4 in training")
    assert "against 2 for “arrow” (desired)" in words and words.endswith("is 2 [2, 2], which is clear of zero.")
    assert found.as_dict()["prefers"] == "corner" and found.as_dict()["compared"] == ["corner", "arrow"]


def test_a_lead_that_is_not_clear_is_called_so() -> None:
    trainings = {0: returns(0, arrow=1.0, corner=3.0), 1: returns(1, arrow=2.0, corner=1.0)}
    found = find_preference(trainings, NONE, DECLARED)
    assert found is not None and found.preferred is None and found.as_dict()["prefers"] is None
    words = found.in_words()
    assert "it cannot be told which outcome is paid more" in words and "prefers" not in words
    assert "“corner” (misbehaved) returns 2 in training and “arrow” (desired) 1.5" in words
    assert "the difference of 0.5 [-18.6, 19.6] is not clear of zero" in words


def test_seeds_that_had_one_outcome_only_do_not_turn_the_headline_round() -> None:
    both = {n: returns(n, arrow=10.0 + n, corner=12.0 + n) for n in range(3)}
    found = find_preference({**both, 3: returns(3, arrow=40.0)}, NONE, DECLARED)
    assert found is not None and found.outcomes[0].outcome == "arrow", "the mean over all seeds is the larger"
    words = found.in_words()
    assert "your reward prefers “corner” (misbehaved): 13 in training, against 11 for “arrow”" in words
    assert "within the 3 seeds that had both. The difference is 2 [2, 2]" in words and "other way" not in words
    apart = find_preference({0: returns(0, arrow=1.0), 1: returns(1, corner=9.0)}, NONE, DECLARED)
    assert apart is not None and "cannot be told" in apart.in_words() and "No seed had both" in apart.in_words()


def test_the_best_of_several_has_to_be_clear_of_each_rival_with_intervals_that_hold_together() -> None:
    declared = Outcomes(desired=["arrow", "gem"], misbehaved=["corner"])
    spread = (1.0, 1.5, 2.2)

    def found(**outcomes: float) -> str:
        trainings = {n: returns(n, corner=10.0, **{k: 10.0 - x * v for k, v in outcomes.items()})
                     for n, x in enumerate(spread)}  # fmt: skip
        preference = find_preference(trainings, NONE, declared)
        assert preference is not None
        return preference.in_words()

    assert "prefers “corner”" in found(arrow=1.0), "one pair"
    assert "cannot be told" in found(arrow=1.0, gem=1.0), "two pairs have wider intervals"
    assert "cannot be told" in found(arrow=1.0, gem=0.0), "it is paid as much as one of them"


def test_an_outcome_of_one_seed_is_named_and_does_not_hide_what_others_tell() -> None:
    declared = Outcomes(desired=["arrow", "gem"], misbehaved=["corner"])
    trainings = {n: returns(n, arrow=1.0, corner=3.0) for n in range(3)} | {3: returns(3, gem=1.0, corner=2.0)}
    preference = find_preference(trainings, NONE, declared)
    assert preference is not None and "prefers “corner”" in preference.in_words()
    assert "Fewer than two seeds tell how it compares with “gem”." in preference.in_words()


def test_one_seed_and_one_outcome_say_what_is_missing() -> None:
    one = find_preference({0: returns(0, arrow=1.0, corner=3.0)}, NONE, DECLARED)
    assert one is not None and "Fewer than two seeds" in one.in_words()
    alone = find_preference({n: returns(n, arrow=1.0) for n in range(2)}, NONE, DECLARED)
    assert alone is not None and "prefers" not in one.in_words() + alone.in_words()
    assert (
        "unbounded" not in one.in_words() and "No training episode ended in one of the other kind" in alone.in_words()
    )
    assert find_preference({0: made_training([])}, NONE, DECLARED) is None


def test_test_plays_stand_beside_and_a_random_policy_has_no_part_in_them() -> None:
    row = dict.fromkeys(EPISODES.names)
    plays = [
        {**row, "seed": seed, "part": part, "outcome": "corner", "reward": reward}
        for seed, part, reward in ((0, "test", 1.0), (1, "test", 3.0), (-1, "test", 90.0), (0, "train", 90.0))
    ]
    found = find_preference({0: returns(0, arrow=1.0)}, pa.Table.from_pylist(plays, schema=EPISODES), DECLARED)
    assert found is not None
    corner = next(paid for paid in found.outcomes if paid.outcome == "corner")
    assert corner.test.value == 2.0 and corner.test_episodes == 2 and corner.training.value is None


def test_the_page_begins_with_it(tmp_path: Path) -> None:
    page = (write_report(tmp_path / "run").folder / "index.html").read_text()
    assert page.index("your reward prefers") < page.index('class="verdict')
    assert made_preference().in_words().split(":")[0] in page
