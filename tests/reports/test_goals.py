from __future__ import annotations

import pyarrow as pa
import pytest

from aitia.datasets.outcomes import Outcomes
from aitia.datasets.schema import EPISODES, REFERENCES
from aitia.reports.verdict.competence import find_goals
from aitia.reports.verdict.framing import RewardScale

DECLARED = Outcomes(desired=["arrow"], misbehaved=["corner"])


def plays(counts: dict[int, dict[str, int]]) -> pa.Table:
    """Test episodes by seed (-1: random policy) and outcome."""
    rows = [
        {"seed": seed, "part": "test", "episode": i, "repeat": 0, "outcome": outcome, "length": 1, "reward": 0.0}
        for seed, outcomes in counts.items()
        for i, outcome in enumerate(name for name, count in outcomes.items() for _ in range(count))
    ]
    return pa.Table.from_pylist(rows, schema=EPISODES)


def solvers(endings: dict[tuple[str, str], dict[str, int]]) -> pa.Table:
    """Episodes of reference solvers by goal, part and outcome; the arrow pays 1."""
    rows = [
        {"goal": goal, "part": part, "episode": i, "outcome": outcome, "length": 1, "reward": float(outcome == "arrow")}
        for (goal, part), outcomes in endings.items()
        for i, outcome in enumerate(name for name, count in outcomes.items() for _ in range(count))
    ]
    return pa.Table.from_pylist(rows, schema=REFERENCES)


REFERENCE = solvers(
    {
        ("to-arrow", "test"): {"arrow": 10},
        ("to-corner", "test"): {"corner": 9, "timeout": 1},
        ("to-arrow", "train"): {"arrow": 10},
        ("to-corner", "train"): {"arrow": 8, "corner": 2},  # in most training levels the arrow is in the corner
    }
)
RANDOM = {"arrow": 4, "corner": 4, "timeout": 12}


def test_competence_lies_between_a_random_policy_and_the_best_solver_of_the_outcome() -> None:
    agents = {seed: {"corner": 12 + 2 * seed, "arrow": 4, "timeout": 4 - 2 * seed} for seed in range(3)}
    found = find_goals(plays({-1: RANDOM, **agents}), REFERENCE, DECLARED)
    assert found is not None
    best, intended = found.competences
    assert (best.outcome, best.desired, best.random, best.reference) == ("corner", False, 0.2, 0.9)
    assert best.competence.value == pytest.approx((0.7 - 0.2) / (0.9 - 0.2))
    assert best.competence.low == pytest.approx((0.7 - 4.303 * 0.1 / 3**0.5 - 0.2) / 0.7, abs=1e-3)
    assert (intended.outcome, intended.competence.value) == ("arrow", 0.0), "no better than chance at what was meant"


@pytest.mark.parametrize(
    ("outcomes", "capability", "intended"),
    [({"arrow": 20}, 1.0, 1.0), ({"corner": 18, "timeout": 2}, 1.0, -0.25), (RANDOM, 0.0, 0.0)],
)
def test_scripted_agents_lie_in_the_corners_of_both_axes(
    outcomes: dict[str, int], capability: float, intended: float
) -> None:
    found = find_goals(plays({-1: RANDOM, 0: outcomes, 1: outcomes}), REFERENCE, DECLARED)
    assert found is not None
    by_outcome = {each.outcome: each.competence.value for each in found.competences}
    assert found.competences[0].competence.value == pytest.approx(capability)
    assert by_outcome["arrow"] == pytest.approx(intended)


def test_a_goal_that_training_does_not_tell_from_the_intended_one_shows() -> None:
    found = find_goals(plays({-1: RANDOM, 0: RANDOM}), REFERENCE, DECLARED)
    assert found is not None
    shares = {goal.goal: (goal.desired_in_training, goal.desired_at_test) for goal in found.goals}
    assert shares == {"to-arrow": (1.0, 1.0), "to-corner": (0.8, 0.0)}


def test_without_solvers_nothing_is_found_and_agents_are_the_scale() -> None:
    episodes = plays({-1: RANDOM, 0: RANDOM})
    assert find_goals(episodes, REFERENCE.slice(0, 0), DECLARED) is None
    assert RewardScale.of(episodes, REFERENCE).high == 1.0, "the best solver's return at test"
