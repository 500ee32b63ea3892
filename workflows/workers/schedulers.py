"""Connections to Dask: a cluster of this machine's own, or an existing scheduler whose workers fit this command."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
from distributed import Client, LocalCluster, Security, WorkerPlugin

from ...datasets.errors import AitiaError, ClusterError, InputError
from ...datasets.manifest import installed_versions
from .processes import BEGINNING, ENVIRONMENT, FORKED, SAFE_PATH, begin_importing, silence_pygame

_LOOPBACK = "127.0.0.1"


class NoSchedulerError(InputError):
    """No scheduler answers at the address that was given."""


@dataclass(frozen=True)
class WorkerSetup(WorkerPlugin):
    """Prepares a worker process: same versions as the caller, its import paths, one torch thread."""

    paths: Sequence[str]
    versions: Mapping[str, str] = field(default_factory=installed_versions)

    def setup(self, worker: Any) -> None:
        """Run once in each worker process, also in those that join later.

        Raises:
            InputError: a package that results depend on has another version here.
        """
        if different := different_versions(self.versions, installed_versions()):
            raise InputError(
                f"the Dask worker {worker.address} on {socket.gethostname()} has other versions than this command: "
                f"{', '.join(different)}. Expected the same everywhere, or the agents of a run would not be "
                "comparable: install the same versions there"
            )
        sys.path.extend(path for path in self.paths if path not in sys.path)  # last: what is installed goes first
        silence_pygame()
        import torch

        torch.set_num_threads(1)


def different_versions(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Say which versions differ; builds of one version (`2.13.0+cpu`) and Python's last number may."""

    def release(name: str, found: str) -> str:
        return found.rpartition(".")[0] if name == "python" else found.partition("+")[0]

    both = [name for name in here if name in there and "not installed" not in (here[name], there[name])]
    return [
        f"{name} {there[name]} (here {here[name]})"
        for name in both
        if release(name, here[name]) != release(name, there[name])
    ]


@contextlib.contextmanager
def start_cluster(workers: int) -> Iterator[LocalCluster]:
    """Start worker processes on this machine that no other user of it can give work to, and end them.

    Every user reaches what listens on loopback. So connections need a certificate, which exists only in the memory of
    this process and its workers; the HTTP servers, which Dask always starts, have no pages unless
    `aitia.dashboard-address` in Dask's configuration asks for them; and Dask's scratch folders, which it puts on
    `sys.path`, lie in a folder of this user alone.

    Raises:
        ClusterError: they do not start.
    """
    begin_importing()
    method = {"worker": {"multiprocessing-method": "forkserver"}} if FORKED else {}
    dask.config.update_defaults(
        {"distributed": {"nanny": {"pre-spawn-environ": ENVIRONMENT if FORKED else BEGINNING}, **method}}
    )
    dashboard = dask.config.get("aitia.dashboard-address", None)
    closed = () if dashboard else ("scheduler", "worker")
    settings: dict[str, object] = {f"distributed.{role}.http.routes": [] for role in closed}
    with contextlib.ExitStack() as stack:
        try:
            scratch = stack.enter_context(_private_folder())
            # as long as the cluster lives: killed workers are started anew with the settings of that moment
            stack.enter_context(dask.config.set({"temporary-directory": scratch, **settings}))
            cluster = LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host=_LOOPBACK,
                security=Security.temporary(),
                dashboard_address=dashboard or f"{_LOOPBACK}:0",
                silence_logs=logging.CRITICAL,
                # forked ones would have that of when importing began; it is not for what an environment starts itself
                env={SAFE_PATH: "", **os.environ},
            )
        except (OSError, RuntimeError) as error:
            raise ClusterError(
                f"--workers {workers}: Dask could not start so many processes on this machine ({error}). Give fewer, "
                "or make room in memory and in the temporary folder"
            ) from error
        yield stack.enter_context(cluster)


@contextlib.contextmanager
def _private_folder() -> Iterator[str]:
    """Make a temporary folder of this user alone; afterwards neither it nor its place on `sys.path` is left."""
    where = dask.config.get("temporary-directory", None)
    with tempfile.TemporaryDirectory(prefix="aitia-", dir=where, ignore_cleanup_errors=True) as folder:
        try:
            yield folder
        finally:
            sys.path[:] = [path for path in sys.path if not path.startswith(folder)]


def connect(scheduler: str, seconds: float) -> Client:
    """Connect to an existing scheduler.

    Args:
        scheduler: its address, or the `.json` file that `dask scheduler --scheduler-file` wrote.
        seconds: how long it may take to answer.

    Raises:
        NoSchedulerError: none answers.
        InputError: its certificates are missing.
    """
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what goes wrong is said by our own errors
    try:
        address = _address(scheduler)
        _require_certificates(address)
        return Client(address, timeout=seconds, set_as_default=False)
    except (OSError, ValueError) as error:
        raise NoSchedulerError(
            f"--scheduler {scheduler} was given, but no Dask scheduler answers there ({error}); expected an address "
            "such as tcp://127.0.0.1:8786 or tls://HOST:8786, or the .json file of `dask scheduler --scheduler-file`"
        ) from error


def prepare_workers(client: Client) -> None:
    """Prepare every worker that a client has or gets.

    Raises:
        NoSchedulerError: the scheduler was lost meanwhile.
        InputError: they cannot import aitia, or have other versions.
    """
    address = client.scheduler_info()["address"]
    try:
        client.register_plugin(WorkerSetup([path or str(Path.cwd()) for path in sys.path]))  # "": where Python began
    except AitiaError:
        raise
    except OSError as error:
        raise NoSchedulerError(f"the Dask scheduler {address} was lost while its workers were prepared") from error
    except Exception as error:
        raise InputError(
            f"the Dask cluster {address} cannot run aitia ({type(error).__name__}: {error}). Expected "
            "the same aitia on the scheduler and on every worker"
        ) from error


def _address(scheduler: str) -> str:
    """Return the address that was given, or that a scheduler file holds (after a restart perhaps another)."""
    return (
        str(json.loads(Path(scheduler).read_text(encoding="utf-8"))["address"])
        if scheduler.endswith(".json")
        else scheduler
    )


def _require_certificates(address: str) -> None:
    """Check what Dask's configuration, or --tls-..., says of TLS.

    Raises:
        InputError: there are no certificates for a tls:// address, or some for another address.
    """
    security, encrypted = Security(), address.startswith("tls://")
    if encrypted and security.get_connection_args("client").get("ssl_context") is None:
        raise InputError(
            f"--scheduler {address} was given without certificates, expected --tls-ca, --tls-cert and --tls-key "
            "(or distributed.comm.tls in Dask's configuration)"
        )
    if security.require_encryption and not encrypted:
        raise InputError(
            f"--scheduler {address} was given together with TLS, expected an address that begins with tls://: "
            "nothing is sent in clear"
        )
