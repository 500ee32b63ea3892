"""A declared outcome is refused where it cannot occur or is a slip of one that does; a rare one never is."""

from __future__ import annotations

from pathlib import Path

import pytest
from discrete_environments import Named

from aitia.datasets.errors import EnvironmentError_, TaskError
from aitia.datasets.files.store import RunFolder
from aitia.datasets.outcomes import Outcomes
from aitia.training.agents.outcome_names import (
    FirstWindow,
    _is_slip,
    listed_outcomes,
    require_names,
    see_outcomes,
    unseen_in_words,
)
from aitia.training.agents.spec import AgentSpec
from aitia.training.environments.hooks import HookedEnv
from aitia.training.environments.random_play import play_random
from aitia.training.environments.spec import EnvSpec
from aitia.training.retraining.live import train_recorded

NAMED = "discrete_environments:Named"


@pytest.mark.parametrize(
    ("given", "seen", "slip"),
    [
        ("cornr", "corner", True), ("arow", "arrow", True), ("gaol", "goal", True), ("Corner", "corner", True),
        ("time-out", "timeout", True), ("red gaol", "red_goal", True), ("misbehavour", "misbehaviour", True),
        ("left", "right", False), ("inner", "outer", False), ("button-a", "button-b", False),
        ("level1", "level2", False), ("pit", "pot", False), ("goal", "corner", False), ("west", "east", False),
        ("red goal", "green goal", False),
        ("room 12", "room 21", False), ("finished", "unfinished", False), ("complete", "incomplete", False),
        ("delivered", "undelivered", False), ("wall", "fall", False), ("goal", "goat", False), ("lost", "last", False),
        ("cash", "crash", False), ("skipped", "shipped", False), ("corrected", "connected", False),
        ("1", "-1", False), ("+1", "-1", False), ("+1", "1", False), ("reward -1", "reward 1", False),
        ("level 1-1", "level 11", False), ("1.5", "15", False), ("A-", "A", False), ("A+", "A-", False),
        ("✓", "✗", False), ("-", "_", False), ("कि", "का", False), ("level-1", "Level_1", True),
        ("reachd goal", "reached_goal", True), ("aroww", "arrow", False), ("fallen", "fallenn", True),
    ],
)  # fmt: skip
def test_a_slip_is_told_from_another_name(given: str, seen: str, slip: bool) -> None:
    assert _is_slip(given, seen) is slip


def test_what_was_seen_or_listed_is_never_refused_and_a_slip_always_is() -> None:
    declared = Outcomes(desired=["goal"], misbehaved=["cornr"])
    with pytest.raises(TaskError, match=r"outcomes.misbehaved: `cornr`.*Did you mean `corner`"):
        require_names(declared, {"goal", "corner"}, None, "play")
    with pytest.raises(TaskError, match=r"outcomes.misbehaved: `cornr`.*corner, goal, timeout"):
        require_names(declared, set(), {"goal", "corner", "timeout"}, "play")
    require_names(declared, {"goal", "corner", "cornr"}, None, "play")  # both occur: two names
    require_names(declared, {"goal", "corner"}, {"goal", "corner", "cornr"}, "play")  # rare, but listed
    require_names(declared, {"timeout"}, None, "play")  # nothing like it: rare, or for trained agents only
    assert "`goal`, `cornr` did not occur" in unseen_in_words(declared, {"timeout"}, None, "play")
    assert unseen_in_words(declared, {"goal"}, {"goal", "cornr"}, "play") == ""


@pytest.mark.parametrize("listed", ["win", {"win": 1}, ["win", 3], 7])
def test_what_an_environment_lists_is_a_list_of_names(listed: object) -> None:
    """A text would be taken for its letters, and every declared name refused."""
    env = Named(listed=listed)  # type: ignore[arg-type]
    with pytest.raises(EnvironmentError_, match=r"metadata\['outcomes'\] of the environment is .*expected a list"):
        listed_outcomes(env)
    assert listed_outcomes(Named(listed=("win", "lost"))) == frozenset({"win", "lost"})  # type: ignore[arg-type]

    def tell(columns: object) -> dict[str, object]:
        return {}

    tell.outcomes = listed  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentError_, match=r"attribute `outcomes` of the hook is .*expected a list"):
        listed_outcomes(HookedEnv(env, tell))


def test_a_task_that_reads_like_a_slip_is_told_the_way_out_without_a_change_of_the_environment() -> None:
    with pytest.raises(TaskError, match="a function of yours that makes it, `env: module:function`"):
        require_names(Outcomes(desired=["complete"], misbehaved=["pit"]), {"completed"}, None, "play")


def test_a_short_look_shows_outcomes_of_random_play_and_of_reference_solvers() -> None:
    maze = EnvSpec("aitia/ArrowMaze-v0", {"size": 7, "max_steps": 10, "moved": 240})
    seen = see_outcomes([maze, EnvSpec(NAMED)])
    assert seen.listed is None and {"arrow", "corner", "timeout", "ditch", "goal"} <= seen.seen
    assert see_outcomes([maze]).listed == frozenset({"arrow", "corner", "timeout"})
    plays = play_random(maze, episodes=1000, steps=55)
    assert plays.steps == 55 and plays.episodes == plays.outcomes.total() >= 5
    assert "arrow" not in play_random(maze, episodes=3).outcomes, "random play shows it: the solvers are not needed"


def test_a_training_ends_after_its_first_window_where_an_outcome_is_a_slip(tmp_path: Path) -> None:
    declared = Outcomes(desired=["goal"], misbehaved=["dicth"])
    agent = AgentSpec(total_timesteps=4096, n_envs=2, hyperparameters={"n_steps": 64, "batch_size": 64})
    watch = FirstWindow(declared, {"goal"}, None)
    with pytest.raises(TaskError, match="Did you mean `ditch`"):
        train_recorded(agent, EnvSpec(NAMED), 0, RunFolder(tmp_path / "run"), watch=watch)
    assert watch.num_timesteps == 128, "it trained on after the first window"
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    allowed = FirstWindow(declared, {"goal"}, {"goal", "ditch", "dicth", "timeout"})
    assert train_recorded(agent, EnvSpec(NAMED), 0, RunFolder(tmp_path / "run"), watch=allowed) == 32
