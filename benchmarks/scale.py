"""How far does `aitia attribute` go? The command itself on runs of up to 10,000,000 transitions, on two cores.

A run without training (benchmarks/synthetic.py): windows of 2,048 transitions, no two rows alike, a checkpoint each,
1,000 failures with eight decisive steps each, a policy of 8,775 parameters. Timed from the start of the command to
its end: start-up, cluster, windows, merging. On a tenth of it: one worker against two, a command that is killed with
SIGKILL at half and run again, rows that repeat as in a gridworld; on a hundredth: fewer failures. Prints a table, a
projection with its assumptions and, as the last line, one JSON object (docs/scale.md). An hour or more.

    python -m benchmarks.scale [--transitions N] [--out FOLDER] [--quick]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from math import log
from pathlib import Path
from statistics import mean

import psutil

from aitia.datasets.files.store import RunFolder
from aitia.workflows.stages.attribute import block_size
from benchmarks.synthetic import DECISIVE, ROWS, write_failures, write_run

ROOT = Path(__file__).resolve().parent.parent
FAILURES, FEWER_FAILURES, QUICK_FAILURES = 1000, 250, 12
REPEATED_STATES = 64  # about 440 distinct rows a window; the arrow maze has 88 to 474
QUICK_TRANSITIONS = 16_384
TARGET, TARGET_WORKERS = 10**9, 64
_NEEDED_BYTES = 700  # a transition: windows, checkpoints, and pieces that wait to be merged
_POLL_SECONDS, _KILL_POLL_SECONDS = 0.2, 0.01
Json = dict[str, float | int | None]


@dataclass
class Timed:
    """One call of the command.

    Attributes:
        seconds: wall clock from start to end.
        first_seconds: until the first window that was not there before.
        waiting_seconds: from the window that was finished last to the end of a command that was killed.
        merge_seconds: from the last finished window to the end; 0 if that was never seen (under 0.2 s).
        worker_mib, main_mib: largest resident memory of any worker and of the command's own process.
        stolen: share of the cores' time that a virtual machine's host gave to others meanwhile (Linux; else 0).
    """

    seconds: float
    first_seconds: float
    waiting_seconds: float
    merge_seconds: float
    worker_mib: float
    main_mib: float
    stolen: float


def attribute(folder: RunFolder, workers: int, kill_at: int | None = None) -> Timed:
    """Run `aitia attribute` in a process of its own and watch it.

    Args:
        folder: an evaluated run.
        workers: `--workers`.
        kill_at: send SIGKILL once so many windows are finished.
    """
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    command = [sys.executable, "-m", "aitia", "attribute", str(folder.root), "--workers", str(workers)]
    windows, there = folder.window_count(0), _finished(folder, 0)
    finished, first, progress, last = there, None, 0.0, 0.0
    peaks: dict[int, float] = {}
    began, stolen = time.perf_counter(), _stolen_seconds()
    with (
        tempfile.TemporaryFile("w+") as said,
        subprocess.Popen(command, cwd=ROOT, env=os.environ | threads, stdout=said, stderr=said) as process,
    ):
        children: list[psutil.Process] = []
        while process.poll() is None:
            time.sleep(_POLL_SECONDS if kill_at is None else _KILL_POLL_SECONDS)
            now = time.perf_counter() - began
            if finished < windows:  # the pieces are removed once they are merged
                before, finished, last = finished, _finished(folder, finished), now
                progress = now if finished > before else progress
                first = now if first is None and finished > there else first
            if kill_at is not None and finished >= kill_at:
                process.kill()
            children = _watch(process.pid, peaks) or children
        seconds = time.perf_counter() - began
        if kill_at is None and process.returncode:
            said.seek(0)
            raise SystemExit(f"{' '.join(command)} failed:\n{said.read()}")
        if kill_at is not None and not process.returncode:
            raise SystemExit("the command ended before it could be killed: give more --transitions")
        _, left = psutil.wait_procs(children, timeout=30)
        if left:
            raise SystemExit(f"{len(left)} workers outlived the command by 30 s")
    main, stolen = peaks.pop(process.pid, 0.0), _stolen_seconds() - stolen
    share = stolen / seconds / (psutil.cpu_count() or 1)
    first = seconds if first is None else first
    return Timed(seconds, first, seconds - progress, seconds - last, max(peaks.values(), default=0.0), main, share)


def _stolen_seconds() -> float:
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def _finished(folder: RunFolder, known: int) -> int:
    """Return how many windows are finished, at least so many as are `known`; each file is of a block of them."""
    windows = folder.window_count(0)
    for pieces in folder.parts_folder("influence").glob("*/*/seed=0"):
        blocks = sum(1 for _ in pieces.glob("window=*.safetensors"))
        known = max(known, min(blocks * block_size(windows), windows))
    return known


def _watch(pid: int, peaks: dict[int, float]) -> list[psutil.Process]:
    """Note the largest resident memory (MiB) of a process and of those below it; return the latter."""
    try:
        process = psutil.Process(pid)
        children: list[psutil.Process] = process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for one in (process, *children):
        try:
            status = Path(f"/proc/{one.pid}/status")
            if status.exists():  # Linux tells the peak itself
                peak = next((int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line), 0)
                peaks[one.pid] = max(peaks.get(one.pid, 0.0), peak / 1024)
            else:
                peaks[one.pid] = max(peaks.get(one.pid, 0.0), one.memory_info().rss / 2**20)
        except (psutil.Error, OSError):
            continue
    return children


def afresh(folder: RunFolder, workers: int, kill_at: int | None = None) -> Timed:
    """Attribute a run as if it had never been attributed."""
    for path in (folder.root / "influence", folder.root / ".parts"):
        shutil.rmtree(path, ignore_errors=True)
    found = attribute(folder, workers, kill_at)
    said = "killed" if kill_at else f"{found.merge_seconds:.1f} s of it merging, worker {found.worker_mib:.0f} MiB"
    rows = folder.window_count(0) * ROWS
    print(
        f"  {rows:11,d} transitions, {workers} workers: {found.seconds:8.1f} s, {said}, {found.stolen:.0%} stolen",
        flush=True,
    )
    return found


def mean_of(*found: Timed) -> Timed:
    """Return the mean of calls, figure by figure."""
    return Timed(**{key: mean(getattr(timed, key) for timed in found) for key in asdict(found[0])})


def bytes_on_disk(folder: RunFolder) -> int:
    """Bytes of a run's transitions and checkpoints."""
    paths = [path for name in ("transitions", "checkpoints") for path in (folder.root / name).rglob("*")]
    return sum(path.stat().st_size for path in paths if path.is_file())


