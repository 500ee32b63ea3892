"""Schedulers: this machine's own cluster on loopback, existing ones by address, file and TLS, and their workers."""

from __future__ import annotations

import ast
import contextlib
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import pytest
from command_line import Finished
from dask_jobqueue.slurm import SLURMCluster
from distributed import LocalCluster, Security
from faults import ROOMS
from shared_cluster import without_certificates

from aitia.datasets.errors import InputError
from aitia.datasets.files.store import RunFolder, write_json
from aitia.datasets.manifest import Manifest
from aitia.workflows.workers import cluster as workers
from aitia.workflows.workers import schedulers
from aitia.workflows.workers.cluster import DaskWorkers

DOCS = Path(__file__).parents[2] / "docs"
Command = Callable[..., Finished]
AGENT = {**ROOMS["agent"], "total_timesteps": 256}
TRAIN: dict[str, Any] = {**ROOMS, "train_kwargs": {}, "test_kwargs": {}, "seeds": 1, "agent": AGENT}
LOCAL = {"n_workers": 1, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}


@dataclass(frozen=True)
class RootPiece:
    """A piece of a run that does nothing."""

    root: Path


@pytest.fixture(scope="module")
def scheduler() -> Iterator[str]:
    """A cluster whose one worker is a thread of this process."""
    with LocalCluster(**LOCAL, processes=False, protocol="tcp", silence_logs=50) as cluster:
        yield str(cluster.scheduler_address)


def test_a_scheduler_file_gives_the_address(tmp_path: Path, scheduler: str) -> None:
    write_json(tmp_path / "scheduler.json", {"type": "Scheduler", "address": scheduler})
    with DaskWorkers(scheduler=str(tmp_path / "scheduler.json")) as pool:
        assert pool.map(str, [1, 2], "numbers") == ["1", "2"]


