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
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from command_line import Finished
from distributed import Client, LocalCluster, Worker
from distributed.utils import LoopRunner
from faults import ROOMS, differences, limit_files, make_deadly, patient_workers, stamps

from aitia.workflows import commands
from aitia.workflows.workers import cluster as workers
from aitia.workflows.workers.cluster import DaskWorkers

pytestmark = pytest.mark.slow
Command = Callable[..., Finished]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with patient_workers() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def scheduler(cluster: LocalCluster) -> str:
    return str(cluster.scheduler_address)


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rooms") / "task.yaml"
    path.write_text(yaml.safe_dump(ROOMS))
    return path


@pytest.fixture(scope="module")
def undisturbed(task: Path, scheduler: str) -> Path:
    """A run of all stages to which nothing happened."""
    run = task.parent / "run"
    do_all(task, run, scheduler=scheduler)
    assert len(list((run / ".parts/bank/test").iterdir())) == 6, "nothing is trained again: the tests are empty"
    return run


def do_all(task: Path, run: Path, **where: Any) -> None:
    commands.run(task, run, **where)
    commands.validate(run, masks=4, **where)
    commands.report(run)  # with the noise ceiling


@pytest.fixture
def copy(undisturbed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(undisturbed, tmp_path / "run"))


@pytest.mark.parametrize("workers", [0, 1])
def test_in_this_process_by_one_worker_and_by_two_a_run_is_the_same_bit_for_bit(
    task: Path, undisturbed: Path, tmp_path: Path, workers: int
) -> None:
    """What lets other tests compute in their own process; the undisturbed run is that of two workers."""
    do_all(task, tmp_path / "run", workers=workers)
    assert not differences(tmp_path / "run", undisturbed)


