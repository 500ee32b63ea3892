"""What the reward prefers, where nobody tells an intended one: mean return as paid, by outcome."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from made_report import made_preference, made_training, write_report

from aitia.datasets.outcomes import Outcomes
from aitia.datasets.schema import EPISODES, LEARNING
from aitia.reports.preference import find_preference

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
    assert found.lead == pytest.approx((2.0, 2.0, 2.0)) and found.seeds == 3
    words = found.in_words()
    assert words.startswith("Mean return as paid, by outcome: your reward prefers “corner” (misbehaved): 4 [")
    assert "against 2 [" in words and words.endswith("is 2 [2, 2], which is clear.")


def test_a_lead_that_is_not_clear_is_called_so() -> None:
    trainings = {0: returns(0, arrow=1.0, corner=3.0), 1: returns(1, arrow=2.0, corner=1.0)}
    found = find_preference(trainings, NONE, DECLARED)
    assert found is not None and "not clear" in found.in_words()


def test_one_seed_and_one_outcome_say_what_is_missing() -> None:
    one = find_preference({0: returns(0, arrow=1.0, corner=3.0)}, NONE, DECLARED)
    assert one is not None and "Fewer than two seeds" in one.in_words()
    alone = find_preference({n: returns(n, arrow=1.0) for n in range(2)}, NONE, DECLARED)
    assert alone is not None and "No training episode ended in one of the other kind" in alone.in_words()
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