def test_where_no_scheduler_answers_the_message_says_so(
    tmp_path: Path, aitia_command: Command, write_task: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_CONNECT_SECONDS", 0.5)
    for given in ("tcp://127.0.0.1:1", tmp_path / "none.json", "nonsense://x"):
        done = aitia_command("train", write_task(**TRAIN), "--out", tmp_path / "run", "--scheduler", given)
        assert done.code == 2 and f"--scheduler {given} was given, but no Dask scheduler answers" in done.err
        assert not (tmp_path / "run").exists()


def test_workers_with_other_versions_are_refused(
    tmp_path: Path, scheduler: str, aitia_command: Command, write_task: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    command = schedulers.WorkerSetup([])  # made by the command, compared by the worker
    other = replace(command, versions={**command.versions, "torch": "1.0.0"})
    monkeypatch.setattr(schedulers, "WorkerSetup", lambda paths: other)
    done = aitia_command("train", write_task(**TRAIN), "--out", tmp_path / "run", "--scheduler", scheduler)
    assert (
        done.code == 2
        and f"torch {command.versions['torch']} (here 1.0.0)" in done.err
        and "install the same" in done.err
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("here", "there", "differ"),
    [
        ({"torch": "2.13.0+cpu"}, {"torch": "2.13.0+cu130"}, []),
        ({"torch": "2.13.0"}, {"torch": "2.12.0"}, ["torch 2.12.0 (here 2.13.0)"]),
        ({"python": "3.11.7"}, {"python": "3.11.2"}, []),
        ({"python": "3.11.7"}, {"python": "3.12.7"}, ["python 3.12.7 (here 3.11.7)"]),
        ({"sb3-contrib": "2.9.2"}, {"sb3-contrib": "not installed"}, []),
        ({"dask": "2026.8.0"}, {}, []),
    ],
)
def test_only_versions_that_matter_differ(here: dict[str, str], there: dict[str, str], differ: list[str]) -> None:
    assert schedulers.different_versions(here, there) == differ


def test_a_worker_that_does_not_see_the_run_folder_says_so(tmp_path: Path, scheduler: str) -> None:
    piece = RootPiece(tmp_path)
    with DaskWorkers(scheduler=scheduler) as pool:
        for given in (piece, (piece, piece)):
            with pytest.raises(InputError, match=f"does not see the run folder {tmp_path}.*shared folder"):
                pool.map(type, [given], "train")
        Manifest({}, {}, []).write(RunFolder(tmp_path))
        assert pool.map(type, [piece], "train") == [RootPiece]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two authorities, `ca` and `other`, and a certificate that the first one signed."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificates, is not installed")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("ca", "other"):
        _openssl(
            folder, f"req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN={name} -keyout {name}.key -out {name}.pem"
        )
    _openssl(folder, "req -newkey rsa:2048 -nodes -subj /CN=me -keyout me.key -out me.csr")
    _openssl(folder, "x509 -req -in me.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out me.pem")
    return folder


def _openssl(folder: Path, arguments: str) -> None:
    subprocess.run(["openssl", *arguments.split()], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def tls_scheduler(certificates: Path) -> Iterator[str]:
    """The same cluster, encrypted."""
    names = {f"tls_{role}_{part}": str(certificates / f"me.{end}") for role in ("scheduler", "worker", "client")
             for part, end in (("cert", "pem"), ("key", "key"))}  # fmt: skip
    security = Security(tls_ca_file=str(certificates / "ca.pem"), require_encryption=True, **names)
    with LocalCluster(**LOCAL, processes=False, protocol="tls", security=security, silence_logs=50) as cluster:
        yield str(cluster.scheduler_address)


def test_certificates_open_an_encrypted_scheduler_and_nothing_else_does(
    tmp_path: Path, certificates: Path, tls_scheduler: str, scheduler: str, aitia_command: Command,
    write_task: Callable[..., Path], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(workers, "_CONNECT_SECONDS", 1)
    task, run = write_task(**TRAIN), tmp_path / "run"

    def train(address: str | None, **files: str) -> Finished:
        options = [text for name, file in files.items() for text in (f"--tls-{name}", certificates / file)]
        with without_certificates():  # those of the session's own cluster
            return aitia_command("train", task, "--out", run, *(["--scheduler", address] if address else []), *options)

    mine = {"ca": "ca.pem", "cert": "me.pem", "key": "me.key"}
    refused = {
        "without certificates": train(tls_scheduler),
        "no Dask scheduler answers": train(tls_scheduler, ca="other.pem", cert="other.pem", key="other.key"),
        "nothing is sent in clear": train(scheduler, **mine),
        "expected --tls-ca, --tls-cert and --scheduler": train(None, **mine),
        "--tls-ca, --tls-cert and": train(tls_scheduler, ca="ca.pem"),
        "does not exist": train(tls_scheduler, **{**mine, "key": "none.key"}),
    }
    for words, done in refused.items():
        assert done.code == 2 and words in done.err and "Traceback" not in done.err, (words, done)
        assert not run.exists()
    done = train(tls_scheduler, **mine)
    assert done.code == 0 and RunFolder(run).missing_files(0) == [], done.err


def test_the_one_certificate_of_the_page_opens_its_scheduler_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page's own commands, at a port of the system's choice."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    (script,) = re.findall(r"```\n(umask 077.*?)\n```", (DOCS / "schedulers.md").read_text(), re.DOTALL)
    lines = [line for line in script.splitlines() if not line.startswith("aitia ")]
    text = "\n".join(lines[:-2] + [f"{line} &" for line in lines[-2:]] + ["trap 'kill $(jobs -p)' EXIT", "wait -n"])
    monkeypatch.setattr(workers, "_CONNECT_SECONDS", 2)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    text = text.replace("8786", str(port)).replace("--nworkers 8", "--nworkers 1").replace("$HOME", str(tmp_path))
    for name in ("scheduler", "worker"):
        command = shlex.join([sys.executable, "-m", f"distributed.cli.dask_{name}"])
        text = text.replace(f"dask {name} ", f"{command} ")
    running = subprocess.Popen(["bash", "-c", text], cwd=tmp_path, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    address, mine = f"tls://127.0.0.1:{port}", tmp_path / "me.pem"
    tls = {"ca-file": str(mine), "client.cert": str(mine), "client.key": str(tmp_path / "me.key")}
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.1)
        settings = {f"distributed.comm.tls.{name}": value for name, value in tls.items()}
        with dask.config.set(settings), DaskWorkers(scheduler=address) as pool:
            assert pool.map(str, [1, 2], "numbers") == ["1", "2"]
        assert stat.S_IMODE((tmp_path / "me.key").stat().st_mode) == 0o600
        with pytest.raises(InputError, match="no Dask scheduler answers"), without_certificates():
            DaskWorkers(scheduler=f"tcp://127.0.0.1:{port}").map(str, [1], "numbers")
        assert (tmp_path / ".cache/dask").is_dir()
    finally:
        running.terminate()
        running.wait()


def test_the_scripts_of_the_page_are_python_and_slurm_gets_its_job(tmp_path: Path) -> None:
    slurm, kubernetes, tls = re.findall(r"```python\n(.*?)```", (DOCS / "schedulers.md").read_text(), re.DOTALL)
    exec(compile(tls.replace("dask.config.set", "dict"), "schedulers.md", "exec"), {})
    assert {"name", "image", "n_workers", "worker_command", "resources", "env"} == set(
        _keywords(kubernetes, "KubeCluster")
    )
    given = {
        **_keywords(slurm, "SLURMCluster"),
        "interface": "lo",
        "scheduler_options": {"dashboard_address": "127.0.0.1:0"},
        "security": Security.temporary(),
        "shared_temp_directory": str(tmp_path),
    }
    with SLURMCluster(**given) as cluster:
        script = cluster.job_script()
    for line in ("#SBATCH -p cpu", "#SBATCH --cpus-per-task=8", "#SBATCH -t 04:00:00", "export OMP_NUM_THREADS=1"):
        assert line in script
    assert "tls://" in script and f"--tls-key {tmp_path}" in script
    assert "--nthreads 1" in script and "--nworkers 8" in script


def _keywords(script: str, name: str) -> dict[str, Any]:
    """Return the arguments with which a script calls something; none if it does not."""
    calls = [node for node in ast.walk(ast.parse(script)) if isinstance(node, ast.Call)]
    found = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == name]
    words = [word for call in found for word in call.keywords if not isinstance(word.value, ast.Name)]
    return {str(word.arg): ast.literal_eval(word.value) for word in words}
