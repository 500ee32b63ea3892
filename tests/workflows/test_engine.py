"""The attribution engine through all stages: groups, kinds of policies, estimators, validation."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from command_line import Finished

from aitia.attribution.effects.order import area_under_curve, attribution_order, effect_table
from aitia.datasets.files.store import read_table
from aitia.datasets.rewards import reward_summary, wrong_groups
from aitia.workflows import commands
from aitia.workflows.runs.groups import ensure_groups, load_grouping
from aitia.workflows.runs.recorded import estimator_of
from aitia.workflows.runs.run import open_run

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*fast_jl.*")]
WriteTask = Callable[..., Path]
TINY = {
    "total_timesteps": 256, "n_envs": 2,
    "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "learning_rate": 1e-5},
}  # fmt: skip
KINDS: dict[str, Any] = {
    "env": "toy_environments:Kinds", "outcomes": {"desired": ["goal"], "misbehaved": ["pit"]}, "seeds": 2,
    "evaluation": {"episodes": 8, "repeats": 2}, "verify": {"seeds": 2, "points": 0},
}  # fmt: skip


@pytest.fixture
def copy(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished small run, to change."""
    return Path(shutil.copytree(small_run, tmp_path / "run"))


@pytest.mark.parametrize(
    ("observe", "act", "policy"),
    [("dict", "multi", "MultiInputPolicy"), ("vector", "box", "MlpPolicy"), ("image", "binary", "CnnPolicy")],
)
def test_all_stages_run_for_other_spaces(
    observe: str, act: str, policy: str, tmp_path: Path, write_task: WriteTask
) -> None:
    kwargs = {"observe": observe, "act": act, "intended_error": 1.0}
    agent = {**TINY, "policy": policy}
    task = write_task(**KINDS, train_kwargs=kwargs, test_kwargs=kwargs, agent=agent)
    summary = commands.run(task, tmp_path / "run", workers=0)["test"]
    assert summary["failures"] > 0 and summary["estimator"] == "trak"
    top = pq.read_table(tmp_path / "run/influence/test/transitions.parquet")
    assert top.num_rows and all(text.startswith("[") for text in top["action"].to_pylist())
    page = next((tmp_path / "run/reports/test/failures").glob("*.html")).read_text()
    assert "log-odds of the actions taken" in page


@pytest.mark.parametrize("group_by", ["cluster", "transition"])
def test_a_run_is_continued_with_another_grouping(group_by: str, copy: Path, write_task: WriteTask) -> None:
    before = json.loads((copy / "reports/test/summary.json").read_text())
    points = 1 if group_by == "cluster" else 0
    task = write_task(group_by=group_by, verify={"seeds": 5, "points": points})
    summary = commands.run(task, copy, workers=0)["test"]
    assert summary["verdict"] == before["verdict"], "correcting everything is the same under any grouping"
    groups = set(pc.unique(pq.read_table(copy / "influence/test/groups.parquet")["group"].cast("string")).to_pylist())
    assert all(name.startswith("cluster ") if group_by == "cluster" else "/" in name for name in groups)
    masks = pq.read_table(copy / "bank/test/masks.parquet").to_pylist()
    nested = [row for row in masks if row["order"] == "attribution"]
    assert all(set(row["groups"]) <= groups for row in nested) and bool(nested) == bool(points)
    assert f"group ({group_by})" in (copy / "reports/test/clusters/0.html").read_text()


def test_components_are_groups_and_are_counted_by_ease(tmp_path: Path, write_task: WriteTask) -> None:
    """A bonus for the pit is paid wrongly as a component of its own: one component is to correct."""
    task = write_task(
        env="toy_environments:Bonus", train_kwargs={}, test_kwargs={}, group_by="component", seeds=5,
        outcomes={"desired": ["goal"], "misbehaved": ["pit"]}, evaluation={"episodes": 4, "repeats": 8},
        agent={"total_timesteps": 2048, "n_envs": 4, "hyperparameters": {
            "n_steps": 64, "batch_size": 64, "learning_rate": 0.01, "n_epochs": 8, "ent_coef": 0.0}},
    )  # fmt: skip
    summary = commands.run(task, tmp_path / "run", workers=0)["test"]
    assert summary["verdict"] == "outer"
    assert summary["ease"]["components"] == summary["ease"]["groups"] > 0
    verdicts = json.loads((tmp_path / "run/reports/test/verdicts.json").read_text())
    assert verdicts[0]["top_groups"][0]["group"] == "bonus"
    low, effect, high = (verdicts[0]["top_groups"][0][name] for name in ("low", "effect", "high"))
    assert low < effect < high


def test_group_by_component_without_components_is_refused(
    tmp_path: Path, write_task: WriteTask, aitia_command: Callable[..., Finished]
) -> None:
    done = aitia_command("run", write_task(group_by="component"), "--out", tmp_path / "run")
    assert done.code == 2 and "reward_components" in done.err and not (tmp_path / "run").exists()


