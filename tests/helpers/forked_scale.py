"""The benchmark of scale without the seconds of importing: its commands are forked from the process that measures."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import IO, Any

from aitia.workflows import cli, commands  # noqa: F401 (commands: imported before a process is forked)
from benchmarks import scale


class Forked:
    """Stands for `subprocess.Popen` of `python -m aitia ...`."""

    def __init__(
        self, command: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: IO[str], stderr: IO[str]
    ) -> None:
        assert command[:3] == [sys.executable, "-m", "aitia"]
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        os.dup2(stdout.fileno(), 1)
        os.dup2(stderr.fileno(), 2)
        os.chdir(cwd)
        os.environ.update(env)
        sys.argv = ["aitia", *command[3:]]
        code: Any = 1
        try:
            cli.main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        finally:
            sys.stdout.flush()
            os._exit(code or 0)

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *_: object) -> None:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def poll(self) -> int | None:
        """Return how it ended; None: it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def kill(self) -> None:
        """End it at once."""
        os.kill(self.pid, signal.SIGKILL)


def main() -> None:
    """Measure; where one worker is asked for, the command computes in its own process."""
    measured = scale.afresh
    vars(scale)["subprocess"] = SimpleNamespace(Popen=Forked)
    scale.afresh = lambda folder, workers, kill_at=None: measured(folder, workers if workers > 1 else 0, kill_at)
    scale.main()
