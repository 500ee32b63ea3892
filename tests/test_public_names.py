"""Every public name, written down once more: none comes or goes by accident, and all that documents name is there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "attribute", "check", "compare", "demo", "evaluate", "illustrate", "report", "run", "suite", "train", "validate",
    "verify",
)  # fmt: skip
PUBLIC: dict[str, set[str]] = {
    "aitia": {"__version__", "open", "Recorder", "LoopRecorder", *COMMANDS},
    "aitia.attribution": {
        "Actor", "Estimator", "Signal", "Targets", "TracIn", "Trak", "TrakLinear", "TrakProjected", "TrakUpdates",
        "Window", "group_effects", "influence",
    },
}  # fmt: skip
DOCUMENTS = [
    path
    for pattern in ("*.md", "docs/*.md", "examples/*.*", "workflows/tasks/*.yaml", "workflows/suite/cases/*.yaml")
    for path in sorted(ROOT.glob(pattern))
    if path.name != "CHANGELOG.md"  # names of earlier versions
]
NO_MODULES = {"aitia.estimators", "aitia.dashboard"}  # a group of entry points, and a key of Dask's configuration
_IMPORT = re.compile(r"\bfrom (aitia[\w.]*) import (?:\(([^)]*)\)|([\w, ]+))")
_DOTTED = re.compile(r"\baitia(?:\.[A-Za-z_]\w*)+(?::\w+)?(?![\w/])")


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_those_written_here(module: str) -> None:
    loaded = importlib.import_module(module)
    assert set(loaded.__all__) == PUBLIC[module] <= set(dir(loaded))
    assert all(getattr(loaded, name) is not None for name in PUBLIC[module])


def test_every_command_is_a_function_of_the_root() -> None:
    import aitia
    from aitia.workflows.cli import cli

    assert set(COMMANDS) == set(cli.commands)
    assert all(callable(getattr(aitia, name)) for name in COMMANDS)


def find(name: str) -> Any:
    """Return the module, or what is in one, that a dotted name means; `module:name` too."""
    *parts, last = name.replace(":", ".").split(".")
    try:
        return importlib.import_module(".".join((*parts, last)))
    except ModuleNotFoundError:
        return getattr(find(".".join(parts)), last)


def named_in(text: str) -> set[str]:
    """Return the names of the package that a document imports or writes with dots."""
    parts = {f"{module}.{name.split()[0]}" for module, one, other in _IMPORT.findall(text)
             for name in re.sub(r"#.*", "", one or other).split(",") if name.strip()}  # fmt: skip
    return parts | (set(_DOTTED.findall(text)) - NO_MODULES)


def test_names_are_seen_in_every_form() -> None:
    text = "from aitia.a import (\n    B,  # why\n    C,\n)\nfrom aitia import run, train\n`aitia.x.Y` z: aitia.x:y\n"
    assert named_in(text) == {"aitia.a.B", "aitia.a.C", "aitia.run", "aitia.train", "aitia.a", "aitia.x.Y", "aitia.x:y"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_is_there(path: Path) -> None:
    for name in sorted(named_in(path.read_text())):
        find(name)
