"""The wheel: installed in a fresh environment, beside a package named `datasets`, from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
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
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # the dependencies of the running environment, after the fresh one's own packages; no network is needed
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (site / "datasets").mkdir()
    (site / "datasets" / "__init__.py").write_text("WHOSE = 'Hugging Face'\n")
    run(python, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--ignore-installed", wheel)
    told = run(python, "-c", "import aitia, datasets; print(aitia.__file__, datasets.WHOSE)")
    assert str(site) in told and "Hugging Face" in told
    run(python, "-c", "import aitia.workflows.commands, datasets; assert datasets.WHOSE")
    assert "demo" in run(tmp_path / "env" / "bin" / "aitia", "--help")
    files = run(python, "-c", "import zipfile,sys; print(*zipfile.ZipFile(sys.argv[1]).namelist(), sep='\\n')", wheel)
    assert "aitia/workflows/tasks/arrow-maze-outer.yaml" in files and "aitia/reports/templates/index.html" in files
    assert "aitia/tests" not in files and "\ndatasets/" not in files
