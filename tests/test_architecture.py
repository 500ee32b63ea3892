"""The layout: floors and rooms import one way, heavy libraries have their rooms, folders and files stay small."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("datasets", "training", "attribution", "reports", "workflows")
SOURCES = sorted(path for floor in FLOORS for path in (ROOT / floor).rglob("*.py"))
EVERYTHING = [*SOURCES, *sorted(path for name in ("tests", "benchmarks") for path in (ROOT / name).rglob("*.py"))]
ROOMS = sorted({path.parent for path in SOURCES if path.parent.parent != ROOT})
MOST_MODULES = 14
MOST_MODULES_IN = {"training/worlds": 16}  # each family is a module
LIBRARIES = {  # where each may be imported; everywhere else it may not
    "dask": ("workflows.workers", "workflows.cli"),
    "distributed": ("workflows.workers", "workflows.cli"),
    "torch": ("training", "attribution", "workflows", "datasets.files.store"),  # datasets: tensors of safetensors
    "stable_baselines3": ("training", "attribution", "workflows"),
    "sb3_contrib": ("training",),
    "gymnasium": ("training", "attribution", "workflows"),
    "trak": ("attribution",),
    "jinja2": ("reports.pages",),
    "click": ("workflows.cli",),
}

Name = tuple[str, ...]  # of a module: the parts between its dots, `aitia` left out


def module_of(path: Path) -> Name:
    """Return the module of a file of the package."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


MODULES = {module_of(path): path for path in SOURCES}
PACKAGES = {module[:depth] for module in MODULES for depth in range(len(module))}


def imports(code: str, package: Name) -> Iterator[tuple[Name, bool]]:
    """Yield what code in a module of `package` imports, and whether relatively: wherever it stands, in every form."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from ((tuple(alias.name.split(".")), False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = (*above, *(node.module.split(".") if node.module else ()))
            inside = [(*base, alias.name) for alias in node.names]
            yield from ((name if name in MODULES or name in PACKAGES else base, bool(node.level)) for name in inside)


@cache
def imported(module: Name, relatively: bool) -> frozenset[Name]:
    """Return what a module of the package imports from it (`relatively`), or from others."""
    path = MODULES[module]
    names = imports(path.read_text(), path.parent.relative_to(ROOT).parts)
    return frozenset(name for name, relative in names if relative == relatively)


def dotted(names: Iterable[Name]) -> list[str]:
    """Return names as they are written, sorted."""
    return sorted(".".join(name) for name in names)


def test_every_form_of_import_is_seen() -> None:
    code = """
import dask.config
from distributed import Client
if TYPE_CHECKING:
    from ...reports.verdict.rules import decide
def late():
    from . import bank
    from .bank import Mask
    from ...datasets import schema, outcomes
    from ... import training
"""
    seen = {(".".join(name), relative) for name, relative in imports(code, ("workflows", "stages"))}
    inside = {"reports.verdict.rules", "workflows.stages.bank", "datasets.schema", "datasets.outcomes", "training"}
    assert seen == {("dask.config", False), ("distributed", False), *((name, True) for name in inside)}


def test_data_flows_one_way() -> None:
    for module in MODULES:
        names = imported(module, relatively=True)
        unknown = [name for name in names if name not in MODULES and name not in PACKAGES]
        assert not unknown, f"{'.'.join(module)}: an import that this test does not understand"
        above = [name for name in names if name and FLOORS.index(name[0]) > FLOORS.index(module[0])]
        assert not above, f"{'.'.join(module)} imports {dotted(above)} from a floor above it"


def test_the_package_names_itself_only_relatively() -> None:
    for module in MODULES:
        assert not {name[0] for name in imported(module, relatively=False)} & {"aitia", *FLOORS}, module


@pytest.mark.parametrize("floor", FLOORS)
def test_rooms_of_a_floor_have_no_cycle(floor: str) -> None:
    """A room is a sub-folder; a module that lies loose on the floor is one of its own."""
    edges: dict[Name, dict[Name, list[str]]] = defaultdict(lambda: defaultdict(list))
    for module in MODULES:
        for name in sorted(imported(module, relatively=True)):
            if module[0] == name[0] == floor and module[:2] != name[:2]:
                edges[module[:2]][name[:2]].append(f"{'.'.join(module)} imports {'.'.join(name)}")
    try:
        TopologicalSorter(edges).prepare()
    except CycleError as error:
        cycle = error.args[1][::-1]  # graphlib lists each room before those that import it
        pytest.fail("rooms import each other:\n" + "\n".join(edges[a][b][0] for a, b in pairwise(cycle)))


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_only_in_its_rooms(library: str) -> None:
    importing = [module for module in MODULES if library in {name[0] for name in imported(module, relatively=False)}]
    rooms = [tuple(room.split(".")) for room in LIBRARIES[library]]
    outside = [module for module in importing if not any(module[: len(room)] == room for room in rooms)]
    assert not outside, f"{dotted(outside)} import {library}"
    unused = [room for room in rooms if not any(module[: len(room)] == room for module in importing)]
    assert not unused, f"{library} is allowed in {dotted(unused)}, where nothing imports it"


def test_a_room_says_in_one_sentence_what_is_in_it_and_what_never() -> None:
    for room in ROOMS:
        said = ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""
        assert said.endswith(".") and said.count(". ") == 0 and "\n" not in said and "; never " in said, room


def test_a_folder_holds_few_modules() -> None:
    for folder in {path.parent for path in SOURCES}:
        count = sum(path.name != "__init__.py" for path in folder.glob("*.py"))
        most = MOST_MODULES_IN.get(str(folder.relative_to(ROOT)), MOST_MODULES)
        assert count <= most, f"{folder}: make a room of some of them"


def test_training_has_at_most_eight_rooms_and_nothing_outside_them() -> None:
    assert [path.name for path in (ROOT / "training").glob("*.py")] == ["__init__.py"]
    assert len([room for room in ROOMS if room.parent.name == "training"]) <= 8


def test_datasets_is_no_package_that_could_hide_hugging_face_datasets() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()
    assert all((ROOT / floor / "__init__.py").exists() for floor in FLOORS[1:])
    assert (ROOT / ".import" / "aitia").is_symlink()


def test_no_file_is_longer_than_500_lines() -> None:
    assert not [path for path in EVERYTHING if len(path.read_text().splitlines()) > 500]


def test_importing_aitia_loads_nothing_heavy() -> None:
    code = "import sys, aitia; assert not {'torch', 'dask', 'gymnasium'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_command_line_and_functions_have_the_same_arguments() -> None:
    from aitia.workflows import commands
    from aitia.workflows.cli import cli

    for name, command in cli.commands.items():
        options = {(parameter.name or "").rstrip("_") for parameter in command.params}
        options -= {"further"}  # the second ID and those after it, of `--failure ID ...`
        options -= {"tls_ca", "tls_cert", "tls_key"}  # functions: Dask's configuration (docs/schedulers.md)
        assert options == set(inspect.signature(getattr(commands, name)).parameters), name
