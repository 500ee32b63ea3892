"""Private workers: no other user of this machine gives work to a command's workers, or plants modules for them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import dask
import other_user
import psutil
import pytest
from distributed import LocalCluster

from aitia.workflows.workers import schedulers
from aitia.workflows.workers.cluster import DaskWorkers
from aitia.workflows.workers.processes import ENVIRONMENT
from aitia.workflows.workers.schedulers import start_cluster


@pytest.fixture(scope="class")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaskWorkers]:
    """One worker, of a command in whose shared temporary folder another user has planted a module."""
    planted = tmp_path_factory.mktemp("temporary") / "dask-scratch-space"
    planted.mkdir()
    (planted / "planted.py").touch()
    with pytest.MonkeyPatch.context() as patch, DaskWorkers(1) as pool:
        for name in ENVIRONMENT:  # what a cluster of other tests, in this process, has left
            patch.delenv(name, raising=False)
        forkserver._forkserver._stop()  # type: ignore[attr-defined]
        patch.setattr(tempfile, "tempdir", str(planted.parent))
        assert pool.map(type, [1], "numbers") == [int]
        yield pool


_ROUTES = {
    f"distributed.{role}.http.routes": dask.config.get(f"distributed.{role}.http.routes")
    for role in ("scheduler", "worker")
}


@pytest.fixture(scope="class", autouse=True)
def own_settings() -> Iterator[None]:
    """Dask's settings as a process begins with them: a cluster that other tests share changes them while it lives."""
    with dask.config.set({"temporary-directory": None, **_ROUTES}):
        yield


@pytest.mark.slow
class TestOneWorker:
    """All of these ask the same worker."""

    def test_another_user_runs_nothing_and_reads_no_page(self, pool: DaskWorkers, tmp_path: Path) -> None:
        ran, pages = _attacked(tmp_path / "left", {address.port for address in _listening()})
        assert ran == {}, "another user ran code in these processes"
        assert {status for found in pages.values() for status in found.values()} == {404}

    def test_all_listens_on_loopback_or_in_a_private_folder_and_workers_keep_their_memory(
        self, pool: DaskWorkers
    ) -> None:
        opened = _listening()
        assert len(opened) >= 5, "scheduler, its HTTP server, nanny, worker and its HTTP server must listen somewhere"
        assert {address.ip for address in opened} == {"127.0.0.1"}
        folders = {Path(socket.laddr).parent for process in _processes() for socket in process.net_connections("unix")
                   if socket.laddr and not socket.laddr.startswith("@")}  # fmt: skip
        assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in folders), folders
        assert pool.map(os.getenv, ["MALLOC_TRIM_THRESHOLD_"], "environment") == [str(2**30)]

    def test_planted_modules_are_not_on_the_path_and_scratch_folders_are_private(self, pool: DaskWorkers) -> None:
        (there,) = pool.map(_paths, [0], "paths")
        for paths in (_paths(), there):
            assert not [path for path in paths if (Path(path) / "planted.py").exists()]
        scratch = [Path(path) for path in there if "dask-scratch-space" in path]
        assert scratch, "Dask no longer puts its scratch folders on sys.path: the test is empty"
        for folder in scratch:
            private = next(path for path in (folder, *folder.parents) if path.name.startswith("aitia-"))
            assert stat.S_IMODE(private.stat().st_mode) == 0o700 and private.stat().st_uid == os.getuid()

    def test_a_worker_started_later_is_as_private_as_the_first(self, pool: DaskWorkers) -> None:
        assert pool._cluster is not None
        pool._cluster.scale(2)
        assert pool._client is not None
        pool._client.wait_for_workers(2)
        try:
            scratch = [path for paths in pool._client.run(_paths).values() for path in paths if "dask-scratch" in path]
            assert scratch and all("/aitia-" in path for path in scratch)
            pages = {port: other_user.pages(port) for port in {address.port for address in _listening()}}
            assert {status for found in pages.values() for status in found.values()} == {404}
        finally:
            pool._cluster.scale(1)


@pytest.mark.slow
def test_the_attack_succeeds_where_connections_are_in_clear(tmp_path: Path) -> None:
    """The other user's script does work: else the test above cannot fail."""
    before = {address.port for address in _listening()}
    options: dict[str, Any] = {"n_workers": 1, "threads_per_worker": 1, "host": "127.0.0.1"}
    with LocalCluster(**options, dashboard_address="127.0.0.1:0", silence_logs=50):
        ran, pages = _attacked(tmp_path / "left", {address.port for address in _listening()} - before)
    assert {name.rpartition("-")[0] for name in ran} == {"tcp-scheduler", "tcp-worker", "tcp-peer"}
    assert os.getpid() in ran.values() and len(set(ran.values())) == 2, "the command's process and its worker"
    assert any(200 in found.values() for found in pages.values())


def test_nothing_is_left_of_a_private_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = _paths()
    with DaskWorkers(1) as pool:
        pool.map(str, [1], "numbers")
        assert [path.name.partition("-")[0] for path in tmp_path.glob("aitia-*")] == ["aitia"]
    assert not list(tmp_path.glob("*aitia-*")) and not list(tmp_path.glob("dask-*"))
    assert _paths() == before, "a folder that is gone can be made by another user"


def test_the_import_paths_of_the_command_come_after_those_of_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file in the working folder, perhaps a shared one, does not stand for an installed package."""
    mine = list(sys.path)
    monkeypatch.setattr(sys, "path", list(mine))
    schedulers.WorkerSetup([str(tmp_path), mine[-1]]).setup(None)
    assert sys.path == [*mine, str(tmp_path)]


def test_the_dashboard_is_there_for_who_asks() -> None:
    with dask.config.set({"aitia.dashboard-address": "127.0.0.1:0"}), start_cluster(1) as cluster:
        server: Any = cluster.scheduler
        with urllib.request.urlopen(f"http://127.0.0.1:{server.http_server.port}/info/main/workers.html") as answer:
            assert answer.status == 200


def _attacked(folder: Path, ports: set[int]) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """Let the other user's script try these ports, which all users see; return what it ran and read."""
    folder.mkdir()
    assert ports <= other_user.listening_ports()
    done = subprocess.run(
        [sys.executable, "-I", other_user.__file__, str(folder), *map(str, ports)],
        capture_output=True, text=True, check=False, env={"PATH": os.environ["PATH"]},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return found["ran"], found["pages"]


def _processes() -> list[psutil.Process]:
    here = psutil.Process()
    return [here, *here.children(recursive=True)]


def _listening() -> list[Any]:
    sockets = [socket for process in _processes() for socket in process.net_connections("inet")]
    return [socket.laddr for socket in sockets if socket.status == psutil.CONN_LISTEN]


def _paths(_: object = None) -> list[str]:
    return list(sys.path)