def exponent(small: float, large: float, times: float) -> float | None:
    """Log-log slope of seconds against a size that is `times` larger; None where start-up hides them."""
    return round(log(large / small) / log(times), 3) if min(small, large) > 0.0 else None


def make(root: Path, transitions: int, failures: int, states: int = 0) -> RunFolder:
    """Write a run of at least one window."""
    began = time.perf_counter()
    folder = write_run(root, max(1, round(transitions / ROWS)), failures, states).folder
    print(f"  wrote {folder.window_count(0) * ROWS:,} transitions in {time.perf_counter() - began:.0f} s", flush=True)
    return folder


def measure(out: Path, transitions: int, quick: bool) -> Json:
    """Write runs under `out`, attribute them, and return what was measured."""
    failures, part = QUICK_FAILURES if quick else FAILURES, transitions if quick else transitions // 10
    tenth = make(out / "tenth", part, failures)
    rows = tenth.window_count(0) * ROWS
    two = afresh(tenth, 2)
    one = afresh(tenth, 1)
    killed = afresh(tenth, 2, kill_at=1 if quick else tenth.window_count(0) // 2)
    again = attribute(tenth, 2)
    print(
        f"  killed after {killed.seconds:.1f} s and run again: {again.seconds:.1f} s more, {again.stolen:.0%} stolen; "
        f"{killed.waiting_seconds:.1f} s lost, {again.first_seconds:.1f} s to the next window",
        flush=True,
    )
    if not quick:  # once before and once after: a machine's speed drifts
        two = mean_of(two, afresh(tenth, 2))
    result: Json = {
        "scaling_two_workers": round(one.seconds / two.seconds, 3),
        "resume_overhead": round((killed.waiting_seconds + again.first_seconds) / two.seconds, 4),
        "resume_between_calls": round((killed.seconds + again.seconds) / two.seconds - 1.0, 4),
        "bytes_per_transition": round(bytes_on_disk(tenth) / rows, 1),
    }
    if quick:
        return _whole(two, rows, failures) | result
    first = make(out / "first", ROWS, failures)
    started, alone = afresh(first, 2).seconds, afresh(first, 1).seconds
    result["seconds_start"] = round(started, 2)
    work = max(two.seconds - started, _POLL_SECONDS)
    result["scaling_two_workers_without_start"] = round((one.seconds - alone) / work, 3)
    repeated = make(out / "repeated", part, failures, REPEATED_STATES)
    result["transitions_per_second_repeated_rows"] = round(rows / afresh(repeated, 2).seconds)
    shutil.rmtree(repeated.root)
    hundredth = make(out / "hundredth", part // 10, failures)
    many = afresh(hundredth, 2).seconds
    write_failures(hundredth, FEWER_FAILURES)
    fewer = afresh(hundredth, 2).seconds
    result["exponent_failures"] = exponent(fewer - started, many - started, failures / FEWER_FAILURES)
    shutil.rmtree(hundredth.root)
    shutil.rmtree(tenth.root)
    run = make(out / "whole", transitions, failures)
    whole, all_rows = afresh(run, 2), run.window_count(0) * ROWS
    times = all_rows / rows
    windows, all_windows = work - two.merge_seconds, whole.seconds - whole.merge_seconds - started
    result["exponent_windows"] = exponent(windows, all_windows, times)
    result["exponent_merge"] = exponent(two.merge_seconds, whole.merge_seconds, times)
    result["exponent_workers"] = exponent(work, one.seconds - alone, 2)
    return _whole(whole, all_rows, failures) | result | project(whole, started, all_rows, result)


def _whole(timed: Timed, rows: int, failures: int) -> Json:
    return {
        "transitions": rows, "failures": failures, "decisive_steps": failures * DECISIVE,
        "seconds_attribute": round(timed.seconds, 1), "transitions_per_second": round(rows / timed.seconds),
        "peak_mib_per_worker": round(timed.worker_mib), "peak_mib_main": round(timed.main_mib),
        "seconds_merge": round(timed.merge_seconds, 1), "stolen_share": round(timed.stolen, 3),
    }  # fmt: skip


def project(whole: Timed, started: float, rows: int, found: Json) -> Json:
    """Carry the largest run to 10^9 transitions on 64 workers by the measured exponents, and say what is assumed."""
    times, share = TARGET / rows, TARGET_WORKERS / 2
    slopes = {
        name: 1.0 if (slope := found[f"exponent_{name}"]) is None else slope for name in ("windows", "merge", "workers")
    }
    slopes["workers"] = min(slopes["workers"], 1.0)  # more than proportional is noise
    windows = (
        max(whole.seconds - whole.merge_seconds - started, _POLL_SECONDS)
        * times ** slopes["windows"]
        / share ** slopes["workers"]
    )
    merge = whole.merge_seconds * times ** slopes["merge"]
    rate = TARGET / windows
    stored = found["bytes_per_transition"] or 0.0
    for line in (
        f"Projection: 10^9 transitions, {FAILURES} failures, {TARGET_WORKERS} workers: {windows / 3600:.1f} h of "
        f"windows and {merge / 3600:.1f} h of merging. Assumed:",
        f"time of windows ~ transitions^{slopes['windows']:.2f} (measured) and ~ workers^-{slopes['workers']:.2f} "
        "(one against two, measured on this machine, at most 1; not beyond)",
        f"{TARGET_WORKERS} cores like these, one a worker, and storage that gives them {rate * stored / 2**20:.0f} "
        f"MiB/s together; recordings take {TARGET * stored / 2**40:.2f} TiB",
        f"a scheduler that hands out {rate / ROWS:.0f} windows a second",
        f"time of merging ~ transitions^{slopes['merge']:.2f} (measured on two workers, which add up blocks; more are "
        "not counted as faster)",
    ):
        print(f"  {line}")
    return {
        "projected_hours_windows": round(windows / 3600, 2),
        "projected_hours_merge": round(merge / 3600, 2),
        "projected_hours": round((windows + merge + started) / 3600, 2),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="The scale of `aitia attribute`.")
    parser.add_argument("--transitions", type=int, default=10_000_000, help="of the largest run")
    parser.add_argument("--out", type=Path, help="folder for the runs, removed again (default: a temporary one)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_TRANSITIONS:,} transitions, to try it out")
    given = parser.parse_args()
    transitions = QUICK_TRANSITIONS if given.quick else given.transitions
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.out) as name:
        free = shutil.disk_usage(name).free
        if free < transitions * _NEEDED_BYTES:
            raise SystemExit(
                f"{name} has {free / 2**30:.1f} GiB left, {transitions:,} transitions need "
                f"{transitions * _NEEDED_BYTES / 2**30:.1f}: give --out on a larger disk, or fewer --transitions"
            )
        print(f"aitia attribute, {psutil.cpu_count()} cores", flush=True)
        result = measure(Path(name), transitions, given.quick)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
