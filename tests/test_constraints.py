"""Dependencies: what CI installs is what was tested, and another way takes what is newest."""

from __future__ import annotations

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MANY_MAJORS = {"cryptography", "pillow", "pyarrow"}


def _pinned() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "names and versions only: no host, no path"
    return {canonicalize_name(name): Version(version) for name, _, version in (line.partition("==") for line in lines)}


def test_constraints_pin_every_dependency_within_its_range() -> None:
    pinned, extras = _pinned(), PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["test"], *extras["contrib"], *extras["s3"], *extras["minari"]]:
        requirement = Requirement(text)
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not in constraints.txt"
        assert version in requirement.specifier, f"{requirement} does not allow the tested {version}"


def test_every_dependency_has_an_upper_bound_where_its_major_releases_break() -> None:
    for requirement in map(Requirement, PROJECT["dependencies"]):
        bounded = any(each.operator in ("<", "<=", "==") for each in requirement.specifier)
        assert bounded != (requirement.name in MANY_MAJORS), requirement


def test_torch_versions_with_the_unpickler_advisory_are_excluded() -> None:
    (torch,) = [each for each in map(Requirement, PROJECT["dependencies"]) if each.name == "torch"]
    assert "2.9.1" not in torch.specifier and "2.10.0" in torch.specifier and "2.13.0" in torch.specifier


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_installs_from_the_constraints_and_without_them_where_asked(tmp_path: Path) -> None:
    def commands(*arguments: str) -> list[str]:
        call = ["make", "-n", "install", f"VENV={tmp_path / 'env'}", *arguments]
        done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if "pip install" in line]

    ours, newest = commands(), commands("CONSTRAINTS=")
    assert len(ours) == len(newest) == 3
    assert all("--constraint constraints.txt" in line for line in ours)
    assert not any("constraint" in line for line in newest)
    assert "CONSTRAINTS= " in (ROOT / ".ci/run-latest").read_text()
    assert "CONSTRAINTS" not in (ROOT / ".ci/run").read_text()
