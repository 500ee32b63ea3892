"""The working directory, perhaps a folder that somebody sent, is no place where modules are looked for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from aitia.datasets.errors import EnvironmentError_
from aitia.training.environments.spec import EnvSpec

# Modules of Python that every new process imports, and optional ones that installed packages look for.
PLANTED = ("selectors", "tensorboard", "cv2", "zstandard")
COMMAND = """
import os, sys

sys.path[:] = [path for path in sys.path if path]  # as the command `aitia` begins: without the working directory
from aitia.workflows.workers.cluster import DaskWorkers
from pieces import look

if __name__ == "__main__":
    with DaskWorkers(1) as pool:
        for path, safe, found in pool.map(look, [sys.argv[1:]], "look"):
            assert os.getcwd() not in path and "" not in path, path
            assert safe == os.environ.get("PYTHONSAFEPATH", ""), safe
            assert found == [], found
"""
PIECES = """
import importlib.util, os, sys

def look(names):
    found = [importlib.util.find_spec(name) for name in names]
    here = [spec.origin for spec in found if spec and str(spec.origin).startswith(os.getcwd())]
    return list(sys.path), os.environ.get("PYTHONSAFEPATH", ""), here
"""


@pytest.mark.slow
def test_modules_planted_in_the_working_directory_are_not_found_by_workers(tmp_path: Path) -> None:
    here, scripts, ran = tmp_path / "sent", tmp_path / "scripts", tmp_path / "ran"
    for folder in (here, scripts):
        folder.mkdir()
    for name in PLANTED:
        (here / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r})\nraise ImportError({name!r})\n")
    (scripts / "command.py").write_text(COMMAND)
    (scripts / "pieces.py").write_text(PIECES)
    done = subprocess.run(
        [sys.executable, str(scripts / "command.py"), *PLANTED],
        cwd=here, capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(path).absolute()) for path in sys.path if path)},
    )  # fmt: skip
    assert not ran.exists(), ran.read_text()
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_module_that_is_not_found_is_said_with_the_places_that_were_searched() -> None:
    spec = EnvSpec("nowhere_to_be_found:Env", {})
    with pytest.raises(EnvironmentError_, match="beside the task file, in PYTHONPATH and among installed packages"):
        spec.make()