def test_a_worker_killed_in_every_stage_changes_nothing(
    task: Path, undisturbed: Path, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders, run = tmp_path / "orders", tmp_path / "run"
    orders.mkdir()
    stages = ("train", "evaluate", "attribute", "verify", "validate")
    given = {f"{stage}-{when}" for stage in stages for when in ("within", "after")}
    for order in given:
        (orders / order).touch()
    with monkeypatch.context() as patched:
        patched.setattr(DaskWorkers, "map", make_deadly(orders))
        do_all(task, run, scheduler=scheduler)
    left = {path.name for path in orders.iterdir()}
    assert not left & given, "nobody was killed: the test is empty"
    assert {name for name in left if name.endswith(("kept", "redone"))} == {f"{stage}-kept" for stage in stages}
    assert not differences(run, undisturbed)


def test_the_command_killed_in_every_stage_continues_where_it_was(
    task: Path, undisturbed: Path, tmp_path: Path, scheduler: str
) -> None:
    """SIGKILL of the command itself, once in a stage: the same command goes on and does no finished piece again."""
    orders, run = tmp_path / "orders", tmp_path / "run"
    there = ["--scheduler", scheduler]
    again, alone = (["run", task, "--out", run, *where] for where in (there, ["--workers", "1"]))
    validate = ["validate", run, "--masks", "4", *there]
    killed = [
        (again, "train-after", ""), (again, "evaluate-after", ""), (again, "merge", "test/episodes.parquet"),
        (again, "attribute-after", ""), (alone, "verify-after", ""), (again, "merge", "/failures/"),
        (again, "merge", "summary.json"), (again, "", ""), (validate, "validate-after", ""), (validate, "", ""),
        (["report", run, *there], "", ""),
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
    assert not differences(run, undisturbed)
    now = stamps(run)
    for stage in ("train", "verify", "validate"):
        note = json.loads((orders / f"{stage}-note.json").read_text())
        finished = {path: stamp for path, stamp in note["files"].items() if "/.parts/train/" not in path}
        assert finished and {path: now.get(path) for path in finished} == finished, stage
        assert psutil.pid_exists(note["worker"]) == (stage != "verify"), "a worker of its own ends with the command"


def test_a_killed_worker_of_the_command_itself_costs_only_its_stack(
    copy: Path, undisturbed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGKILL in verify: the tables equal those of an undisturbed run, finished members are kept."""
    parts, orders = sorted((copy / ".parts/bank").rglob("*.parquet")), tmp_path / "orders"
    kept = [path for path in parts if path.name.startswith("all")]
    assert 0 < len(kept) < len(parts)
    for path in parts:
        if path not in kept:
            path.unlink()
    shutil.rmtree(copy / "bank")
    shutil.rmtree(copy / ".parts/policies")
    before = {path: path.stat().st_mtime_ns for path in kept}
    orders.mkdir()
    (orders / "verify-within").touch()
    with monkeypatch.context() as patched:
        patched.setattr(DaskWorkers, "map", make_deadly(orders))
        commands.verify(copy, workers=2)
    assert not list(orders.iterdir()), "no worker was killed: the test is empty"
    assert {path: path.stat().st_mtime_ns for path in kept} == before
    for name in ("masks", "outcomes"):
        one, other = (pq.read_table(run / f"bank/test/{name}.parquet") for run in (copy, undisturbed))
        assert one.equals(other), name


def test_a_piece_that_kills_its_worker_every_time_is_one_clear_message(
    cluster: LocalCluster, copy: Path, undisturbed: Path, tmp_path: Path, scheduler: str, aitia_command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (copy / ".parts/evaluations/test/seed=1.episodes.parquet").unlink()
    before, orders = stamps(copy), tmp_path / "orders"
    orders.mkdir()
    (orders / "evaluate-before").touch()
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    with monkeypatch.context() as patched:
        patched.setattr(DaskWorkers, "map", make_deadly(orders))
        done = aitia_command("evaluate", copy, "--scheduler", scheduler)
    assert done.code == 1 and "Traceback" not in done.err
    for words in ("evaluate rooms", "killed 1 time", "seed 1", "ran out of memory", "--workers", "same command"):
        assert words in done.err, done.err
    assert stamps(copy) == before
    assert aitia_command("evaluate", copy, "--scheduler", scheduler).code == 0
    assert not differences(copy, undisturbed)


@contextlib.contextmanager
def full_disk(scheduler: str, size: int, here: bool) -> Iterator[None]:
    """No file of this process, or of a worker, can grow beyond `size` bytes: writing more fails as on a full disk."""
    with Client(scheduler, set_as_default=False) as client:
        try:
            if here:
                limit_files(size)
            else:
                client.run(limit_files, size)
            yield
        finally:
            limit_files(resource.RLIM_INFINITY)
            client.run(limit_files, resource.RLIM_INFINITY)


@pytest.mark.parametrize(
    ("stage", "lost", "size", "named"),
    [
        ("train", "transitions", 3000, "/window=00000.parquet"),
        ("evaluate", "evaluations", 3000, ".parquet"),
        ("evaluate", "evaluations", 3000, "run.json"),
        ("attribute", "influence", 3000, "window=0000"),
        ("verify", "bank", 3000, "run.json"),
        ("report", "reports", 100_000, "assets/vega.js"),
        ("report", "reports", 3000, "verdicts.json"),
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
    with full_disk(scheduler, size, here=stage == "report" or named == "run.json"):
        done = aitia_command(stage, *arguments, "--scheduler", scheduler)
    assert done.code == 1 and "Traceback" not in done.err
    assert named in done.err and "cannot be written: file too large" in done.err and "same command again" in done.err
    now = stamps(copy)
    assert {path: now.get(path) for path in before} == before or stage == "train"
    for _ in range(100):  # the other worker, which outlives the command, may be writing still
        if not list(copy.rglob("*.tmp")):
            break
        time.sleep(0.1)
    assert not list(copy.rglob("*.tmp"))
    assert aitia_command(stage, *arguments, "--scheduler", scheduler).code == 0
    if stage == "train":  # what followed from the lost trainings went with them
        commands.run(task, copy, scheduler=scheduler)
    assert not differences(copy, undisturbed)


DAMAGED = [
    ("transitions/seed=1/window=00001.parquet", "attribute", "train"),
    ("checkpoints/seed=1/window=00001.safetensors", "attribute", "train"),
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
    (".parts/plays/training/seed=1.parquet", "evaluate", "evaluate"),
    (".parts/bank/test/all-*.parquet", "verify", "verify"),
    (".parts/policies/*.safetensors", "verify", "verify"),
    (".parts/validation/test/interactive-*-seed=1.safetensors", "validate", "validate"),
]  # fmt: skip


_READ_WITHOUT = {  # what has to be made again for such files to be read at all
    "transitions/seed=1": ["influence"], "checkpoints/seed=1": ["influence", ".parts/evaluations"],
    "evaluations/test": ["influence"], ".parts/plays/training": [".parts/evaluations"],
    ".parts/policies": [".parts/bank"],
}  # fmt: skip


def test_a_damaged_file_is_named_with_the_command_that_writes_it(
    task: Path, copy: Path, undisturbed: Path, scheduler: str, aitia_command: Command
) -> None:
    """Each kind of file cut in half: the stage that reads it says so; deleted and made again, all is as it was."""

    def call(stage: str) -> Finished:
        options = {"validate": ["--masks", "4"]}.get(stage, [])
        arguments = [task, "--out", copy] if stage in ("train", "run") else [copy]
        return aitia_command(stage, *arguments, *options, "--scheduler", scheduler)

    for pattern, reader, writer in DAMAGED:
        path = min(copy.glob(pattern), key=lambda path: (path.stat().st_mtime_ns, path))  # an agent: of verify
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        removed = _READ_WITHOUT.get(pattern.rpartition("/")[0], [])
        for folder in removed:
            shutil.rmtree(copy / folder, ignore_errors=True)
        done = call(reader)
        assert done.code == 2 and "Traceback" not in done.err, (pattern, done)
        assert str(path) in done.err and f"`aitia {writer}`" in done.err, done.err
        path.unlink()
        assert call(writer).code == 0
        if removed or writer == "train":  # what followed from a training went with it
            assert call("run").code == 0
    assert call("run").code == 0 and call("validate").code == 0 and call("report").code == 0
    assert not differences(copy, undisturbed)


class Outside:
    """A scheduler in a process of its own, and a worker of it in a thread of this one."""

    def __init__(self, folder: Path) -> None:
        self._loop = LoopRunner(asynchronous=False)
        self._loop.start()
        options = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(folder / "scheduler.json")]
        self._command = [sys.executable, "-m", "distributed.cli.dask_scheduler", *options]
        self._file = folder / "scheduler.json"
        self.start()

    def start(self, port: int = 0) -> None:
        """Start both."""
        self._file.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            [*self._command, "--port", str(port)], stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )  # fmt: skip
        while not (self._file.exists() and self._file.read_text().endswith("}")):
            time.sleep(0.05)
        self.address = json.loads(self._file.read_text())["address"]
        self._loop.run_sync(self._start_worker)

    async def _start_worker(self) -> None:
        self._worker = await Worker(self.address, nthreads=1, host="127.0.0.1")

    def start_again_when_killed(self) -> threading.Thread:
        """Do so, at the same address."""

        def again() -> None:
            self.process.wait()
            self.start(int(self.address.rpartition(":")[2]))

        found = threading.Thread(target=again)
        found.start()
        return found

    def close(self) -> None:
        self._loop.run_sync(self._worker.close)
        self.process.kill()
        self.process.wait()
        self._loop.stop()


def test_a_scheduler_that_ends_is_waited_for_and_then_one_clear_message(
    copy: Path, undisturbed: Path, tmp_path: Path, aitia_command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    orders = tmp_path / "orders"
    orders.mkdir()
    shutil.rmtree(copy / ".parts/evaluations")
    outside = Outside(tmp_path)
    monkeypatch.setattr(DaskWorkers, "map", make_deadly(orders))

    def evaluate() -> Finished:
        (orders / "evaluate-after").write_text(str(outside.process.pid))
        return aitia_command("evaluate", copy, "--scheduler", outside.address)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(workers, "_RECONNECT_SECONDS", 1)
            lost = evaluate()
        assert lost.code == 1 and "Traceback" not in lost.err
        for words in ("evaluate rooms", outside.address, "was lost and is not back after 1 s", "same command"):
            assert words in lost.err, lost.err
        finished = stamps(copy)
        outside.process.wait()
        outside.start()
        starter = outside.start_again_when_killed()
        found = evaluate()
        starter.join()
        assert found.code == 0 and "lost the Dask scheduler" in found.err, found.err
    finally:
        outside.close()
    now = stamps(copy)
    assert any("evaluations" in path for path in finished) and {path: now[path] for path in finished} == finished
    assert not differences(copy, undisturbed)
