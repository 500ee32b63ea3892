"""Faults on purpose: processes that are killed at a known moment, a small world, and comparing run folders."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from distributed import LocalCluster
from numpy.typing import NDArray
from shared_cluster import shared_cluster
from stills import draw_nothing
from toy_environments import Bonus

from aitia.datasets.files import store
from aitia.workflows import cli, commands  # noqa: F401 (commands: imported before a process is forked)
from aitia.workflows.workers.cluster import DaskWorkers

When = Literal["before", "within", "after"]
_OF_THE_MACHINE = ("seconds", "created", "fingerprints")  # a busy one takes fewer steps for a fingerprint


class Rooms(Bonus):
    """The corridor that wrongly pays at the pit; its context is the cell where the episode began."""

    def __init__(self) -> None:
        super().__init__(cells=7, length=6, limit=12)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        observation, info = super().reset(seed=seed, options=options)
        self.start = str(self.cell)
        return observation, info

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        *rest, info = super().step(action)
        return (*rest, {**info, "context": self.start})  # type: ignore[return-value]


ROOMS: dict[str, Any] = {
    "name": "rooms", "env": "faults:Rooms", "outcomes": {"desired": ["goal"], "misbehaved": ["pit"]},
    "agent": {
        "total_timesteps": 512, "n_envs": 4,
        "hyperparameters": {
            "n_steps": 64, "batch_size": 64, "n_epochs": 8, "learning_rate": 0.02,
            "policy_kwargs": {"net_arch": [8]},
        },
    },
    "seeds": 2, "evaluation": {"episodes": 6, "repeats": 2}, "verify": {"seeds": 2, "points": 1},
}  # fmt: skip


def kill_before_renaming(fragment: str, pid: int) -> None:
    """From now on in this process: when a file whose path has `fragment` is written aside, kill a process."""
    original = store.written_aside

    @contextlib.contextmanager
    def deadly(path: Path) -> Iterator[Path]:
        with original(path) as aside:
            yield aside
            if fragment in str(path):
                os.kill(pid, signal.SIGKILL)

    store.written_aside = deadly


@dataclass(frozen=True)
class Deadly:
    """A stage's function that kills a process once, for each file `KIND-WHEN` that waits in `orders`.

    KIND is the first word of the stage's label. WHEN: `before` the piece, `within` (its file is written, not yet
    renamed) or `after` it (all is written, Dask does not know yet). The file holds the number of the process;
    empty: the worker's own. `after` leaves a note of the files there are, and a second call of the piece says whether
    they stayed.
    """

    function: Callable[[Any], Any]
    orders: Path
    kind: str

    def __call__(self, piece: Any) -> Any:
        first = piece[0] if isinstance(piece, Sequence) else piece
        note = self.orders / f"{self.kind}-note.json"
        if (pid := self._claim("before")) is not None:
            os.kill(pid, signal.SIGKILL)
        if (pid := self._claim("within")) is not None:
            kill_before_renaming("", pid)
        noted = json.loads(note.read_text()) if note.exists() else None
        result = self.function(piece)
        if noted is not None and noted["piece"] == repr(piece):
            kept = {path: stamp for path, stamp in stamps(first.root).items() if path in noted["files"]}
            (self.orders / f"{self.kind}-{'kept' if kept == noted['files'] else 'redone'}").touch()
        elif (pid := self._claim("after")) is not None:
            note.write_text(json.dumps({"piece": repr(piece), "files": stamps(first.root), "worker": os.getpid()}))
            os.kill(pid, signal.SIGKILL)
        return result

    def _claim(self, when: When) -> int | None:
        order = self.orders / f"{self.kind}-{when}"
        try:
            text = order.read_text()
            order.unlink()
        except FileNotFoundError:
            return None
        return int(text or os.getpid())


def stamps(root: Path) -> dict[str, list[int]]:
    """Return the inode and time of every finished piece of a run folder."""
    folders = (root / ".parts", root / "transitions", root / "checkpoints")
    found = [path for folder in folders for path in folder.rglob("*.*") if path.is_file() and path.suffix != ".tmp"]
    found = [path for path in found if path.name != "lock.json"]
    return {str(path): [path.stat().st_ino, path.stat().st_mtime_ns] for path in sorted(found)}


@contextlib.contextmanager
def patient_workers() -> Iterator[LocalCluster]:
    """A cluster of two workers that has the patience for many of them to be killed."""
    with dask.config.set({"distributed.deploy.lost-worker-timeout": "10 minutes"}), shared_cluster() as cluster:
        yield cluster


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond so many bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def make_deadly(orders: Path) -> Callable[..., Any]:
    """Return a `DaskWorkers.map` whose pieces obey the orders."""
    original = DaskWorkers.map

    def deadly(self: DaskWorkers, function: Callable[[Any], Any], pieces: Sequence[Any], label: str) -> list[Any]:
        return original(self, Deadly(function, orders, label.split()[0]), pieces, label)

    return deadly


def contents(root: Path) -> dict[str, Any]:
    """Return what is in a run folder, by path, without times."""
    found: dict[str, Any] = {}
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        name = str(path.relative_to(root))
        if path.suffix == ".parquet":
            found[name] = pq.read_table(path)
        elif path.suffix == ".html":
            text = path.read_text().replace(str(root), "RUN")  # commands on pages name the run
            found[name] = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC|Seconds: [^<]*", "TIME", text)
        elif path.suffix == ".json":
            value = json.loads(path.read_text())
            if isinstance(value, dict):
                value = {key: item for key, item in value.items() if key not in _OF_THE_MACHINE}
            found[name] = value
        elif path.suffix == ".safetensors":  # its bytes have the metadata in any order
            values = store.read_tensors(path)
            found[name] = store.read_tensor_metadata(path), {key: value.tolist() for key, value in values.items()}
        elif path.suffix != ".tmp":
            found[name] = path.read_bytes()
    return found


def differences(run: Path, undisturbed: Path) -> list[str]:
    """Return the files in which two run folders differ."""
    a, b = contents(run), contents(undisturbed)
    return [name for name in sorted({*a, *b}) if name not in a or name not in b or not _equal(a[name], b[name])]


def _equal(a: Any, b: Any) -> bool:
    return bool(a.equals(b, check_metadata=True) if isinstance(a, pa.Table) else a == b)


def _run_commands(orders: Path, calls: Sequence[Sequence[str]]) -> None:
    """Run commands one after the other, each in a process of its own, and print how each ended.

    Before each, orders that lie in `orders/NUMBER` are given, to kill that process.
    """
    DaskWorkers.map = make_deadly(orders)  # type: ignore[method-assign]
    ends = []
    for number, arguments in enumerate(calls):
        child = os.fork()
        if child:
            ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            continue
        for order in (orders / str(number)).glob("*"):
            if order.name == "merge":
                kill_before_renaming(order.read_text(), os.getpid())
            else:
                (orders / order.name).write_text(str(os.getpid()))
        sys.argv = ["aitia", *arguments]
        cli.main()
        os._exit(0)
    print(json.dumps(ends))


if __name__ == "__main__":
    draw_nothing()
    _run_commands(Path(sys.argv[1]), json.loads(sys.argv[2]))
