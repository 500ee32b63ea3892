"""A whole run in a bucket of a local S3-compatible server: the same tables as in a local folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import gymnasium as gym
import pyarrow.parquet as pq
import pytest
import s3fs
import yaml
from command_line import Finished
from distributed import LocalCluster
from faults import ROOMS
from moto.server import ThreadedMotoServer
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList, ConvertCallback

from aitia.datasets.errors import AitiaError, InputError
from aitia.datasets.files.rebuilt import rebuilt
from aitia.datasets.files.remote import as_path
from aitia.datasets.files.store import RunFolder, write_text
from aitia.training.recording.recorder import Recorder
from aitia.workflows import commands
from aitia.workflows.runs.run import open_run
from aitia.workflows.stages.report import _KEPT, _OWN, _require_free, report_folder

SECRET = "a-secret-of-this-test"


class Runs(NamedTuple):
    """The same task in a local folder, computed by this process, and in a bucket, by a Dask worker."""

    local: Path
    remote: str
    scheduler: str


@pytest.fixture(scope="module")
def other() -> Iterator[s3fs.S3FileSystem]:
    """A bucket, configured as a user does it, and another client that sees it."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    kept = dict(fsspec.config.conf)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tester")
        patch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        fsspec.config.set_conf_env(fsspec.config.conf)
        client = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        client.mkdir("bucket")
        yield client
    fsspec.config.conf.clear()
    fsspec.config.conf.update(kept)
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="module")
def runs(other: s3fs.S3FileSystem, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("remote")
    task, local, remote = folder / "task.yaml", folder / "run", "s3://bucket/deep/run"
    task.write_text(yaml.safe_dump(ROOMS))
    options = {"n_workers": 1, "threads_per_worker": 1, "host": "127.0.0.1", "dashboard_address": "127.0.0.1:0"}
    with LocalCluster(**options, processes=False, protocol="tcp", silence_logs=50) as cluster:
        commands.run(task, local, workers=0)
        commands.run(task, remote, scheduler=cluster.scheduler_address)
        yield Runs(local, remote, cluster.scheduler_address)


def tables(runs: Runs, kind: str) -> dict[str, Path]:
    return {str(path.relative_to(runs.local)): path for path in sorted((runs.local / kind).rglob("*.parquet"))}


@pytest.mark.slow
def test_a_notebook_reads_a_run_in_a_bucket_as_a_local_one(runs: Runs) -> None:
    here, there = (open_run(path) for path in runs[:2])
    assert there.transitions(seed=1).to_table().equals(here.transitions(seed=1).to_table())
    assert there.sets == ["test"] and there["test"].verdict == here["test"].verdict
    assert there["test"].influence().equals(here["test"].influence())


@pytest.mark.slow
def test_a_run_in_a_bucket_equals_the_local_one(runs: Runs, other: s3fs.S3FileSystem) -> None:
    prefix = runs.remote.removeprefix("s3://")
    there = {path.removeprefix(prefix + "/") for path in other.find(prefix)}
    here = {str(path.relative_to(runs.local)) for path in runs.local.rglob("*") if path.is_file()}
    here.remove(".parts/lock")  # the operating system holds a file; in a bucket nothing stays of a lock
    assert there == here
    kinds = ("transitions", "evaluations", "influence", "bank", "reports")
    for kind in kinds:
        found = tables(runs, kind)
        assert found, kind
        for name, path in found.items():
            with other.open(f"{prefix}/{name}") as file:
                assert pq.read_table(file).equals(pq.read_table(path)), name
    verdicts = json.loads(other.cat(f"{prefix}/reports/test/verdicts.json"))
    assert verdicts and verdicts == json.loads((runs.local / "reports/test/verdicts.json").read_text())
    assert len(tables(runs, ".parts/bank")) >= 4, "nothing was trained again: the test is too small"


@pytest.mark.slow
def test_no_object_holds_credentials(runs: Runs, other: s3fs.S3FileSystem) -> None:
    objects = other.cat(other.find("bucket"))
    assert len(objects) > 50
    assert not [name for name, data in objects.items() if SECRET.encode() in data or b"127.0.0.1" in data]


@pytest.mark.slow
def test_only_what_was_deleted_is_done_again(runs: Runs, other: s3fs.S3FileSystem) -> None:
    prefix = runs.remote.removeprefix("s3://")
    pieces = other.find(f"{prefix}/.parts/bank")
    before = {piece: other.info(piece)["LastModified"] for piece in pieces}
    outcomes = other.cat(f"{prefix}/bank/test/outcomes.parquet")
    other.rm([pieces[1], *other.find(f"{prefix}/bank")])
    other.pipe_file(f"{prefix}/reports/test/failures/9-99.html", b"of an earlier report")
    commands.verify(runs.remote, scheduler=runs.scheduler)
    assert {piece for piece in pieces if other.info(piece)["LastModified"] != before[piece]} == {pieces[1]}
    assert other.cat(f"{prefix}/bank/test/outcomes.parquet") == outcomes
    commands.report(runs.remote, scheduler=runs.scheduler)
    assert not other.exists(f"{prefix}/reports/test/failures/9-99.html")


@pytest.mark.slow
def test_what_another_process_does_is_seen_at_once(runs: Runs, other: s3fs.S3FileSystem) -> None:
    folder = RunFolder.at(runs.remote)
    path = folder.transitions_path(1, 1)
    name = str(path).removeprefix("s3://")
    assert not folder.missing_files(1)
    data = other.cat(name)
    other.rm(name)
    assert folder.missing_files(1) == [path] and not path.exists()
    other.pipe_file(name, data)
    assert not folder.missing_files(1) and path.exists()


def learner() -> PPO:
    env = gym.make("aitia/ArrowMaze-v0", size=4, levels=2)
    return PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=1, device="cpu")