def test_planted_causes_are_found_and_the_size_of_the_error_misleads(small_run: Path) -> None:
    """Planted recall: 12 causal levels among 18 wrong ones; the harmless ones have the larger error."""
    run = open_run(small_run)
    causal = frozenset(str(n) for n in commands_causes(run))
    wrong = wrong_groups([reward_summary(run.folder, seed) for seed in run.task.seeds])
    sums = pq.read_table(small_run / "influence/test/groups.parquet")
    order = attribution_order(effect_table(sums), wrong)
    assert area_under_curve(order, causal) >= 0.9
    errors = dict.fromkeys(wrong, 0.0)
    for seed in run.task.seeds:
        for row in reward_summary(run.folder, seed).to_pylist():
            if row["group"] in wrong:
                errors[row["group"]] += row["error"]
    by_size = sorted(wrong, key=lambda group: -errors[group])
    assert area_under_curve(by_size, causal) < area_under_curve(order, causal)


def commands_causes(run: Any) -> list[int]:
    from aitia.training.worlds.maze import causal_levels

    return causal_levels(run.task.training_env.make().unwrapped)


@pytest.mark.parametrize("estimator", ["trak-updates", "nearest-latent"])
def test_another_estimator_stands_beside_the_first(estimator: str, copy: Path) -> None:
    names = open_run(copy)["test"].failure_ids[:2]
    commands.attribute(copy, failure=names, estimator=estimator, workers=0)
    sums = pq.read_table(copy / "influence/test/groups.parquet")
    mine, own = (sums.filter(pc.field("estimator") == name) for name in (estimator, "trak"))
    assert set(pc.unique(mine["failure"].cast("string")).to_pylist()) == set(names)
    assert np.abs(mine["effect"].to_numpy()).max() > 0.0
    if estimator != "nearest-latent":
        table, other = effect_table(mine), effect_table(own.filter(pc.field("failure").cast("string").isin(names)))
        assert np.corrcoef(table.effect.ravel(), other.effect.ravel())[0, 1] > 0.5


def test_auto_says_what_it_chose_and_why(small_run: Path) -> None:
    chosen = estimator_of(open_run(small_run).task)
    assert chosen.name == "trak" and "window of 512 transitions fits" in chosen.reason


def test_validation_scores_every_estimator_beside_its_noise_ceiling(
    copy: Path, write_task: WriteTask, aitia_command: Callable[..., Finished]
) -> None:
    manifest = json.loads((copy / "run.json").read_text())
    manifest["task"] |= {"causes": "aitia.training.worlds.maze:causal_levels", "verify": {"seeds": 2, "points": 1}}
    (copy / "run.json").write_text(json.dumps(manifest))
    commands.attribute(copy, estimator="size", workers=0, trust=True)
    bank = {path: path.read_bytes() for path in (copy / "bank/test").iterdir()}
    done = aitia_command("validate", copy, "--masks", 4, "--workers", 0)
    assert done.code == 0, done.err
    assert bank == {path: path.read_bytes() for path in bank}, "a verdict would rest on agents of random sets"
    assert "noise ceiling" in done.out and "AUC of the declared cause, trak" in done.out
    found = json.loads((copy / "validation/test/validation.json").read_text())
    for estimand in ("interactive", "replay"):
        assert set(found[estimand]["lds"]) == {"trak", "size", "shuffled"}
        assert -1 <= found[estimand]["lds"]["trak"]["low"] <= found[estimand]["lds"]["trak"]["high"] <= 1
        assert 0 <= found[estimand]["noise_ceiling"]["value"] <= 1
    assert found["sizes"] == sorted(found["sizes"]) and found["sizes"][0] < found["sizes"][-1]
    assert found["causes"]["auc"]["trak"]["auc"] >= 0.9
    members = pq.read_table(copy / "validation/test/members.parquet")
    assert members.num_rows == 2 * 5 * 2
    for piece in list((copy / ".parts/validation").rglob("interactive-*-seed=1.safetensors")):
        piece.unlink()
    kept = [path for name in ("validation", "policies") for path in (copy / ".parts" / name).rglob("*.safetensors")]
    again = {path: path.stat().st_mtime_ns for path in kept}
    assert commands.validate(copy, masks=4, workers=0) == found, "measured again under the agent that was kept"
    assert again == {p: p.stat().st_mtime_ns for p in again}, "a finished piece was done again"
    summary = commands.report(copy, workers=0)
    assert summary["noise_ceiling"] == found["interactive"]["noise_ceiling"]["value"]


def test_a_validation_that_cannot_be_made_says_why(copy: Path, aitia_command: Callable[..., Finished]) -> None:
    done = aitia_command("validate", copy, "--masks", 2, "--workers", 0)
    assert done.code == 2 and "at least 4" in done.err
    shutil.rmtree(copy / "influence")
    done = aitia_command("validate", copy, "--workers", 0)
    assert done.code == 2 and "aitia attribute" in done.err


