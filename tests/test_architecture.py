"""The layout: data flows one way, imports are relative inside the package, files stay short."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("datasets", "training", "attribution", "reports", "workflows")
SOURCES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
EVERYTHING = [*SOURCES, *sorted(path for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py"))]


def imported_floors(path: Path) -> set[str]:
    """Return the floors that a module of the package imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 2:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
    return found & set(FLOORS)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_data_flows_one_way(path: Path) -> None:
    mine = FLOORS.index(path.relative_to(ROOT).parts[0])
    above = {floor for floor in imported_floors(path) if FLOORS.index(floor) > mine}
    assert not above, f"{path.name} imports from a floor above it"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_names_itself_only_relatively(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not any(name.split(".")[0] in ("aitia", *FLOORS) for name in names)


def test_training_reaches_no_dask_and_datasets_no_training() -> None:
    for floor, forbidden in (
        ("datasets", {"dask", "distributed", "stable_baselines3", "gymnasium"}),
        ("training", {"dask", "distributed", "trak"}),
    ):
        for path in (ROOT / floor).rglob("*.py"):
            nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
            modules = {(node.module or "").split(".")[0] for node in nodes}
            assert not modules & forbidden, path


def test_datasets_is_no_package_that_could_hide_hugging_face_datasets() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert all((ROOT / floor / "__init__.py").exists() for floor in FLOORS[1:])
    assert (ROOT / ".import" / "aitia").is_symlink()


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_is_longer_than_500_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


def test_importing_aitia_loads_nothing_heavy_and_every_command_is_a_function() -> None:
    import subprocess
    import sys

    code = "import sys, aitia; assert not {'torch', 'dask', 'gymnasium'} & set(sys.modules); print(*aitia.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = done.stdout.split()
    import aitia
    from aitia.workflows.cli import cli

    assert set(names) == {"__version__", "Recorder", "LoopRecorder", *cli.commands}
    assert all(callable(getattr(aitia, name)) for name in names if name != "__version__")


def test_command_line_and_functions_have_the_same_arguments() -> None:
    import inspect

    from aitia.workflows import commands
    from aitia.workflows.cli import cli

    for name, command in cli.commands.items():
        options = {(parameter.name or "").rstrip("_") for parameter in command.params}
        options -= {"further"}  # the second ID and those after it, of `--failure ID ...`
        options -= {
            "tls_ca",
            "tls_cert",
            "tls_key",
        }  # functions: Dask's configuration (docs/schedulers.md)
        assert options == set(inspect.signature(getattr(commands, name)).parameters), name