def test_a_script_records_into_a_bucket(other: s3fs.S3FileSystem) -> None:
    recorder = Recorder("s3://bucket/script", seed=3)
    learner().learn(64, recorder)
    assert recorder.published
    assert RunFolder.at("s3://bucket/script").missing_files(3) == []
    names = {path.removeprefix("bucket/script/") for path in other.find("bucket/script")}
    files = {f"{kind}/seed=3/window=0000{i}.{end}" for i in (0, 1) for kind, end in
             (("transitions", "parquet"), ("checkpoints", "safetensors"))}  # fmt: skip
    assert names == {*files, "checkpoints/seed=3/final.safetensors", "task.yaml"}
    assert (
        "aitia run task.yaml --out s3://bucket/script  # next to a copy"
        in other.cat("bucket/script/task.yaml").decode()
    )


def test_a_training_that_was_given_up_publishes_nothing(other: s3fs.S3FileSystem) -> None:
    recorder, markers = Recorder("s3://bucket/given-up", seed=0), list[str]()

    def give_up(*_: Any) -> bool:
        if not markers:
            markers.extend(path for path in other.find("bucket/given-up") if ".held" not in path)
            other.rm(markers)
        return True

    with pytest.raises(AitiaError, match="was removed while seed 0 was training"):
        learner().learn(64, CallbackList([recorder, ConvertCallback(give_up)]))
    assert len(markers) == 1 and markers[0].startswith("bucket/given-up/.parts/train/seed=0-")
    recorder.discard()
    assert other.find("bucket/given-up") == []


@pytest.mark.parametrize("out", ["outer", "", "outer/influence", "outer/influence/test", "precious", "note"])
def test_pages_take_no_place_in_a_bucket_where_something_else_is(other: s3fs.S3FileSystem, out: str) -> None:
    objects = ("outer/run.json", "outer/influence/test/groups.parquet", "precious/index.html", "precious/a.tex", "note")
    for name in objects:
        other.pipe_file(f"bucket/runs/{name}", b"1")
    run = RunFolder.at("s3://bucket/runs/outer")
    for protocol in ("s3", "s3a"):
        with pytest.raises(InputError, match=r"--out .* was given"):
            _require_free(run, report_folder(run, "test", f"{protocol}://bucket/runs/{out}"), own=False)
    assert other.find("bucket/runs") == sorted(f"bucket/runs/{name}" for name in objects)


def test_pages_in_a_bucket_replace_pages_and_nothing_else(other: s3fs.S3FileSystem, tmp_path: Path) -> None:
    for name in ("index.html", "failures/9-9.html", "compare/b/index.html", "precious.tex", "failures.tex"):
        other.pipe_file(f"bucket/written/pages/{name}", b"1")
    with rebuilt(as_path("s3://bucket/written/pages"), _OWN, _KEPT, last=("index.html",)) as fresh:
        (fresh / "index.html").write_text("new")
    names = [name.removeprefix("bucket/written/pages/") for name in other.find("bucket/written")]
    assert names == ["compare/b/index.html", "failures.tex", "index.html", "precious.tex"]
    for name in ("precious.tex", "failures.tex"):
        other.rm(f"bucket/written/pages/{name}")
    for place in ("pages", "new"):
        run = RunFolder(tmp_path / "run")
        _require_free(run, report_folder(run, "test", f"s3://bucket/written/{place}"), own=False)


def test_a_store_that_refuses_is_said(other: s3fs.S3FileSystem) -> None:
    with pytest.raises(
        InputError, match=r"s3://no-such-bucket/run.json was given, but its store .*bucket does not exist"
    ):
        write_text(as_path("s3://no-such-bucket/run.json"), "1")


@pytest.mark.parametrize("command", ["evaluate", "attribute", "verify", "report", "validate"])
def test_every_command_reads_addresses(
    other: s3fs.S3FileSystem, aitia_command: Callable[..., Finished], command: str
) -> None:
    done = aitia_command(command, "s3://bucket/nothing")
    assert done.code == 2 and "s3://bucket/nothing is not a run folder" in done.err
    done = aitia_command(command, "https://host/run")
    assert done.code == 2 and "`https://` was given, expected a local path" in done.err


def test_what_stays_local_says_so(other: s3fs.S3FileSystem, aitia_command: Callable[..., Finished]) -> None:
    done = aitia_command("suite", "--out", "s3://bucket/suite")
    assert done.code == 2 and "the folder of the suite, expected a local path" in done.err
    done = aitia_command("run", "s3://bucket/task.yaml", "--out", "s3://bucket/x")
    assert done.code == 2 and "the task file, expected a local path" in done.err
    assert other.find("bucket/x") == []
