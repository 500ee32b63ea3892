"""Reading a run folder: nothing of it is executed, nothing but the reports is written, changed tables are said."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Finished
from fresh import fresh_python

from aitia.datasets.errors import InputError, RunFolderError
from aitia.datasets.files.store import RunFolder
from aitia.datasets.frames import FrameIndex
from aitia.datasets.schema import failure_id
from aitia.workflows import commands
from aitia.workflows.runs.recorded import NOT_RECORDED
from aitia.workflows.runs.run import open_run

pytestmark = pytest.mark.slow
Command = Callable[..., Finished]
# `env`, `hooks` and `target` name the first three; the others are what installed packages import where they are there.
PLANTED = ("planted_env", "planted_hooks", "planted_target", "bottleneck", "numexpr", "pytz", "substrait")
AUDITED = """
import os, sys

root, touched = os.path.realpath(sys.argv[1]) + os.sep, []
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def below(path):
    return isinstance(path, (str, bytes, os.PathLike)) and os.path.realpath(os.fspath(path)).startswith(root)

def hook(event, arguments):
    if event == "open":
        path, mode, flags = arguments
        if below(path) and (flags & WRITING or set(mode or "") & set("wax+")):
            touched.append((event, path))
    elif event in ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.chmod", "os.utime", "os.truncate", "os.link",
                   "os.symlink", "shutil.rmtree"):
        if any(below(argument) for argument in arguments):
            touched.append((event, arguments))

from aitia.workflows import commands