def test_clusters_of_a_run_are_kept_and_used_again(copy: Path, write_task: WriteTask) -> None:
    manifest = json.loads((copy / "run.json").read_text())
    manifest["task"]["group_by"] = "cluster"
    (copy / "run.json").write_text(json.dumps(manifest))
    run = open_run(copy)
    ensure_groups(run.folder, run.task)
    table = pq.read_table(run.folder.transitions_path(1, 3))
    first = load_grouping(run.folder, run.task).of_table(table)
    assert (copy / "groups/clusters.safetensors").exists()
    np.testing.assert_array_equal(first, load_grouping(run.folder, run.task).of_table(table))


def test_seeds_are_added_until_the_verdict_is_decided(copy: Path, write_task: WriteTask) -> None:
    """Begun with two paired seeds, which decide nothing: the ensemble's other seeds are added."""
    before = json.loads((copy / "reports/test/summary.json").read_text())
    shutil.rmtree(copy / "bank")
    shutil.rmtree(copy / ".parts/bank")
    summary = commands.run(write_task(verify={"seeds": 2, "points": 0}), copy, workers=0)["test"]
    masks = pq.read_table(copy / "bank/test/masks.parquet").to_pylist()
    assert sorted(row["seed"] for row in masks if row["order"] == "all") == [0, 1, 2, 3, 4]
    assert sorted(row["seed"] for row in masks if row["order"] == "none") == [0, 1, 2, 3, 4]
    assert summary["verdict"] == before["verdict"] != "undetermined"
    assert summary["misbehaviour_rate"] == before["misbehaviour_rate"], (
        "the same agents, whatever the order of training"
    )


def test_a_budget_ends_the_search_for_more_seeds_and_a_tiny_one_is_said(
    copy: Path, write_task: WriteTask, aitia_command: Callable[..., Finished]
) -> None:
    for budget, seeds in ((3, [0, 1]), (1, [])):
        shutil.rmtree(copy / "bank")
        shutil.rmtree(copy / ".parts/bank", ignore_errors=True)
        task = write_task(verify={"seeds": 2, "points": 0, "budget": budget})
        done = aitia_command("run", task, "--out", copy, "--workers", 0)
        masks = pq.read_table(copy / "bank/test/masks.parquet").to_pylist()
        assert done.code == 0 and sorted(row["seed"] for row in masks if row["order"] == "all") == seeds
        assert json.loads((copy / "reports/test/summary.json").read_text())["verdict"] == "undetermined"
        assert ("too small for any verdict" in done.err) == (budget == 1)


def test_the_bank_counts_what_its_edits_changed(small_run: Path) -> None:
    masks = pq.read_table(small_run / "bank/test/masks.parquet").to_pylist()
    counts = {order: [row["corrected"] for row in masks if row["order"] == order] for order in ("none", "all")}
    assert set(counts["none"]) == {0} and all(0 < count <= 4096 for count in counts["all"])
    nested = [row["corrected"] for row in masks if row["order"] == "attribution"]
    assert nested and max(nested) < min(counts["all"])


def test_the_smallest_correction_is_searched_and_the_search_goes_on_where_it_ended(
    copy: Path, write_task: WriteTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Baselines are bisected to a group; the adaptive search is the same, bit for bit, where a budget cut it short."""
    spec = {"seeds": 3, "points": 1, "minimal": 0.3}
    cut = Path(shutil.copytree(copy, tmp_path / "cut"))
    read = Counter[Path]()

    def counted(path: Path) -> pa.Table:
        read[path] += path.parent.parent.name == "bank"
        return read_table(path)

    monkeypatch.setattr("aitia.workflows.stages.bank.read_table", counted)
    summary = commands.run(write_task(verify=spec), copy, workers=0)["test"]
    assert max(read.values()) == 1, "each member's plays are read once, however many rounds there are"
    found = {minimal["order"]: minimal for minimal in summary["minimal_corrections"]}
    assert set(found) == {"adaptive", "attribution", "size", "random"}
    for order in ("size", "random"):
        assert found[order]["groups"] - found[order]["too_few"] == 1
    assert found["adaptive"]["groups"] == min(minimal["groups"] for minimal in found.values())
    assert found["adaptive"]["groups"] < found["size"]["groups"], "harmless errors are the larger ones"
    page = (copy / "reports/test/index.html").read_text()
    assert "smallest verified correction" in page and "chosen after looking" in page

    trained = pq.read_table(copy / "bank/test/masks.parquet").filter(pc.field("order") != "none").num_rows
    commands.run(write_task(verify={**spec, "budget": trained - 3}), cut, workers=0)
    assert not pq.read_table(cut / "bank/test/masks.parquet").equals(pq.read_table(copy / "bank/test/masks.parquet"))
    commands.run(write_task(verify=spec), cut, workers=0)
    for name in ("masks", "outcomes", "learning"):
        there, undisturbed = (folder / f"bank/test/{name}.parquet" for folder in (cut, copy))
        assert there.read_bytes() == undisturbed.read_bytes(), name
