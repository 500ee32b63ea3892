from __future__ import annotations

import pytest

from aitia.training.agents.play import play_references
from aitia.training.environments.spec import EnvSpec

MOVED = {"levels": 100, "moved": 100, "level_seed": 1}


@pytest.mark.parametrize(
    ("env", "kwargs", "ends"),
    [
        ("aitia/ArrowMaze-v0", MOVED, {"arrow": "arrow", "corner": "corner"}),
        ("aitia/Cheese-v0", MOVED, {"goal": "cheese", "proxy": "corner"}),
        ("aitia/CheeseContinuous-v0", MOVED, {"goal": "cheese", "proxy": "corner"}),
        ("aitia/KeysAndChests-v0", MOVED, {"chests": "opener", "keys": "hoarder"}),
        ("aitia/CoinLine-v0", {"coin": 0, "length": 12}, {"coin": "coin", "end": "end"}),
    ],
)
def test_every_solver_ends_as_its_goal_says(env: str, kwargs: dict[str, int], ends: dict[str, str]) -> None:
    played = play_references(EnvSpec(env, kwargs), 12, "test").to_pylist()
    for goal, outcome in ends.items():
        found = [row["outcome"] for row in played if row["goal"] == goal]
        assert len(found) == 12 and found.count(outcome) >= 10, "some pass the other goal on their way"


def test_an_environment_without_solvers_has_no_references() -> None:
    assert play_references(EnvSpec("toy_environments:Corridor"), 3, "test").num_rows == 0
