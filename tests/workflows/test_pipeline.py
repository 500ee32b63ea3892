"""The whole road on a small task: tables, verdicts, pages, resuming, worker count."""

from __future__ import annotations

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import Finished

from aitia.attribution import TracIn
from aitia.attribution.actors.adapt import as_actor
from aitia.datasets.errors import InputError
from aitia.datasets.files.store import RunFolder
from aitia.datasets.rewards import reward_summary, wrong_groups
from aitia.datasets.schema import BANK_OUTCOMES, EPISODES, GROUP_EFFECTS, MASKS
from aitia.training.edits.file import read_edits
from aitia.workflows import commands
from aitia.workflows.runs.evaluated_set import load_targets
from aitia.workflows.runs.run import open_run
from aitia.workflows.workers.pool import InProcess

pytestmark = pytest.mark.slow


def read(run: Path, *names: str) -> pa.Table:
    return pq.read_table(run.joinpath(*names))


def test_the_run_folder_is_the_contracts(small_run: Path) -> None:
    for name in (
        "run.json", "transitions/seed=0/window=00000.parquet", "checkpoints/seed=4/window=00007.safetensors",
        "checkpoints/seed=0/final.safetensors", "evaluations/test/episodes.parquet", "evaluations/test/steps.parquet",
        "influence/test/groups.parquet", "influence/test/transitions.parquet", "influence/test/windows.parquet",
        "bank/test/masks.parquet", "reports/test/clusters/0.html", "reports/test/edits.yaml",
        "bank/test/outcomes.parquet", "reports/test/index.html", "reports/test/verdicts.parquet",
        "reports/test/verdicts.json", "reports/test/summary.json",
    ):  # fmt: skip
        assert (small_run / name).is_file(), name
    manifest = json.loads((small_run / "run.json").read_text())
    assert manifest["seeds"] == [0, 1, 2, 3, 4] and manifest["schema_version"] == 2
    assert {"python", "torch", "stable-baselines3"} <= manifest["versions"].keys()
    assert set(manifest["seconds"]) == {"train", "evaluate", "attribute", "verify"}, "a report changes no run.json"
    assert not list(small_run.rglob("*.tmp"))


def test_tables_have_the_contracts_columns(small_run: Path) -> None:
    transitions = read(small_run, "transitions/seed=0/window=00000.parquet")
    assert {
        "seed", "window", "env", "step", "episode", "t", "observation", "action", "reward", "reward_scale",
        "intended_reward", "untampered_reward", "context", "outcome", "value", "log_prob", "advantage", "return",
        "terminated", "truncated", "minibatches",
    } <= set(transitions.column_names)  # fmt: skip
    assert read(small_run, "evaluations/test/episodes.parquet").schema.equals(EPISODES)
    steps = read(small_run, "evaluations/test/steps.parquet")
    assert {"observation", "action", "action_labels", "log_prob", "value"} <= set(steps.column_names)
    assert set(GROUP_EFFECTS.names) == set(read(small_run, "influence/test/groups.parquet").column_names)
    top = read(small_run, "influence/test/transitions.parquet")
    assert {"failure", "seed", "window", "step", "env", "tau", "tau_raw", "s"} <= set(top.column_names)
    assert read(small_run, "bank/test/masks.parquet").schema.equals(MASKS)
    assert read(small_run, "bank/test/outcomes.parquet").schema.equals(BANK_OUTCOMES)


def test_every_agent_and_a_random_policy_played_both_parts(small_run: Path) -> None:
    episodes = read(small_run, "evaluations/test/episodes.parquet")
    for part in ("test", "train"):
        counts = episodes.filter(pc.field("part") == part)["seed"].value_counts().to_pylist()
        expected = dict.fromkeys(range(-1, 5), 12 * 4)
        assert {row["values"]: row["counts"] for row in counts} == expected


