"""The code in the documentation runs, and shows something."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3 import PPO

from aitia.datasets.files.store import RunFolder
from aitia.workflows.runs.adopt import recording_notes
from aitia.workflows.runs.begin import begin_run

DOCS = Path(__file__).parents[1] / "docs"


def blocks(page: str, others: int = 0) -> list[str]:
    """Return the Python blocks of a page, in their order; it has `others` in other languages."""
    text = (DOCS / page).read_text()
    found = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(found) + others == text.count("```") // 2, "a block is not run"
    return found


@pytest.mark.slow
def test_every_query_gives_a_table(small_run: Path) -> None:
    namespace: dict[str, Any] = {}
    tables = {}
    queries = blocks("queries.md")
    for query in queries:
        code = query.replace("runs/arrow-maze-outer", str(small_run))
        exec(compile(code, "queries.md", "exec"), namespace)
        tables[query] = namespace.pop("table")
    assert len(tables) == 9
    for query, table in tables.items():
        assert len(table) > 0, query
    by_context, windows, episodes, groups, failures, members, rewards, rows, observations = tables.values()
    assert by_context["transitions"].sum() == 5 * 4096 and 0 < by_context["wrong"].sum() < 5 * 4096
    assert windows["window"].to_list() == list(range(8)) and set(windows["seeds"]) == {5}
    assert {"arrow", "corner"} <= set(episodes["outcome"])
    assert groups["effect"].is_monotonic_increasing and groups["effect"].iloc[0] < 0
    assert set(failures["verdict"]) == {"outer"} and failures["failure"].is_unique
    rates = members.set_index(["order", "size"])["misbehaviour"]
    assert rates["all"].iloc[0] < 0.2 < 0.5 < rates["none"].iloc[0]
    assert len(rewards) == 20 and rewards["tau"].abs().is_monotonic_decreasing
    assert rows["group"].nunique() == 3 and (rows["paid"] != rows["intended"]).any()
    assert observations["count"].unique().tolist() == [512.0]


@pytest.mark.slow
def test_the_library_is_used_as_written(small_run: Path, tmp_path: Path) -> None:
    namespace: dict[str, Any] = {}
    for block in blocks("library.md"):
        code = block.replace("runs/arrow-maze-outer", str(small_run))
        code = code.replace('"runs/far-arrows")', f"{str(tmp_path / 'run')!r}, workers=0)").replace("20480", "512")
        code = code.replace('"seeds": 5', '"seeds": 1').replace('"episodes": 50, "repeats": 4', '"episodes": 4')
        code = code.replace(", workers=0)[", ")[")  # `aitia.open` takes no workers
        exec(compile(code, "library.md", "exec"), namespace)
    run, test, failure = (namespace[name] for name in ("run", "test", "failure"))
    assert test.verdict.label == "outer" and 0.5 < namespace["share"].value <= 1
    assert namespace["groups"].num_rows == namespace["mine"].num_rows > 0
    assert namespace["windows"].num_rows == len(run.seeds) * run.folder.window_count(0)
    assert set(namespace["rewards"]["failure"].to_pylist()) == {failure}
    assert namespace["wrong"].num_rows > 0 and len(namespace["observations"]) == namespace["window"].num_rows == 512
    assert namespace["before"].shape == namespace["after"].shape == (512, 4)
    assert namespace["result"].tau.shape == (512, 1) and namespace["effect"].shape == (1, 1)
    assert namespace["effect"].any()
    assert (tmp_path / "run/evaluations/test/episodes.parquet").exists()


class MyCartPole(CartPoleEnv):
    """The environment that a user of an rl-zoo3 model brings."""

    def step(self, action: Any) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)  # type: ignore[no-untyped-call]
        return observation, reward, terminated, truncated, {**info, "outcome": "fell"} if terminated else info


def _zoo_folder(folder: Path) -> None:
    inner = folder / "rl-trained-agents/ppo/CartPole-v1_1/CartPole-v1"
    inner.mkdir(parents=True)
    values = {"n_envs": 2, "n_steps": 32, "batch_size": 64, "n_timesteps": 1000.0, "policy": "MlpPolicy"}
    pairs = "  ".join(f"- - {key}\n    - {value}\n" for key, value in values.items())
    (inner / "config.yml").write_text(f"!!python/object/apply:collections.OrderedDict\n- {pairs}")
    (inner / "args.yml").write_text("!!python/object/apply:collections.OrderedDict\n- - - algo\n    - ppo\n")
    model = PPO("MlpPolicy", MyCartPole(), n_steps=32, batch_size=32, n_epochs=1, device="cpu")
    model.learn(64)
    model.save(inner.parent / "CartPole-v1.zip")


@pytest.mark.slow
def test_every_way_of_recording_works_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    _zoo_folder(tmp_path)
    namespace: dict[str, Any] = {"MyCartPole": MyCartPole}
    for block in blocks("recording.md", others=1):
        code = block.replace("100_000", "1_024").replace("n_steps=128, batch_size=256", "n_steps=64, batch_size=256")
        exec(compile(code, "recording.md", "exec"), namespace)
    (described,) = re.findall(r"```yaml\n(.*?)```", (DOCS / "recording.md").read_text(), re.DOTALL)
    task = described.replace("100000", "1024").replace("n_steps: 128", "n_steps: 64")
    (tmp_path / "mine.yaml").write_text(task)
    begun = begin_run(tmp_path / "mine.yaml", tmp_path / "runs/mine")
    assert begun.folder.missing_files(0) == [], "the task of the page does not fit its script"
    for name, windows in (("half", 2), ("loop", 4), ("zoo", 16)):
        assert RunFolder(tmp_path / "runs" / name).window_count(0) == windows
    assert "begins after 1,024 steps" in recording_notes(RunFolder(tmp_path / "runs/half"), [0])[1]
    assert "begins after 64 steps" in recording_notes(RunFolder(tmp_path / "runs/zoo"), [0])[1]
    assert namespace["dataset"].total_steps == 1024
    assert len(list((tmp_path / "runs/imported/transitions/seed=0").iterdir())) == 1


def test_every_test_that_a_promise_of_safety_names_is_there() -> None:
    page = (DOCS / "safety.md").read_text(encoding="utf-8")
    named = re.findall(r"`([a-z]+/test_\w+\.py)(?:::(\w+))?`", page)
    assert len(named) > 30
    for file, name in named:
        source = Path(__file__).parent / file
        assert source.is_file(), file
        defined = re.findall(r"\b(?:def|class) (\w+)", source.read_text(encoding="utf-8"))
        assert not name or name in defined, f"{file}::{name}"
