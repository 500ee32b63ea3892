"""What another user of this machine can try against a command's workers: it knows nothing but what all users see.

`python other_user.py FOLDER PORT...` connects to each port in clear, and encrypted with a certificate of its own: as
Dask's client does, and as the scheduler does with workers and nannies. What it can run elsewhere leaves a file in
FOLDER. Prints as JSON which attempts ran in which process, and how each port answers HTTP requests.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import logging
import os
import sys
import warnings
from collections.abc import Awaitable, Iterator
from pathlib import Path

import dask
from distributed import Client, Security
from distributed.comm.core import connect
from distributed.protocol.pickle import dumps

_SECONDS = 4.0
_PAGES = ("/info/main/workers.html", "/json/identity.json", "/metrics", "/health")


class Leave:
    """Code that runs elsewhere: it leaves a file that names its process."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = str(folder / name)

    def __call__(self) -> int:
        with open(self.path, "w") as file:  # noqa: PTH123 (builtins only: it is sent by value)
            file.write(str(os.getpid()))
        return os.getpid()


def listening_ports() -> set[int]:
    """Return the ports that anything on this machine listens on: every user can read them."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()]
    return {int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"}


async def _as_client(address: str, security: Security | None, worker: Leave, scheduler: Leave) -> None:
    """Submit code to the workers, and run code in the scheduler's process."""
    async with Client(address, security=security, timeout=_SECONDS, set_as_default=False, asynchronous=True) as client:
        await client.run_on_scheduler(scheduler)
        await client.submit(worker)


async def _as_peer(address: str, security: Security | None, leave: Leave) -> None:
    """Say `run` to a worker or a nanny, as the scheduler does."""
    comm = await connect(address, timeout=_SECONDS, **(security or Security()).get_connection_args("client"))
    try:
        await comm.write({"op": "run", "function": dumps(leave)})
        await comm.read()
    finally:
        comm.abort()


def _attempts(folder: Path, port: int) -> Iterator[Awaitable[None]]:
    for protocol, security in (("tcp", None), ("tls", Security.temporary())):
        address = f"{protocol}://127.0.0.1:{port}"
        worker, scheduler, peer = (
            Leave(folder, f"{protocol}-{role}-{port}") for role in ("worker", "scheduler", "peer")
        )
        yield _as_client(address, security, worker, scheduler)
        yield _as_peer(address, security, peer)


async def _attack(folder: Path, ports: list[int]) -> None:
    attempts = [asyncio.wait_for(each, 2 * _SECONDS) for port in ports for each in _attempts(folder, port)]
    for ended in await asyncio.gather(*attempts, return_exceptions=True):
        if ended is not None:
            print(f"{type(ended).__name__}: {ended}"[:200], file=sys.stderr)


def pages(port: int) -> dict[str, int]:
    """Return the status of each page that a port serves over HTTP."""
    found = {}
    for page in _PAGES:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
        try:
            connection.request("GET", page)
            found[page] = connection.getresponse().status
        except (OSError, http.client.HTTPException):
            break
        finally:
            connection.close()
    return found


def main(folder: Path, ports: list[int]) -> None:
    """Try every port, and print what came of it."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    dask.config.set({"distributed.comm.timeouts.connect": _SECONDS})
    asyncio.run(_attack(folder, ports))
    ran = {path.name: int(path.read_text()) for path in sorted(folder.iterdir())}
    print(json.dumps({"ran": ran, "pages": {port: found for port in ports if (found := pages(port))}}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(port) for port in sys.argv[2:]])
