"""A cluster of two processes that many commands of the tests use by `--scheduler`, with its certificate."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import dask
import pytest
from distributed import LocalCluster

from aitia.workflows.workers.schedulers import start_cluster

_TLS = "distributed.comm.tls"


@contextlib.contextmanager
def shared_cluster() -> Iterator[LocalCluster]:
    """Start it; commands of this process and of its children connect to it with its certificate."""
    with start_cluster(2) as cluster, pytest.MonkeyPatch.context() as patched:
        security: Any = cluster.security
        settings = {
            f"{_TLS}.ca-file": security.tls_ca_file,
            f"{_TLS}.client.cert": security.tls_client_cert,
            f"{_TLS}.client.key": security.tls_client_key,
        }
        for name, value in settings.items():
            patched.setenv("DASK_" + name.replace(".", "__").replace("-", "_").upper(), value)
        with dask.config.set(settings):
            yield cluster


def without_certificates() -> dask.config.set:
    """As long as this lasts, the settings above do not hold in this process."""
    return dask.config.set({f"{_TLS}.{name}": None for name in ("ca-file", "client.cert", "client.key")})
