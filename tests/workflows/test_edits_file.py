"""Training with corrected rewards (--edits): the file, what is paid and recorded, the bank on top, identity."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import Finished
from numpy.typing import NDArray
from small_task import SMALL_TASK

from aitia.datasets.errors import EnvironmentError_, InputError
from aitia.datasets.files.store import RunFolder
from aitia.datasets.groups import ByComponent
from aitia.datasets.outcomes import Outcomes, PlayCounts
from aitia.training.agents.spec import AgentSpec
from aitia.training.edits.edit import INTENDED, RewardEdit, pay
from aitia.training.edits.file import Edits, read_edits, write_edits
from aitia.training.environments.spaces import choices
from aitia.training.environments.spec import EnvSpec, describe
from aitia.training.retraining.arrays import GymArrays, Member, make_array_env
from aitia.training.retraining.live import train_recorded
from aitia.workflows import commands

Command = Callable[..., Finished]
WriteTask = Callable[..., Path]
AGENT = AgentSpec(total_timesteps=256, n_envs=4, hyperparameters={"n_steps": 32, "batch_size": 64, "n_epochs": 1})
MAZE = EnvSpec("aitia/ArrowMaze-v0", SMALL_TASK["train_kwargs"])
COIN = EnvSpec("aitia/CoinRun-v0", {"levels": 24, "moved": 8, "bug": 8, "harmless": 8, "bonus": 0.5})


def recorded(run: Path) -> pa.Table:
    """Return the transitions of a run, all seeds."""
    paths = sorted((run / "transitions").glob("*/*.parquet"))
    return pa.concat_tables([pq.read_table(path, columns=["context", "reward", "intended_reward"]) for path in paths])


def paid_and_intended(table: pa.Table) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    return table["reward"].to_numpy(), table["intended_reward"].to_numpy()


@pytest.mark.parametrize(
    ("given", "groups"),
    [
        ({"groups": "all", "correct": "intended"}, "all"),
        ({"grouping": "component", "groups": ["b+a"], "correct": "intended", "source": {"run": "x"}}, ["b+a"]),
        ({"grouping": "transition", "values": {"17/2/ab": 0.5, "9": -1}}, ["17/2/ab", "9"]),
        ({"groups": [203, "17", 17], "correct": "intended"}, ["203", "17"]),
        ({"groups": ["on", "07", "1e3", "<b>"], "correct": "intended"}, ["on", "07", "1e3", "<b>"]),
    ],
)
def test_what_is_written_is_read_again(given: dict[str, Any], groups: object, tmp_path: Path) -> None:
    edits = Edits.model_validate(given)
    write_edits(tmp_path / "edits.yaml", edits, ["Measured: 5%.\ngroups: [other]"])
    assert read_edits(tmp_path / "edits.yaml") == edits and edits.groups == groups


def test_the_source_is_no_part_of_what_is_trained_with() -> None:
    plain = Edits(groups=["3", "1"], correct="intended")
    assert plain.hash == Edits(groups=["1", "3"], correct="intended", source={"run": "x"}).hash
    others = [Edits(groups=["1"], correct="intended"), Edits(groups=["1", "3"], values={"1": 1.0, "3": 0.0})]
    assert len({plain.hash, *(other.hash for other in others)}) == 3


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (
            {"group": ["1"], "correct": "intended"},
            ("unknown key `group`", "Did you mean `groups`?", "`groups` is missing"),
        ),
        ({"groups": [], "correct": "intended"}, ("groups", "at least one group")),
        ({"groups": [True], "correct": "intended"}, ("True", "quotes")),
        ({"groups": ["1"]}, ("one of `correct: intended` and `values:",)),
        ({"groups": ["1"], "correct": "intended", "values": {"1": 1.0}}, ("one of",)),
        ({"groups": ["1"], "values": {"2": 1.0}}, ("different groups",)),
        ({"values": {"2": float("nan")}}, ("finite",)),
        ({"groups": ["1"], "correct": "nothing"}, ("correct", "'intended'")),
        ({"grouping": "levels", "groups": ["1"], "correct": "intended"}, ("grouping", "context")),
        (
            {"grouping": "cluster", "groups": ["cluster 01"], "correct": "intended"},
            ("clusters belong to", "context, comp"),
        ),
        (["1"], ("holds a list",)),
    ],
)
def test_a_bad_edits_file_says_what_was_expected(given: object, parts: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "edits.yaml").write_text(yaml.safe_dump(given))
    with pytest.raises(InputError) as error:
        read_edits(tmp_path / "edits.yaml")
    assert all(part in str(error.value) for part in parts), error.value


def test_bad_input_of_the_command_writes_nothing(tmp_path: Path, write_task: WriteTask, aitia_command: Command) -> None:
    def refused(task: Path, edits: Path, *parts: str) -> None:
        done = aitia_command("train", task, "--out", tmp_path / "run", "--edits", edits, "--workers", 0)
        assert done.code == 2 and all(part in done.err for part in parts), done.err
        assert not (tmp_path / "run").exists()

    edits = tmp_path / "edits.yaml"
    refused(write_task(), edits, "edits.yaml does not exist", "reports/SET/edits.yaml")
    edits.write_text("grouping: component\ngroups: [goal]\ncorrect: intended\n")
    refused(write_task(), edits, "no info['reward_components']")
    refused(write_task(edits={"groups": "all"}), edits, "key `edits`", "--edits FILE")


def test_what_the_environment_does_not_tell_cannot_be_corrected() -> None:
    everything = Edits(groups="all", correct="intended")
    with pytest.raises(EnvironmentError_, match="intended_reward"):
        everything.require_told(frozenset({"context"}), "x")
    everything.require_told(frozenset({"intended_reward"}), "x")
    with pytest.raises(EnvironmentError_, match="context"):
        Edits(values={"1": 0.0}).require_told(frozenset({"intended_reward"}), "x")  # type: ignore[call-arg]


def test_a_reward_that_is_not_edited_stays_whatever_it_is() -> None:
    """A training that diverges is said where its window is read; the edit does not blame the intended reward."""
    unknown, edited = np.full(2, np.nan), np.array([np.nan, 3.0])
    paid = pay(np.array([np.nan, 1.0]), unknown, edited, np.array([True, True]))
    np.testing.assert_array_equal(paid.rewards, [np.nan, 3.0])
    np.testing.assert_array_equal(paid.changed, [False, True])
    with pytest.raises(EnvironmentError_, match="intended reward is not known"):
        pay(np.array([1.0]), np.array([np.nan]), np.array([INTENDED]), np.array([True]))


def test_clusters_are_no_matter_where_everything_is_corrected() -> None:
    assert Edits(grouping="cluster", groups="all", correct="intended").edit(MAZE).groups is None


@pytest.mark.parametrize(
    ("env", "first", "own"),
    [
        (MAZE, Edits(groups=["0", "2", "5", "7", "9"], correct="intended"), RewardEdit(frozenset({"1", "2", "8"}))),
        (MAZE, Edits(values={"1": 0.0, "3": 2.0}), RewardEdit(frozenset({"3", "4"}), values={"3": -1.0, "4": 3.0})),  # type: ignore[call-arg]
        (MAZE, Edits(groups=["0", "2", "5", "7", "9"], correct="intended"), RewardEdit(None)),
        (COIN, Edits(groups=["0", "2", "5", "7", "9"], correct="intended"), RewardEdit(None)),
        (
            COIN,
            Edits(groups=["0", "2"], correct="intended"),
            RewardEdit(frozenset({"goal", "bonus+goal"}), ByComponent()),
        ),
    ],
)
def test_an_edit_on_top_of_the_runs_own_is_the_same_as_arrays_and_in_the_environment(
    env: EnvSpec, first: Edits, own: RewardEdit
) -> None:
    """What is paid, and what the bank's own edit changed. Agents: the run's edit, both, none, the bank's edit."""
    base = first.edit(env)
    both = RewardEdit(own.groups, own.grouping, own.values, base)
    members = [Member(0, RewardEdit(frozenset(), first=base)), Member(0, both), Member(0, None), Member(0, own)]
    arrays, single = make_array_env(AGENT, env, members), GymArrays(AGENT, env, members)
    assert not isinstance(arrays, GymArrays)
    np.testing.assert_array_equal(arrays.reset(), single.reset())
    count = choices(describe(env).action_space)
    assert count is not None
    generator, changed, differ = np.random.default_rng(0), np.zeros(4, np.int64), 0
    for _ in range(250):
        actions = np.repeat(generator.integers(0, count, (1, 4)), 4, axis=0)  # the same for all agents
        one, other = arrays.step(actions), single.step(actions)
        for name in ("rewards", "corrected", "terminated"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
        changed += one.corrected.sum(axis=1)
        differ += int((one.rewards[0] != one.rewards[2]).sum())
    assert differ > 0, "the run's own edit changed nothing: the comparison is empty"
    assert changed[0] == changed[2] == 0, "what the run's own edit changes is not the bank's"
    assert 0 < changed[1] <= changed[3]


def test_components_stay_what_the_environment_paid(tmp_path: Path) -> None:
    """The contract (components sum to the reward) is about the environment: an edited reward does not break it."""
    folder = RunFolder(tmp_path)
    edit = Edits(grouping="component", groups=["bonus", "bonus+goal"], correct="intended").edit(COIN)
    train_recorded(AGENT, COIN, 0, folder, edit)
    table = pa.concat_tables([pq.read_table(folder.transitions_path(0, window)) for window in range(2)])
    paid, intended = paid_and_intended(table)
    parts = np.stack([table[n].to_numpy() for n in table.column_names if n.startswith("component_")])
    bonus = table["component_bonus"].to_numpy() != 0.0
    assert bonus.any() and (paid[bonus] == intended[bonus]).all() and (parts.sum(axis=0) != paid)[bonus].any()
    np.testing.assert_allclose(paid[~bonus], parts.sum(axis=0)[~bonus])


@pytest.mark.slow
def test_corrected_groups_pay_the_intended_reward_and_the_failure_is_gone(small_run: Path, fixed_run: Path) -> None:
    before, after = recorded(small_run), recorded(fixed_run)
    assert (np.subtract(*paid_and_intended(before)) != 0.0).any()
    np.testing.assert_array_equal(*paid_and_intended(after))
    manifest = json.loads((fixed_run / "run.json").read_text())
    edits = read_edits(fixed_run.parent / "edits.yaml")
    assert manifest["task"]["edits"]["groups"] == list(edits.groups) and manifest["hashes"]["edits"] == edits.hash
    assert str(fixed_run.parent) not in json.dumps(manifest["task"]), "the content is kept, not the path"
    rates = []
    for run in (small_run, fixed_run):
        plays = pq.read_table(run / "evaluations/test/episodes.parquet")
        plays = plays.filter((pc.field("part") == "test") & (pc.field("seed") >= 0))
        rates.append(PlayCounts.of(plays["outcome"].to_pylist(), Outcomes.model_validate(SMALL_TASK["outcomes"])))
    assert (rates[0].misbehaviour or 0.0) > 0.6 and (rates[1].misbehaviour or 0.0) < 0.05
    assert rates[1].competent > 0.9


@pytest.mark.slow
def test_the_bank_edits_on_top_of_what_the_run_was_trained_with(
    small_run: Path, tmp_path: Path, aitia_command: Command
) -> None:
    """Harmless levels corrected beforehand: the failure stays, is attributed to the rest, and corrected by the bank."""
    harmless = ["2", "8"]
    task, edits, run = tmp_path / "task.yaml", tmp_path / "edits.yaml", tmp_path / "run"
    task.write_text(yaml.safe_dump({**SMALL_TASK, "seeds": 2, "verify": {"seeds": 2, "points": 0}}))
    write_edits(edits, Edits(groups=[*harmless, "no such level"], correct="intended", source={"run": "small"}))
    done = aitia_command("run", task, "--out", run, "--edits", edits, "--workers", 0)
    assert done.code == 0 and "Training never met no such level" in done.err, done.err
    table = recorded(run)
    mine = table.filter(pc.is_in(table["context"], pa.array(harmless)))
    paid, intended = paid_and_intended(mine)
    assert intended.any() and (paid == intended).all()
    paid, intended = paid_and_intended(table)
    assert set(np.unique(paid[intended != paid])) <= {0.0, 1.0, 2.5} and (paid != intended).any()
    page = (run / "reports/test/index.html").read_text()
    assert "These agents were trained with corrected rewards: paid as intended in 3 groups (context): 2, 8" in page

    masks, before = (pq.read_table(folder / "bank/test/masks.parquet").to_pylist() for folder in (run, small_run))
    corrected = {row["member"]: row for row in masks if row["order"] == "all"}
    assert len(corrected) == 2, "rewards are left to be corrected"
    wrong = {group for row in before if row["order"] == "all" for group in row["groups"]}
    assert all(set(row["groups"]) == wrong - set(harmless) for row in corrected.values())
    plays = [pq.read_table(folder / "bank/test/outcomes.parquet") for folder in (run, small_run)]
    for member in corrected:
        one, other = (table.filter(pc.field("member") == member) for table in plays)
        assert one.equals(other), "all corrected is the same agent, whatever was corrected before"
    counts = {row["member"]: row["corrected"] for row in before}
    assert all(0 < row["corrected"] < counts[member] for member, row in corrected.items())

    other = tmp_path / "other.yaml"
    write_edits(other, Edits(groups="all", correct="intended"))
    for given, said in (((), "none given"), (("--edits", other), "as intended everywhere")):
        refused = aitia_command("train", task, "--out", run, *given, "--workers", 0)
        assert refused.code == 2 and said in refused.err and "2, 8, no such level" in refused.err, refused.err
    write_edits(other, Edits(groups=["no such level", *harmless], correct="intended", source={"by": "hand"}))
    commands.train(task, run, other, workers=0)
