"""The wheel: installed in a fresh environment, beside a package named `datasets`, from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_works_beside_a_package_named_datasets(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def run(*arguments: str | Path) -> str:
        done = subprocess.run(
            [str(a) for a in arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run(sys.executable, "-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path)
    (wheel,) = tmp_path.glob("aitia-*.whl")
    venv.create(tmp_path / "env")
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # the dependencies of the running environment, after the fresh one's own packages; no network is needed
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").write_text("WHOSE = 'Hugging Face'\n")
    install = ("install", "--no-deps", "--no-index", "-q", "--ignore-installed")
    run(sys.executable, "-m", "pip", "--python", python, *install, wheel)
    code = "import aitia.workflows.commands, datasets; print(aitia.__file__, datasets.WHOSE)"
    told = run(python, "-c", code)
    assert str(site) in told and "Hugging Face" in told
    assert "demo" in run(tmp_path / "env" / "bin" / "aitia", "--help")
    files = "\n".join(zipfile.ZipFile(wheel).namelist())
    assert "aitia/workflows/tasks/arrow-maze-outer.yaml" in files and "aitia/reports/templates/index.html" in files
    assert "aitia/tests" not in files and "\ndatasets/" not in files
