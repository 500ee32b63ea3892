"""The benchmark of scale, tried out: the command itself on a small run, killed and continued."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fresh import fresh_python

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_the_benchmark_of_scale_runs_end_to_end(tmp_path: Path) -> None:
    code = "from forked_scale import main; main()"
    done = fresh_python("-c", code, "--quick", "--out", tmp_path, cwd=ROOT)
    assert done.code == 0, done.told
    found = json.loads(done.told.splitlines()[-1])
    assert found["transitions"] == 8 * 2048 and found["failures"] == 12 and found["decisive_steps"] == 96
    rate = found["transitions"] / found["seconds_attribute"]
    assert found["transitions_per_second"] == pytest.approx(rate, rel=0.01)
    assert 0.0 <= found["seconds_merge"] < found["seconds_attribute"]
    assert 64 * 4 < found["bytes_per_transition"] < 512, "an observation of 64 floats does not compress"
    assert 100 < found["peak_mib_per_worker"] < 2048 and found["peak_mib_main"] > 100
    assert found["scaling_two_workers"] > 0.0
    assert found["resume_overhead"] > 0.0 and found["resume_between_calls"] > -1.0
    assert "killed after" in done.told and not list(tmp_path.iterdir()), "the runs are removed again"