def test_every_failure_has_a_group_sum_for_every_group_seed_and_lambda(small_run: Path) -> None:
    sums = read(small_run, "influence/test/groups.parquet")
    verdicts = json.loads((small_run / "reports/test/verdicts.json").read_text())
    groups = len(pc.unique(sums["group"].cast(pa.string())))
    assert groups == 24 and verdicts
    assert sums.num_rows == len(verdicts) * groups * 5
    assert set(sums["lambda"].to_pylist()) == {1e-3}
    assert sums["effect_raw"].null_count == sums["effect_value"].null_count == sums.num_rows
    wrong = sums.filter(pc.field("effect") != 0.0)
    assert len(pc.unique(wrong["group"].cast(pa.string()))) <= 18, "only groups with wrong rewards have an effect"


def test_group_sums_add_up_over_windows(small_run: Path) -> None:
    """The merged sums equal the sums of each window's own attribution."""
    from aitia.attribution.effects.window import attribute_window
    from aitia.attribution.estimators.base import Trak
    from aitia.attribution.estimators.window import read_window
    from aitia.datasets.files.store import read_tensors
    from aitia.training.agents.spec import load_policy

    run = open_run(small_run)
    names = run["test"].failure_ids[:3]
    targets = load_targets(run.folder, run.task, "test", names)
    total: dict[str, np.ndarray[Any, Any]] = {}
    for window in range(run.folder.window_count(2)):
        policy = load_policy(run.task.agent, run.task.training_env, read_tensors(run.folder.checkpoint_path(2, window)))
        found = attribute_window(
            read_window(run.folder.transitions_path(2, window)), as_actor(policy), targets, Trak()
        ).sums
        for index, group in enumerate(found.groups):
            total[group] = total.get(group, np.zeros(3)) + found.effects["effect"][0, :, index]
    sums = read(small_run, "influence/test/groups.parquet").filter(
        (pc.field("seed") == 2) & (pc.field("lambda") == 1e-2)
    )
    for row in sums.to_pylist():
        if row["failure"] in names:
            expected = total.get(row["group"], np.zeros(3))[names.index(row["failure"])]
            assert row["effect"] == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_summary_and_verdicts_have_the_contracts_fields(small_run: Path) -> None:
    summary = json.loads((small_run / "reports/test/summary.json").read_text())
    assert {
        "verdict", "verdict_share", "verdict_counts", "rule", "misbehaviour_rate", "competence", "desired_rate",
        "outer_share", "ease", "correction_curve", "noise_ceiling", "order_doubts", "direction", "trainings", "seconds",
    } <= summary.keys()  # fmt: skip
    for name in ("misbehaviour_rate", "competence", "desired_rate"):
        for kind in ("uncorrected", "all_corrected"):
            assert set(summary[name][kind]) == {"value", "low", "high"}
    for point in summary["correction_curve"]:
        assert {
            "order", "transitions", "reward_events", "groups", "misbehaviour_rate", "competence", "low", "high",
        } == point.keys()  # fmt: skip
    verdicts = json.loads((small_run / "reports/test/verdicts.json").read_text())
    assert {
        "failure", "seed", "episode", "context", "outcome", "cluster", "framing1", "verdict", "rule", "basis",
        "outer_share", "ease", "own_rates", "reasons", "top_groups",
    } == verdicts[0].keys()  # fmt: skip
    table = read(small_run, "reports/test/verdicts.parquet")
    assert table.to_pylist() == verdicts, "the Parquet twin must say the same"
    members = read(small_run, "bank/test/masks.parquet").filter(pc.field("order") != "none").num_rows
    assert summary["trainings"] == 5 + members
    assert summary["verdict"] == "outer", "the known cause of the small task: wrong rewards"
    assert summary["misbehaviour_rate"]["uncorrected"]["value"] > 0.6


def test_wrong_rewards_in_training_rooms_only_are_inner_in_framing_1_and_outer_in_1_5(
    small_run: Path,
) -> None:
    verdicts = json.loads((small_run / "reports/test/verdicts.json").read_text())
    assert {(entry["framing1"], entry["verdict"]) for entry in verdicts} == {("inner", "outer")}


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "href") and value:
                self.found.append(value)
            if tag == "img":
                assert any(key == "alt" for key, _ in attrs), "a picture without a text for those who cannot see it"