before = list(sys.path)
sys.addaudithook(hook)
commands.report(sys.argv[1], out=sys.argv[2] + "/pages")
commands.compare(sys.argv[1], sys.argv[1], out=sys.argv[2] + "/compared")
assert not touched, touched
assert sys.path == before
"""


@pytest.fixture
def copy(small_run: Path, tmp_path: Path) -> Path:
    """A run that may be changed."""
    shutil.copytree(small_run, tmp_path / "copy")
    return tmp_path / "copy"


def change_manifest(run: Path, **changes: Any) -> None:
    values = json.loads((run / "run.json").read_text())
    values["task"] |= changes.pop("task", {})
    (run / "run.json").write_text(json.dumps({**values, **changes}))


def plant(run: Path, folder: Path) -> Callable[[], list[str]]:
    """Let a run name modules of a folder; return what tells which of them ran."""
    folder.mkdir()
    for name in PLANTED:
        note = f"open({str(folder / name)!r} + '.ran', 'w').close()\n"
        (folder / f"{name}.py").write_text(note)
    (folder / "planted_env.py").write_text(
        (folder / "planted_env.py").read_text()
        + "import gymnasium\n\n\ndef make(**kwargs):\n    return gymnasium.make('aitia/ArrowMaze-v0', **kwargs)\n"
    )
    task = {"env": "planted_env:make", "hooks": "planted_hooks:tell", "target": "planted_target:target"}
    change_manifest(run, task=task, task_folder=str(folder))
    return lambda: sorted(path.stem for path in folder.glob("*.ran"))


def contents(folder: Path) -> dict[str, Any]:
    """Return kind, content and time of everything in a folder."""
    return {
        str(path.relative_to(folder)): (
            path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None
        )
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


def test_reading_runs_nothing_that_a_run_names(copy: Path, tmp_path: Path) -> None:
    ran = plant(copy, tmp_path / "planted")
    named = {"report": [copy], "compare": [copy, copy]}
    calls = [[name, *map(str, runs), "--out", str(tmp_path / name)] for name, runs in named.items()]
    code = f"from aitia.workflows.cli import cli\nfor call in {calls}:\n    cli.main(call, standalone_mode=False)"
    done = fresh_python("-c", code)
    assert done.code == 0, done.told
    assert ran() == [] and all((tmp_path / command / "index.html").is_file() for command in named)


def test_opening_a_run_from_python_runs_nothing_of_it(copy: Path, tmp_path: Path) -> None:
    ran, before = plant(copy, tmp_path / "planted"), list(sys.path)
    assert open_run(copy).task.env == "planted_env:make"
    assert sys.path == before and ran() == [] and "planted_env" not in sys.modules


def test_reading_changes_nothing_of_a_run_and_works_where_nothing_can_be_written(copy: Path, tmp_path: Path) -> None:
    for path in copy.rglob("*"):
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = contents(copy)
    (tmp_path / "audited.py").write_text(AUDITED)
    done = fresh_python(tmp_path / "audited.py", copy, tmp_path)
    assert done.code == 0, done.told
    assert contents(copy) == before
    page = (tmp_path / "pages/index.html").read_text()
    assert "../copy/influence" in next((tmp_path / "pages/failures").iterdir()).read_text()
    assert "assets/frames/" in page
    for path in copy.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_report_replaces_what_is_in_its_folder_and_keeps_comparisons(copy: Path, aitia_command: Command) -> None:
    reports = copy / "reports/test"
    assert aitia_command("compare", copy, copy).code == 0
    for forged in ("assets/frames/forged.png", "assets/failures.js", "failures/9-999.html", "forged.html"):
        (reports / forged).write_text("forged")
    run_json, others = (copy / "run.json").read_bytes(), contents(copy / "influence")
    compared = contents(reports / "compare")
    assert aitia_command("report", copy).code == 0
    assert [path for path in reports.rglob("*") if path.is_file() and path.read_bytes() == b"forged"] == []
    assert contents(reports / "compare") == compared and compared
    assert (copy / "run.json").read_bytes() == run_json and contents(copy / "influence") == others
    assert [path.name for path in (copy / "reports").iterdir()] == ["test"], "nothing is left beside it"


def test_a_report_that_fails_leaves_the_earlier_one(copy: Path, aitia_command: Command) -> None:
    before = contents(copy / "reports")
    (copy / "influence/test/null.parquet").unlink()
    assert aitia_command("report", copy).code == 2
    assert contents(copy / "reports") == before


@pytest.mark.parametrize("name", ["reports", "reports/test", "evaluations/test/episodes.parquet"])
@pytest.mark.parametrize("command", ["report", "compare", "illustrate", "run"])
def test_a_link_out_of_a_run_is_refused_and_what_it_leads_to_stays(
    copy: Path, small_run: Path, tmp_path: Path, aitia_command: Command, name: str, command: str
) -> None:
    outside = tmp_path / "outside" / Path(name).name
    outside.parent.mkdir()
    shutil.move(copy / name, outside)
    (copy / name).symlink_to(outside)
    before = contents(outside.parent)
    arguments = {"compare": (copy, copy), "run": (small_run.parent / "task.yaml", "--out", copy)}.get(command, (copy,))
    done = aitia_command(command, *arguments)
    assert done.code == 2 and "leads out of the run folder" in done.err and str(copy / name) in done.err
    assert contents(outside.parent) == before


def test_a_link_to_another_folder_of_the_run_is_no_place_for_pages(copy: Path, aitia_command: Command) -> None:
    shutil.rmtree(copy / "reports/test")
    (copy / "reports/test").symlink_to(copy / "evaluations/test")
    before = contents(copy / "evaluations")
    for command in (("report", copy), ("compare", copy, copy)):
        done = aitia_command(*command)
        assert done.code == 2 and "link" in done.err
    assert contents(copy / "evaluations") == before


def test_a_pipe_in_a_run_is_refused_and_waits_for_nobody(copy: Path, aitia_command: Command) -> None:
    (copy / "evaluations/test/steps.parquet").unlink()
    os.mkfifo(copy / "evaluations/test/steps.parquet")
    done = aitia_command("report", copy)
    assert done.code == 2 and "neither a file nor a folder" in done.err


@pytest.mark.parametrize("where", ["holds something else", "inside the run", "around the run"])
def test_pages_take_no_place_where_something_else_is(
    copy: Path, tmp_path: Path, aitia_command: Command, where: str
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    out = {"holds something else": tmp_path / "mine", "inside the run": copy / "influence", "around the run": tmp_path}
    before = contents(tmp_path)
    for command in (("report", copy), ("compare", copy, copy)):
        done = aitia_command(*command, "--out", out[where])
        assert done.code == 2 and "--out" in done.err
    assert contents(tmp_path) == before


def test_pages_are_written_where_a_link_leads(copy: Path, tmp_path: Path, aitia_command: Command) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for _ in range(2):
        done = aitia_command("report", copy, "--out", tmp_path / "link")
        assert done.code == 0, done.err
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real/index.html").is_file()
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_folder_that_cannot_be_written_to_asks_for_another(small_run: Path, aitia_command: Command) -> None:
    done = aitia_command("report", small_run, "--out", "/proc/nothing/pages")
    assert done.code == 2 and "cannot be written" in done.err and "--out FOLDER" in done.err


@pytest.mark.parametrize("name", ["../../x", "te", "", "test/../test", "/etc"])
def test_a_set_is_named_as_it_is(copy: Path, aitia_command: Command, name: str) -> None:
    for command in ("report", "evaluate", "attribute", "verify", "validate", "illustrate"):
        done = aitia_command(command, copy, "--set", name)
        assert done.code == 2 and "evaluation set" in done.err, command
    assert aitia_command("compare", copy, copy, "--set", name).code == 2


@pytest.mark.parametrize("name", ["0", "0-", "../0-1", "0-1/../../x"])
def test_a_failure_is_named_as_it_is(copy: Path, aitia_command: Command, name: str) -> None:
    done = aitia_command("attribute", copy, "--failure", name)
    assert done.code == 2 and "SEED-EPISODE" in done.err


def test_tables_and_manifests_name_no_files_elsewhere(copy: Path, aitia_command: Command) -> None:
    with pytest.raises(RunFolderError, match="two whole numbers"):
        failure_id(0, "../../x")  # type: ignore[arg-type]
    change_manifest(copy, task={"sets": {"../../x": {}}})
    assert aitia_command("report", copy, "--set", "../../x").code == 2
    change_manifest(copy, task={"sets": {}})
    index = json.loads((copy / "frames/test/index.json").read_text())
    first = next(iter(index["failures"].values()))
    first["steps"][0]["file"] = "../../../secret.png"
    (copy / "frames/test/index.json").write_text(json.dumps(index))
    done = aitia_command("report", copy)
    assert done.code == 2 and "index.json was not written by aitia" in done.err


def test_a_page_says_which_tables_were_changed_by_hand(copy: Path, aitia_command: Command) -> None:
    path = copy / "evaluations/test/episodes.parquet"
    table = pq.read_table(path)
    lengths = pa.array([length + 1 for length in table["length"].to_pylist()], pa.int32())
    pq.write_table(table.set_column(table.column_names.index("length"), "length", lengths), path)
    index = FrameIndex.read(copy / "frames/test")
    assert index is not None
    failure = next(iter(index.failures.values()))
    (copy / "frames/test" / failure.steps[0].file).write_bytes(b"another picture")
    assert aitia_command("report", copy).code == 0 and aitia_command("compare", copy, copy).code == 0
    reports = copy / "reports/test"
    changed = ["evaluations/test/episodes.parquet", f"frames/test/{failure.steps[0].file}"]
    assert json.loads((reports / "summary.json").read_text())["changed_by_hand"] == changed
    pages = [reports / "index.html", reports / "clusters/0.html", *(reports / "failures").iterdir()]
    for page in pages:
        text = page.read_text()
        assert 'class="changed"' in text and all(file in text for file in changed), page.name
    assert "copy/evaluations/test/episodes.parquet" in (reports / "compare/copy/index.html").read_text()
    assert not (reports / "assets/frames" / failure.steps[0].file).exists()


@pytest.mark.parametrize(
    "stage", ["evaluations", "influence", "bank", "frames", ".parts/reward_sums", ".parts/learning"]
)
def test_every_stage_leaves_checksums_of_its_tables(small_run: Path, stage: str) -> None:
    checksums = json.loads((small_run / "run.json").read_text())["checksums"]
    found = {name: checksum for name, checksum in checksums.items() if name.startswith(stage)}
    files = [path for path in (small_run / stage).rglob("*") if path.suffix in (".parquet", ".json")]
    names = {path.relative_to(small_run).as_posix() for path in files if not path.name.startswith("validation")}
    assert found.keys() == names and names
    for name, checksum in found.items():
        assert hashlib.sha256((small_run / name).read_bytes()).hexdigest() == checksum, name
    page = (small_run / "reports/test/index.html").read_text()
    assert 'class="changed"' not in page and NOT_RECORDED not in page


def test_a_run_of_an_earlier_version_is_readable_and_says_what_it_lacks(copy: Path, aitia_command: Command) -> None:
    values = json.loads((copy / "run.json").read_text())
    for key in ("environments", "estimator", "checksums"):
        del values[key]
    (copy / "run.json").write_text(json.dumps(values))
    shutil.rmtree(copy / "frames")
    before = json.loads((copy / "reports/test/verdicts.json").read_text())
    done = aitia_command("report", copy)
    assert done.code == 0, done.err
    assert json.loads((copy / "reports/test/verdicts.json").read_text()) == before
    page = (copy / "reports/test/index.html").read_text()
    assert page.count(NOT_RECORDED) == 2 and 'class="changed"' not in page


@pytest.mark.parametrize("group_by", ["transition", "cluster"])
def test_groups_that_need_the_environment_are_read_without_it(
    copy: Path, tmp_path: Path, write_task: Callable[..., Path], aitia_command: Command, group_by: str
) -> None:
    commands.train(write_task(group_by=group_by), copy, workers=0)
    commands.attribute(copy, workers=0)
    plant(copy, tmp_path / "planted")
    done = aitia_command("report", copy)
    assert done.code == 0, done.err
    shutil.rmtree(copy / ".parts/reward_sums" / group_by)
    done = aitia_command("report", copy)
    assert done.code == 2 and "`aitia attribute` writes it" in done.err


def test_report_draws_nothing_and_says_who_does(copy: Path, aitia_command: Command) -> None:
    done = aitia_command("report", copy, "--illustrate", "all")
    assert done.code == 2 and "aitia illustrate RUN all" in done.err
    with pytest.raises(InputError, match="aitia illustrate"):
        commands.report(copy, illustrate=4)  # type: ignore[arg-type]


def test_illustrate_draws_further_failures_and_as_few_as_asked(copy: Path) -> None:
    frames = RunFolder(copy).frames_folder("test")
    first = FrameIndex.read(frames)
    assert first is not None and first.asked == 20 == len(first.failures)
    commands.illustrate(copy, "all", workers=0)
    every = FrameIndex.read(frames)
    names = [entry["failure"] for entry in json.loads((copy / "reports/test/verdicts.json").read_text())]
    assert every is not None and list(every.failures) == names and len(names) > 20
    assert {name: every.failures[name] for name in first.failures} == first.failures, "drawn ones stay"
    commands.report(copy)
    pages = [path.read_text() for path in (copy / "reports/test/failures").glob("*.html")]
    assert all('class="strip"' in page for page in pages) and len(pages) == len(names)
    commands.illustrate(copy, 1, workers=0)
    one = FrameIndex.read(frames)
    assert one is not None and len(one.failures) == 1
    assert one.files == {path.name for path in frames.iterdir()} - {"index.json"}, (
        "files that no page shows are removed"
    )
    commands.evaluate(copy, workers=0)
    assert FrameIndex.read(frames) == one, "how many were asked for is remembered"


def test_a_report_refuses_influence_of_another_task(
    copy: Path, write_task: Callable[..., Path], aitia_command: Command
) -> None:
    assert aitia_command("report", copy).code == 0
    before = contents(copy / "reports")
    commands.train(write_task(target="episode"), copy, workers=0)
    done = aitia_command("report", copy)
    assert done.code == 2 and "out of date" in done.err and f"`aitia attribute {copy}" in done.err
    assert contents(copy / "reports") == before
    values = json.loads((copy / "run.json").read_text())
    (copy / "run.json").write_text(json.dumps({**values, "attribution": None}))
    assert aitia_command("report", copy).code == 0, "a run of an earlier version does not say what it asks for"
    (copy / "run.json").write_text(json.dumps(values))
    commands.attribute(copy, workers=0)
    assert aitia_command("report", copy).code == 0


@pytest.mark.parametrize("told", ["{}", '{"trak": []}', "no JSON", "[1]"])
@pytest.mark.parametrize("table", ["groups", "null"])
def test_a_report_refuses_tables_that_do_not_all_cover_the_failures(
    copy: Path, aitia_command: Command, table: str, told: str
) -> None:
    """As a call leaves them that was ended between their writing."""
    path = copy / f"influence/test/{table}.parquet"
    whole = pq.ParquetFile(path).read()
    pq.write_table(whole.replace_schema_metadata({**whole.schema.metadata, b"failures": told.encode()}), path)
    done = aitia_command("report", copy)
    assert done.code == 2 and "out of date" in done.err, done.err


@pytest.mark.parametrize("estimator", [{"x": "y"}, {"name": "trak"}, {"name": "trak", "reason": "r", "more": "m"}])
def test_a_damaged_estimator_ends_in_one_line(copy: Path, aitia_command: Command, estimator: dict[str, str]) -> None:
    change_manifest(copy, estimator=estimator)
    done = aitia_command("report", copy)
    assert done.code == 2 and done.err.count("\n") == 1 and "key `estimator`" in done.err, done.err


@pytest.mark.parametrize(
    "text", ["[]", "{}", '{"interactive": 1}', '{"interactive": {"noise_ceiling": {"value": "x"}}}']
)
def test_a_damaged_validation_ends_in_one_line(copy: Path, aitia_command: Command, text: str) -> None:
    path = copy / "validation/test/validation.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    done = aitia_command("report", copy)
    assert done.code == 2 and done.err.count("\n") == 1 and f"{path} was not written by aitia" in done.err, done.err


@pytest.mark.parametrize(
    ("key", "value"),
    [("verdict", 3), ("verdict", None), ("misbehaviour_rate", []), ("outer_share", {"value": "x"}), ("reasons", 7),
     ("ease", "x"), ("rule", {}), (None, [])],
)  # fmt: skip
def test_a_damaged_summary_ends_in_one_line(copy: Path, aitia_command: Command, key: str | None, value: Any) -> None:
    path = copy / "reports/test/summary.json"
    path.write_text(json.dumps(value if key is None else {**json.loads(path.read_text()), key: value}))
    done = aitia_command("compare", copy, copy)
    assert done.code == 2 and done.err.count("\n") == 1 and f"{path} was not written by aitia" in done.err, done.err


def test_an_episode_that_ends_twice_ends_in_one_line(copy: Path, aitia_command: Command) -> None:
    shutil.rmtree(copy / ".parts/learning")
    path = RunFolder(copy).transitions_path(0, 0)
    whole = pq.ParquetFile(path).read()
    place = whole.column_names.index("outcome")
    pq.write_table(whole.set_column(place, "outcome", pa.array(["arrow"] * whole.num_rows)), path)
    done = aitia_command("report", copy)
    assert done.code == 2 and done.err.count("\n") == 1 and "ends twice" in done.err, done.err


def test_a_lock_is_not_written_through_a_link_out_of_a_run(tmp_path: Path, write_task: Callable[..., Path]) -> None:
    run, elsewhere = tmp_path / "sent", tmp_path / "elsewhere"
    run.mkdir()
    elsewhere.mkdir()
    (run / ".parts").symlink_to(elsewhere)
    with pytest.raises(RunFolderError, match="leads out of the run folder"):
        commands.train(write_task(), run)
    assert not list(elsewhere.iterdir())
