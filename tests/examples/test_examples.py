"""Every example runs: task files from training to the page, with fast settings; the script; the notebook."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import textwrap
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbclient import NotebookClient

from aitia.workflows import commands

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
NOTEBOOK = EXAMPLES / "cartpole-reward-bug.ipynb"
THREADS = "import functools, distributed as d; d.LocalCluster = functools.partial(d.LocalCluster, processes=False)"
pytestmark = pytest.mark.slow


def merged(task: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a task with some keys replaced, key by key where both are mappings."""
    both = {key: merged(task[key], value) for key, value in changes.items() if isinstance(task.get(key), dict)}
    return {**task, **changes, **both}


TINY: dict[str, Any] = {
    "agent": {"total_timesteps": 256, "n_envs": 2, "hyperparameters": {"n_steps": 64, "batch_size": 64, "n_epochs": 1}},
    "evaluation": {"episodes": 4, "repeats": 2},
    "seeds": 2,
    "verify": {"seeds": 2, "points": 0},
}
VERDICTS = ("undetermined", "capability_failure", "aligned", "inner")  # nothing is learned in so few steps
CASES: dict[str, dict[str, Any]] = {
    "a2c": {**TINY, "agent": {"total_timesteps": 256, "n_envs": 2, "hyperparameters": {"n_steps": 64}}},
    "arrow-maze-clean": TINY,
    "arrow-maze-walls": TINY,
    "box-actions": TINY,
    "cartpole-drift": TINY,
    "corridor": TINY,
    "dict-observations": TINY,
    "image-observations": merged(TINY, {"agent": {"total_timesteps": 128}}),
    "maskable-ppo": TINY,
    "minigrid-corner": TINY,
    "minigrid-door": TINY,
    "two-mazes": TINY,
}


def test_every_task_file_is_run_here_and_every_file_is_explained() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == {*CASES, "procgen-coinrun"}, "that one: test_procgen.py"
    explained = (EXAMPLES / "README.md").read_text()
    files = {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
    assert not {name for name in files if f"`{name}`" not in explained}


def test_the_readme_shows_the_shortest_example_as_it_is() -> None:
    readme = textwrap.dedent((ROOT / "README.md").read_text().split("## Your own agent")[1].split("\n## ")[0])
    shown = [textwrap.dedent(block) for block in re.findall(r"```(?:python|yaml)\n(.*?)```", readme, re.DOTALL)]
    task = (EXAMPLES / "corridor.yaml").read_text()
    assert task == min((path.read_text() for path in EXAMPLES.glob("*.yaml")), key=len)
    assert shown[1] == task
    assert textwrap.indent(shown[0], " " * 8) in (EXAMPLES / "corridor.py").read_text()


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_task_file_runs_to_its_page(name: str, tmp_path: Path) -> None:
    task = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    assert task["name"] == name
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(merged(task, CASES[name])))
    summary = commands.run(tmp_path / "task.yaml", tmp_path / "run", workers=0)["test"]
    assert summary == json.loads((tmp_path / "run/reports/test/summary.json").read_text())
    assert summary["trainings"] >= 2 and summary["verdict"] in VERDICTS
    assert name in (tmp_path / "run/reports/test/index.html").read_text()


def test_a_script_is_recorded(tmp_path: Path) -> None:
    ends = importlib.import_module("record_a_script").main(str(tmp_path / "run"), steps=1024)
    assert ends["lava"] > 0 and set(ends) <= {"lava", "goal", "timeout"}
    assert len(list((tmp_path / "run/transitions/seed=0").iterdir())) == 2


def test_the_tutorial_runs_to_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("cartpole_tasks.py", "cartpole-drift.yaml"):
        shutil.copy(EXAMPLES / name, tmp_path)
    monkeypatch.setenv("AITIA_FAST", "1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / ".import"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    notebook.cells.insert(0, nbformat.v4.new_code_cell(THREADS))  # type: ignore[no-untyped-call]
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    said = "".join(str(output) for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "undetermined" in said and "reports/test/index.html" in said
    assert (tmp_path / "runs/cartpole-reward-bug/reports/test/index.html").is_file()


def test_the_tutorial_is_kept_with_what_it_said_at_its_own_settings() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    nbformat.validate(notebook)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not {output["output_type"] for output in outputs} - {"stream", "display_data"}, "an error was kept"
    said = "".join(str(output) for output in outputs)
    assert "**outer**" in said and "image/svg+xml" in said and "reports/test/index.html" in said
    assert NOTEBOOK.stat().st_size < 100_000
