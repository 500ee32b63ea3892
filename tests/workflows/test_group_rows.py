"""The name of a group is joined to the transitions that are in it, and stands on the pages."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from aitia.datasets.errors import InputError
from aitia.datasets.files.store import RunFolder, read_table, write_table
from aitia.datasets.schema import current_top_transitions
from aitia.training.edits.groups import ByTransition
from aitia.training.environments.spec import EnvSpec
from aitia.workflows import commands
from aitia.workflows.runs.run import open_run

PLACE = ["seed", "window", "env", "step"]
TASK: dict[str, Any] = {
    "name": "rows", "env": "toy_environments:Corridor", "train_kwargs": {"intended_error": 0.5},
    "outcomes": {"desired": ["goal"], "misbehaved": ["pit"]},
    "agent": {"total_timesteps": 128, "n_envs": 2, "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 1}},
    "seeds": [0, 1], "evaluation": {"episodes": 4, "repeats": 2}, "verify": {"seeds": 2, "points": 0},
    "group_by": "transition",
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "task.yaml").write_text(yaml.safe_dump(TASK))
    commands.run(folder / "task.yaml", folder / "run", workers=0)
    return folder / "run"


@pytest.mark.slow
def test_groups_are_joined_to_their_rows(run: Path) -> None:
    rows = open_run(run).group_rows()
    assert rows.column_names == [*PLACE, "group"] and rows.num_rows == 2 * 128
    assert len({tuple(row[name] for name in PLACE) for row in rows.to_pylist()}) == rows.num_rows, "each once"
    sums = pq.read_table(run / "influence/test/groups.parquet")
    named = pc.unique(sums["group"].cast(pa.string())).to_pylist()
    assert named and set(named) <= set(rows["group"].to_pylist())
    assert all(name.startswith("obs [") and name.endswith((" / 0", " / 1")) for name in named)
    chosen = named[0]
    mine = open_run(run).group_rows([chosen]).to_pylist()
    counted = dict(zip(sums["group"].to_pylist(), sums["transitions"].to_pylist(), strict=True))
    assert {row["group"] for row in mine} == {chosen}
    assert len([row for row in mine if row["seed"] == 1]) == counted[chosen], "of the last seed, as the sums count"
    action, grouping = chosen.rpartition(" / ")[2], ByTransition(EnvSpec(TASK["env"], TASK["train_kwargs"]))
    for row in mine[:4]:
        window = pq.ParquetFile(RunFolder(run).transitions_path(row["seed"], row["window"])).read()
        found = window.slice(row["env"] * 32 + row["step"], 1)
        assert found["action"].to_pylist() == [int(action)] and grouping.of_table(found).tolist() == [chosen]


@pytest.mark.slow
def test_top_transitions_name_their_group_and_the_context_that_was_told(run: Path) -> None:
    top = pq.read_table(run / "influence/test/transitions.parquet")
    assert top["context"].null_count == top.num_rows > 0, "a corridor tells no context"
    expected = {tuple(row[name] for name in PLACE): row["group"] for row in open_run(run).group_rows().to_pylist()}
    assert all(expected[tuple(row[name] for name in PLACE)] == row["group"] for row in top.to_pylist())


@pytest.mark.slow
def test_a_name_that_no_transition_has_is_refused_with_the_nearest(run: Path) -> None:
    with pytest.raises(InputError, match=r"obs \[0.5, 1\] / 7.*Did you mean `obs \[0.5, 1\] / [01]`"):
        open_run(run).group_rows(["obs [0.5, 1] / 7"])


@pytest.mark.slow
def test_pages_show_the_names_and_do_not_speak_of_one_group(run: Path) -> None:
    index = (run / "reports/test/index.html").read_text()
    assert "The environment tells no context." in index and "form one group" not in index
    pages = [path.read_text() for path in (run / "reports/test/failures").glob("*.html")]
    assert pages and all("group obs [" in page for page in pages)


@pytest.mark.slow
def test_tables_of_0_1_are_read_with_their_groups(run: Path) -> None:
    opened = open_run(run)
    opened.manifest.attribution = None  # 0.1 did not keep it
    path = opened.folder.influence_path("test", "transitions")
    now = read_table(path)
    old = now.drop_columns(["context"]).rename_columns(
        ["context" if n == "group" else n for n in now.column_names if n != "context"]
    )
    assert "group" not in old.column_names
    assert current_top_transitions(old)["group"].equals(now["group"])
    assert current_top_transitions(old).column_names == now.column_names
    write_table(path, old)
    try:
        found = opened["test"].attributed.transitions
        assert found["group"].to_pylist() == now["group"].to_pylist()
    finally:
        write_table(path, now)


USERS_ENV = """
from pathlib import Path

from toy_environments import Corridor

Path(__file__).with_suffix(".ran").touch()
"""


@pytest.fixture
def sent(run: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a run as it is with somebody else, whose task names a module beside the task file."""
    (tmp_path / "code").mkdir()
    module = f"env_of_{tmp_path.name.replace('-', '_')}"  # another one in each test: modules are imported once
    (tmp_path / "code" / f"{module}.py").write_text(USERS_ENV)
    shutil.copytree(run, tmp_path / "sent")

    def made(**task: Any) -> Path:
        path = tmp_path / "sent/run.json"
        values = json.loads(path.read_text())
        values["task"] |= {"env": f"{module}:Corridor", **task}
        path.write_text(json.dumps({**values, "task_folder": str(tmp_path / "code")}))
        return tmp_path / "sent"

    return made


def ran(sent: Path) -> bool:
    return any((sent.parent / "code").glob("*.ran"))


@pytest.mark.slow
@pytest.mark.parametrize("group_by", ["transition", "cluster"])
def test_rows_of_a_sent_run_run_nothing_of_it_without_trust(sent: Callable[..., Path], group_by: str) -> None:
    with pytest.raises(InputError, match="--trust"):
        open_run(sent(group_by=group_by)).group_rows()
    assert not ran(sent())
    with pytest.raises(InputError, match="`os:system`"):
        open_run(sent(env="os:system", train_kwargs={"command": "true"})).group_rows()


@pytest.mark.slow
def test_rows_need_no_code_where_the_grouping_needs_none(sent: Callable[..., Path], run: Path) -> None:
    path = sent(group_by="context")
    assert open_run(path).group_rows().num_rows == open_run(run).group_rows().num_rows and not ran(path)


@pytest.mark.slow
def test_a_module_beside_the_task_file_is_found(
    sent: Callable[..., Path], run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = sent()
    assert open_run(path).group_rows(trust=True).equals(open_run(run).group_rows()) and ran(path)
    assert open_run(path).group_rows().equals(open_run(run).group_rows()), "trust is remembered"
