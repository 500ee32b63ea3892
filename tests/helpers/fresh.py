"""Fresh processes without the seconds of importing: forked from one that has imported aitia, and nothing of a test."""

from __future__ import annotations

import atexit
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import tempfile
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

_LONGEST_SECONDS = 600
_servers: list[subprocess.Popen[str]] = []


class Ended(NamedTuple):
    """How a process ended: exit code (negative: killed), all that it printed, seconds of its processor, peak memory in
    bytes."""

    code: int
    told: str
    seconds: float
    peak: int


def fresh_python(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None,
    memory: int = resource.RLIM_INFINITY, seconds: int = resource.RLIM_INFINITY,
) -> Ended:  # fmt: skip
    """Run what `python` would with these arguments (a script, `-c CODE` or `-m MODULE`), and wait for it.

    Args:
        arguments: of Python.
        cwd: the working directory; None: this process's.
        env: the environment; None: this process's.
        memory: most bytes of address space.
        seconds: most seconds of a processor.
    """
    with tempfile.NamedTemporaryFile() as told:
        order = {
            "arguments": list(map(str, arguments)), "cwd": str(cwd or Path.cwd()), "env": dict(env or os.environ),
            "memory": memory, "seconds": seconds, "told": told.name,
        }  # fmt: skip
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        print(json.dumps(order), file=server.stdin, flush=True)
        code, used, peak = json.loads(server.stdout.readline())
        told.seek(0)
        return Ended(code, told.read().decode("utf-8", "replace"), used, peak)


def _server() -> subprocess.Popen[str]:
    """Return the process that others are forked from; it ends with this one."""
    if not _servers:
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path if entry)
        _servers.append(
            subprocess.Popen(
                [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, "PYTHONPATH": path},
            )
        )  # fmt: skip
        atexit.register(_servers[0].terminate)
    return _servers[0]


def _serve() -> dict[str, Any]:
    """Fork a process for every order and tell how it ended; in the forked process: return the order."""
    for line in iter(sys.stdin.readline, ""):
        order: dict[str, Any] = json.loads(line)
        if not (child := os.fork()):
            return order
        _, status, used = os.wait4(child, 0)
        ended = os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
        print(json.dumps(ended), flush=True)
    sys.exit()


def _become(order: dict[str, Any]) -> None:
    """Let this forked process be as Python begins with these arguments."""
    told, nothing = os.open(order["told"], os.O_WRONLY | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for number, mine in ((0, nothing), (1, told), (2, told)):
        os.dup2(mine, number)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    signal.alarm(_LONGEST_SECONDS)
    for kind, most in ((resource.RLIMIT_AS, order["memory"]), (resource.RLIMIT_CPU, order["seconds"])):
        resource.setrlimit(kind, (most, most))
    what, *rest = order["arguments"]
    first = str(Path.cwd()) if what in ("-c", "-m") else str(Path(what).absolute().parent)
    sys.path[:0] = [first, *(entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry)]
    if what == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif what == "-c":
        sys.argv = ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    else:
        sys.argv = [what, *rest]
        runpy.run_path(what, run_name="__main__")


if __name__ == "__main__":
    import torch._dynamo  # noqa: F401 (by every training)

    import aitia.workflows.commands  # noqa: F401

    _become(_serve())