def test_every_failure_has_a_page_and_no_link_leads_nowhere_or_outside(small_run: Path) -> None:
    reports = small_run / "reports" / "test"
    verdicts = json.loads((reports / "verdicts.json").read_text())
    pages = [
        reports / "index.html",
        *(reports / "failures" / f"{entry['failure']}.html" for entry in verdicts),
        reports / "clusters" / "0.html",
    ]
    for page in pages:
        links = _Links()
        links.feed(page.read_text())
        assert links.found
        for link in links.found:
            assert not link.startswith(("http", "//")), "pages must work offline"
            assert link == "#main" or (page.parent / link).resolve().is_file(), f"{page.name} links to {link}"
    drawn = pages[1].read_text()
    assert "Framing 1" in drawn and 'class="strip"' in drawn and "correction-curve-0.svg" in drawn
    assert drawn.count('class="strip training"') == 3 and "influence-over-time" in drawn


def test_every_window_counts_the_same_in_the_sums_of_groups(small_run: Path) -> None:
    """Sums over groups of |effect| in a window are 1, so over all windows at most their number."""
    windows, masses = (read(small_run, f"influence/test/{name}.parquet") for name in ("windows", "masses"))
    groups = read(small_run, "influence/test/groups.parquet")
    assert windows.num_rows == len(pc.unique(windows["failure"].cast(pa.string()))) * 5 * 8
    assert masses.num_rows == 5 * 8 and min(masses["mass"].to_pylist()) > 0.0
    for seed in range(5):
        mine = groups.filter(pc.field("seed") == seed)
        plain = mine.set_column(1, "group", mine["group"].cast(pa.string()))
        total = np.abs(plain.group_by("group").aggregate([("effect", "mean")])["effect_mean"].to_numpy()).sum()
        assert 1.0 < total <= 8.0


def test_the_file_of_edits_lists_groups_whose_correction_was_verified(small_run: Path) -> None:
    edits = read_edits(small_run / "reports/test/edits.yaml")
    masks = read(small_run, "bank/test/masks.parquet").to_pylist()
    verified = {frozenset(row["groups"]) for row in masks if row["order"] in ("attribution", "all")}
    assert edits.grouping == "context" and frozenset(edits.groups) in verified


def test_running_again_trains_nothing_and_gives_the_same(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)

    def forbidden(self: InProcess, function: Any, pieces: Any, label: str) -> list[Any]:
        assert not pieces or label.startswith(("report", "pictures")), f"{label} did finished work again"
        return original(self, function, pieces, label)

    original = InProcess.map
    monkeypatch.setattr(InProcess, "map", forbidden)
    commands.run(small_run.parent / "task.yaml", copy, workers=0)
    for name in (
        "evaluations/test/episodes.parquet",
        "bank/test/outcomes.parquet",
        "influence/test/groups.parquet",
    ):
        assert read(copy, name).equals(read(small_run, name)), name
    first, second = (json.loads((r / "reports/test/verdicts.json").read_text()) for r in (small_run, copy))
    assert first == second


def test_an_interrupted_run_resumes_to_the_same_result(small_run: Path, tmp_path: Path) -> None:
    """A seed, an evaluation, windows and bank members are lost: only they are done again, to the same numbers."""
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    folder = RunFolder(copy)
    shutil.rmtree(folder.checkpoints_folder(1))
    folder.transitions_path(3, 2).unlink()
    (folder.parts_folder("evaluations", "test") / "seed=2.episodes.parquet").unlink()
    shutil.rmtree(copy / "influence")
    members = sorted(folder.parts_folder("bank", "test").glob("*.parquet"))
    for member in members[:3]:
        member.unlink()
    before = {path: path.stat().st_mtime_ns for path in members[3:]}
    commands.run(small_run.parent / "task.yaml", copy, workers=0)
    assert {path: path.stat().st_mtime_ns for path in members[3:]} == before, "a finished member was trained again"
    for name in (
        "evaluations/test/episodes.parquet",
        "bank/test/outcomes.parquet",
        "influence/test/groups.parquet",
    ):
        assert read(copy, name).equals(read(small_run, name)), f"{name}: resumed and undisturbed differ"


