"""Run folders and task files that somebody sent: small on the disk, huge when they are read."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from fresh import Ended, fresh_python
from safetensors.torch import save_file
from small_task import SMALL_TASK

from aitia.datasets.files.store import RunFolder
from aitia.datasets.manifest import Manifest
from aitia.datasets.schema import EPISODES
from aitia.workflows.runs.task import make_task

GIB = 2**30


def limited(*arguments: object, memory: int = 12 * GIB, seconds: int = 60) -> Ended:
    """Run the command line in a process of its own that may take so much address space and time of a processor."""
    return fresh_python("-m", "aitia", *arguments, memory=memory, seconds=seconds)


def sent_run(folder: Path, **changes: Any) -> Path:
    """Write a run folder with a valid `run.json`, keys of which may be changed, an empty episodes table and a final
    checkpoint a seed."""
    task = make_task({**SMALL_TASK, "seeds": 1}, "here")
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    Manifest(task.resolved(), task.hashes(), task.seeds).write(run)
    values = json.loads(run.manifest_path.read_text(encoding="utf-8"))
    run.manifest_path.write_text(json.dumps({**values, **changes}), encoding="utf-8")
    (folder / "evaluations/test").mkdir(parents=True)
    pq.write_table(EPISODES.empty_table(), run.evaluation_path("test", "episodes"))
    (folder / "checkpoints/seed=0").mkdir(parents=True)
    save_file({"w": torch.zeros(1)}, run.final_path(0), {"windows": "1"})
    return folder


def dictionary_bomb(path: Path, rows: int = 14_000, width: int = 1_000_000) -> None:
    """One text of 1 MB, 14,000 times: 13.9 GiB in half a kilobyte."""
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), pa.array(["x" * width]))
    plain = pa.schema([("outcome", pa.string())])  # what is read has no dictionary any more
    pq.write_table(pa.table({"outcome": column}), path, compression="zstd", store_schema=False)
    assert pq.read_schema(path).types == plain.types


def run_length_bomb(path: Path, rows: int = 1_500_000_000) -> None:
    """One number, 1.5 thousand million times: 12 GB in a few kilobytes."""
    chunk = pa.chunked_array([pa.repeat(pa.scalar(0.0), 50_000_000)] * (rows // 50_000_000))
    with pq.ParquetWriter(path, pa.schema([("reward", pa.float64())]), compression="zstd") as writer:
        writer.write_table(pa.table({"reward": chunk}), row_group_size=rows)


def fixed_bomb(path: Path, rows: int = 14_000, width: int = 1_000_000) -> None:
    """One observation of 1 MB, 14,000 times."""
    with pq.ParquetWriter(path, pa.schema([("observation", pa.binary(width))]), compression="zstd") as writer:
        for _ in range(rows // 100):
            writer.write_table(pa.table({"observation": pa.array([b"\0" * width] * 100, pa.binary(width))}))


def list_bomb(path: Path, values: int = 1_500_000_000) -> None:
    """One row with a list of 1.5 thousand million equal numbers."""
    numbers = pa.repeat(pa.scalar(0.0), values)
    lists = pa.LargeListArray.from_arrays(pa.array([0, values], pa.int64()), numbers)
    pq.write_table(pa.table({"values": lists}), path, compression="zstd")


def decimal_bomb(path: Path, rows: int = 150_000_000) -> None:
    """One decimal number of a byte, 150 million times: in memory each takes 32 bytes."""
    chunk = pa.repeat(pa.scalar(Decimal(1), pa.decimal256(2, 0)), 1_000_000)
    with pq.ParquetWriter(path, pa.schema([("reward", chunk.type)]), compression="zstd") as writer:
        for _ in range(rows // len(chunk)):
            writer.write_table(pa.table({"reward": chunk}), row_group_size=len(chunk))


def failing_plays(path: Path, rows: int) -> None:
    """Plays of one agent, each of which failed: a few bytes each on the disk, and a kilobyte as a row of Python."""
    same = {"seed": 0, "part": "test", "repeat": 0, "outcome": SMALL_TASK["outcomes"]["misbehaved"][0], "length": 1}
    columns = {name: pa.repeat(pa.scalar(value, EPISODES.field(name).type), rows) for name, value in same.items()}
    columns["episode"] = pa.array(np.arange(rows, dtype=np.int32))
    table = pa.table([columns.get(f.name, pa.nulls(rows, f.type)) for f in EPISODES], EPISODES)
    pq.write_table(table, path, compression="zstd", column_encoding={"episode": "DELTA_BINARY_PACKED"},
                   use_dictionary=["part", "outcome"])  # fmt: skip


PARQUET: dict[str, Callable[[Path], None]] = {"dictionary": dictionary_bomb, "fixed width": fixed_bomb}


def aliases(levels: int = 12, width: int = 10) -> str:
    """Ten names for ten names for ten names ...: 10^12 values in half a kilobyte."""
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def merges(levels: int = 12, width: int = 10) -> str:
    """The same with merge keys, which YAML copies when it reads them."""
    lines = ["l0: &l0 {a: 1, b: 2}"]
    lines += [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * width)}]}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def task_text(arguments: str = "", **changes: Any) -> str:
    """A task file with some keys replaced, and with the arguments of the environment as YAML."""
    values = {**SMALL_TASK, **changes}
    if arguments:
        del values["train_kwargs"]
        arguments = "train_kwargs:\n" + textwrap.indent(arguments, "  ")
    return yaml.safe_dump(values) + arguments
