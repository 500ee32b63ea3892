"""Faults: killed processes, a full disk, damaged files, a lost scheduler. The result is that of an undisturbed run."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest
import yaml
from command_line import Finished
from distributed import Client, LocalCluster
from faults import ROOMS, differences, limit_files, make_deadly, stamps

from aitia.workflows import commands
from aitia.workflows.workers import Workers

pytestmark = pytest.mark.slow
Command = Callable[..., Finished]


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A cluster of this module's own, whose workers come back however long that takes on a busy machine."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "10 minutes"}),
        LocalCluster(
            2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as own,
    ):
        yield str(own.scheduler_address)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rooms") / "task.yaml"
    path.write_text(yaml.safe_dump(ROOMS))
    return path


@pytest.fixture(scope="module")
def undisturbed(task: Path, scheduler: str) -> Path:
    """A run of all stages to which nothing happened."""
    run = task.parent / "run"
    commands.run(task, run, scheduler=scheduler)
    commands.validate(run, masks=4, scheduler=scheduler)
    bank = sorted(path.name for path in (run / ".parts/bank/test").iterdir())
    assert len(bank) == 9, "nothing is trained again: the tests are empty"
    return run


@pytest.fixture
def copy(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


def test_a_worker_killed_in_every_stage_changes_nothing(
    task: Path, undisturbed: Path, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, run = tmp_path / "orders", tmp_path / "run"
    orders.mkdir()
    given = ("train-within", "train-after", "evaluate-after", "attribute-after", "verify-within", "report-within",
             "validate-after")  # fmt: skip
    for order in given:
        (orders / order).touch()
    monkeypatch.setattr(Workers, "map", make_deadly(orders))
    commands.run(task, run, scheduler=scheduler)
    commands.validate(run, masks=4, scheduler=scheduler)
    left = {path.name for path in orders.iterdir()}
    assert not left.intersection(given), "nobody was killed: the test is empty"
    assert {name for name in left if name.endswith(("kept", "redone"))} == {
        f"{stage}-kept" for stage in ("train", "evaluate", "attribute", "validate")
    }  # fmt: skip
    assert not differences(run, undisturbed)


def test_the_command_killed_in_every_stage_continues_where_it_was(
    task: Path, undisturbed: Path, tmp_path: Path, scheduler: str
) -> None:
    """SIGKILL of the command itself, once in a stage: the same command goes on and does no finished piece again."""
    orders, run = tmp_path / "orders", tmp_path / "run"
    again = ["run", task, "--out", run, "--scheduler", scheduler]
    alone = ["verify", run, "--workers", "1"]  # its worker ends with it
    validate = ["validate", run, "--masks", "4", "--scheduler", scheduler]
    killed = [
        (again, "train-after", ""), (again, "evaluate-after", ""), (again, "merge", "test/episodes.parquet"),
        (again, "attribute-after", ""), (alone, "verify-after", ""), (again, "report-after", ""),
        (again, "merge", "summary.json"), (again, "", ""), (validate, "validate-after", ""), (validate, "", ""),
    ]  # fmt: skip
    for number, (_, order, content) in enumerate(killed):
        (orders / str(number)).mkdir(parents=True)
        if order:
            (orders / str(number) / order).write_text(content)
    calls = json.dumps([list(map(str, arguments)) for arguments, _, _ in killed])
    done = subprocess.run(
        [sys.executable, "-m", "faults", str(orders), calls], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = [-signal.SIGKILL if order else 0 for _, order, _ in killed]
    assert json.loads(done.stdout.splitlines()[-1]) == ends, done.stderr
    for stage in ("train", "evaluate", "attribute", "verify", "validate"):
        files = json.loads((orders / f"{stage}-note.json").read_text())["files"]
        assert files, "nothing was finished: the test is empty"
        now = stamps(run)
        assert {path: now[path] for path in files if path in now} == {p: files[p] for p in files if p in now}, stage
        assert stage == "attribute" or not set(files).difference(now), stage
    assert not differences(run, undisturbed)


def test_a_piece_that_kills_its_worker_every_time_is_one_clear_message(
    copy: Path, undisturbed: Path, tmp_path: Path, aitia_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = copy / ".parts/evaluations/test/seed=1.episodes.parquet"
    part.unlink()
    before = stamps(copy)
    orders = tmp_path / "orders"
    orders.mkdir()
    (orders / "evaluate-before").touch()
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), monkeypatch.context() as patched:
        patched.setattr(Workers, "map", make_deadly(orders))
        done = aitia_command("evaluate", copy, "--workers", "1")
    assert done.code == 1 and "Traceback" not in done.err
    for words in ("evaluate rooms", "killed 1 times", "seed 1", "ran out of memory", "--workers", "same command"):
        assert words in done.err, done.err
    assert stamps(copy) == before
    assert aitia_command("evaluate", copy, "--workers", "1").code == 0
    assert not differences(copy, undisturbed)


@contextlib.contextmanager
def full_disk(scheduler: str, size: int) -> Iterator[None]:
    """No file of this process or a worker can grow beyond `size` bytes: writing more fails as on a full disk."""
    with Client(scheduler, set_as_default=False) as client:
        try:
            for limit in (client.run, lambda function, *a: function(*a)):
                limit(limit_files, size)
            yield
        finally:
            limit_files(resource.RLIM_INFINITY)
            client.run(limit_files, resource.RLIM_INFINITY)


@pytest.mark.parametrize(
    ("stage", "lost", "size", "named"),
    [
        ("train", "transitions", 3000, "/window=00000.parquet"),
        ("evaluate", "evaluations", 3000, ".parquet"),
        ("attribute", "influence", 3000, "window=0000"),
        ("verify", "bank", 3000, ".parquet"),
        ("report", "reports", 100_000, "assets/vega.js"),
        ("report", "reports", 3000, ".html"),
    ],
)
def test_a_full_disk_is_one_clear_message_and_nothing_is_lost(
    stage: str, lost: str, size: int, named: str, task: Path, copy: Path, undisturbed: Path, scheduler: str,
    aitia_command: Command,
) -> None:  # fmt: skip
    for folder in (copy / lost, copy / ".parts" / lost):
        shutil.rmtree(folder, ignore_errors=True)
    before = stamps(copy)
    arguments = [task, "--out", copy] if stage == "train" else [copy]
    with full_disk(scheduler, size):
        done = aitia_command(stage, *arguments, "--scheduler", scheduler)
    assert done.code == 1 and "Traceback" not in done.err
    assert named in done.err and "cannot be written: file too large" in done.err and "same command again" in done.err
    now = stamps(copy)
    assert {path: now.get(path) for path in before} == before or stage == "train"
    assert not list(copy.rglob("*.tmp"))
    assert aitia_command(stage, *arguments, "--scheduler", scheduler).code == 0
    assert not differences(copy, undisturbed)


DAMAGED = [
    ("transitions/seed=1/window=00002.parquet", "attribute", "train"),
    ("checkpoints/seed=1/window=00002.safetensors", "attribute", "train"),
    ("checkpoints/seed=1/final.safetensors", "evaluate", "train"),
    ("evaluations/test/episodes.parquet", "attribute", "evaluate"),
    ("evaluations/test/steps.parquet", "attribute", "evaluate"),
    ("influence/test/groups.parquet", "verify", "attribute"),
    ("influence/test/transitions.parquet", "report", "attribute"),
    ("influence/test/null.parquet", "report", "attribute"),
    ("bank/test/masks.parquet", "report", "verify"),
    ("bank/test/outcomes.parquet", "report", "verify"),
    (".parts/evaluations/test/seed=0.steps.parquet", "evaluate", "evaluate"),
    (".parts/evaluations/test/seed=0.episodes.parquet", "evaluate", "evaluate"),
    (".parts/reward_sums/context/seed=1.parquet", "verify", "attribute"),
    (".parts/bank/test/all-*.parquet", "verify", "verify"),
    (".parts/validation/test/interactive-*-seed=1.safetensors", "validate", "validate"),
]  # fmt: skip


def test_a_damaged_file_is_named_with_the_command_that_writes_it(
    task: Path, copy: Path, undisturbed: Path, scheduler: str, aitia_command: Command
) -> None:
    """Each kind of file cut in half: the stage that reads it says so; deleted and made again, all is as it was."""

    def call(stage: str) -> Finished:
        options = {"validate": ["--masks", "4"]}.get(stage, [])
        arguments = [task, "--out", copy] if stage in ("train", "run") else [copy]
        return aitia_command(stage, *arguments, *options, "--scheduler", scheduler)

    for pattern, reader, writer in DAMAGED:
        path = sorted(copy.glob(pattern))[0]
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        if reader == "attribute":
            shutil.rmtree(copy / "influence")
        done = call(reader)
        assert done.code == 2 and "Traceback" not in done.err, (pattern, done)
        assert str(path) in done.err and f"`aitia {writer}`" in done.err, done.err
        path.unlink()
        assert call(writer).code == 0
        if writer != reader:
            done = call(reader)
            assert done.code == 0, done.err
    assert call("run").code == 0 and call("validate").code == 0
    assert not differences(copy, undisturbed)