def test_failures_named_in_any_order_get_their_own_effects(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    for path in (copy / "influence/test").iterdir():
        if path.name != "masses.parquet":  # effects in the same unit
            path.unlink()
    names = [entry["failure"] for entry in json.loads((copy / "reports/test/verdicts.json").read_text())]
    commands.attribute(copy, failure=[names[-1], names[0], names[0]], workers=0)

    def effects(run: Path, name: str) -> list[float]:
        table = read(run, "influence/test/groups.parquet")
        return table.filter(pc.field("failure").cast(pa.string()) == name)["effect"].to_pylist()  # type: ignore[no-any-return]

    for name in (names[0], names[-1]):
        assert effects(copy, name) == pytest.approx(effects(small_run, name), rel=1e-9, abs=1e-15)
    with pytest.raises(InputError, match="were not attributed"):
        commands.report(copy, workers=0)


def test_more_seeds_and_then_fewer_again_leave_no_trace(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    task = yaml.safe_load((small_run.parent / "task.yaml").read_text())
    for seeds in (6, 5):
        (tmp_path / "task.yaml").write_text(yaml.safe_dump({**task, "seeds": seeds}))
        commands.train(tmp_path / "task.yaml", copy, workers=0)
        commands.evaluate(copy, workers=0)
        commands.attribute(copy, workers=0)
        sums = read(copy, "influence/test/groups.parquet")
        assert sorted(pc.unique(sums["seed"]).to_pylist()) == list(range(seeds))
    for name in ("evaluations/test/episodes.parquet", "influence/test/groups.parquet"):
        assert read(copy, name).equals(read(small_run, name)), name
    commands.report(copy, workers=0)
    first, second = ((r / "reports/test/verdicts.json").read_text() for r in (small_run, copy))
    assert first == second


def test_a_budget_buys_whole_masks(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    task = yaml.safe_load((small_run.parent / "task.yaml").read_text())
    (tmp_path / "task.yaml").write_text(yaml.safe_dump({**task, "verify": {"seeds": 5, "points": 1, "budget": 12}}))
    commands.run(tmp_path / "task.yaml", copy, workers=0)
    masks = read(copy, "bank/test/masks.parquet").to_pylist()
    orders = [row["order"] for row in masks]
    assert orders == ["none"] * 5 + ["all"] * 5 + ["attribution"] * 5, "12 trainings buy two masks of five seeds"


def test_one_failure_and_a_baseline_estimator_can_be_attributed_alone(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    name = json.loads((copy / "reports/test/verdicts.json").read_text())[0]["failure"]
    commands.attribute(copy, failure=[name], estimator=TracIn(), workers=0)
    sums = read(copy, "influence/test/groups.parquet")
    baseline = sums.filter(pc.field("estimator") == "tracin")
    assert pc.unique(baseline["failure"].cast(pa.string())).to_pylist() == [name]
    exact = sums.filter(pc.field("estimator") == "trak")
    assert exact.num_rows == read(small_run, "influence/test/groups.parquet").num_rows, "other rows must stay"


def test_attribution_order_starts_with_the_causal_groups(small_run: Path) -> None:
    """Planted cause: 12 bug levels of 18 wrong ones; chance would be an AUC of .5."""
    from aitia.attribution.effects.order import area_under_curve, attribution_order, effect_table
    from aitia.training.worlds.maze import ArrowMazeEnv, causal_levels

    causal = set(map(str, causal_levels(ArrowMazeEnv(size=4, levels=24, moved=12, bug=12, harmless=6))))
    run = open_run(small_run)
    rewards = [reward_summary(run.folder, seed) for seed in range(5)]
    effects = effect_table(read(small_run, "influence/test/groups.parquet"))
    order = attribution_order(effects, wrong_groups(rewards))
    assert len(order) == 18 and area_under_curve(order, causal) > 0.75


def test_command_line_reports_a_run(small_run: Path, tmp_path: Path, aitia_command: Any) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    shutil.rmtree(copy / "reports")
    done: Finished = aitia_command("illustrate", copy, "1", "--workers", 0)
    assert done.code == 0, done.err
    done = aitia_command("report", copy, "--workers", 0)
    assert done.code == 0 and "outer" in done.out and str(copy / "reports" / "test" / "index.html") in done.out
    strips = [page.read_text().count('class="strip"') for page in (copy / "reports/test/failures").glob("*.html")]
    assert sum(strips) == 1 and len(strips) > 5, "one failure has pictures, all have a page"
