"""The source code that a task names, found and hashed without running any of it.

A task names modules (`env`, `hooks`, `target`, `causes`, `verify.sets`) that lie beside it or on the import path. Their
source, and that of what they import, decides what a run holds as much as the task itself: its hashes are kept in
`run.json`. Installed packages and aitia itself are known by their versions.
"""

from __future__ import annotations

import ast
import hashlib
import site
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import packages_distributions, version
from pathlib import Path
from typing import Any

_MOST_FILES = 2_000  # a task next to a large code base: more are not followed


def named_in(value: object) -> Iterator[str]:
    """Yield every `module:name` in a task, or in a part of one, given as plain values."""
    if isinstance(value, str):
        module, colon, name = value.partition(":")
        if colon and name and all(part.isidentifier() for part in module.split(".")):
            yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from named_in(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from named_in(part)


def code_in(task: Mapping[str, Any]) -> list[str]:
    """Return what of a task names code, to be shown: not its name, its outcomes and its lists of groups.

    What counts where code is compared is more, see `named_in`: whatever reads like `module:name`.
    """
    shown = {key: value for key, value in task.items() if key not in ("name", "outcomes")}
    if isinstance(shown.get("causes"), list):
        del shown["causes"]
    verify = shown.get("verify")
    sets = verify.get("sets") if isinstance(verify, Mapping) else None
    if isinstance(verify, Mapping) and isinstance(sets, Mapping):
        shown["verify"] = {**verify, "sets": {key: value for key, value in sets.items() if isinstance(value, str)}}
    return sorted(set(named_in(shown)))


def hashes_of(named: object, folder: str | Path | None) -> dict[str, str]:
    """Return the SHA-256 of the source of every module that a task names, and of what these import, by module.

    Nothing is imported or run. Modules of the standard library, installed packages and aitia are left out.

    Args:
        named: the task, or a part of it, as plain values.
        folder: that of the task file: modules in it can be named; None: not known.
    """
    modules = [module for value in named_in(named) for module in _with_packages(value.partition(":")[0])]
    path = [*sys.path, *([str(folder)] if folder is not None else [])]
    files = _sources(sorted(set(modules)), path)
    return {name: hashlib.sha256(file.read_bytes()).hexdigest() for name, file in files.items()}


def packages_of(named: object, folder: str | Path | None) -> dict[str, str]:
    """Return the versions of the installed packages that a task names modules of, by package.

    Args:
        named, folder: see `hashes_of`.
    """
    path = [*sys.path, *([str(folder)] if folder is not None else [])]
    tops = {value.partition(":")[0].partition(".")[0] for value in named_in(named)}
    specs = {name: _find(name, path) for name in sorted(tops)}
    own = {name for name, spec in specs.items() if spec is None or spec.origin is None or _is_own(Path(spec.origin))}
    found = {package for name in tops - own for package in _distributions().get(name, ())}
    return {package: version(package) for package in sorted(found - {"aitia"})}


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


def changed_sources(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Say which modules' source differs; those that only one of the two knows are named by another task."""
    return [f"the source of module `{name}` changed" for name in sorted(old) if new.get(name, old[name]) != old[name]]


def _with_packages(name: str) -> list[str]:
    """Return a module and the packages that it is in, all of which importing it runs."""
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def _sources(modules: list[str], path: Sequence[str]) -> dict[str, Path]:
    """Return the files of modules and of all that they import, directly or not, by module."""
    waiting, seen = list(modules), set(modules)
    found: dict[str, Path] = {}
    while waiting and len(found) < _MOST_FILES:
        name = waiting.pop(0)
        spec = _find(name, path)
        if spec is None or spec.origin is None or not _is_own(Path(spec.origin)):
            continue
        found[name] = Path(spec.origin)
        package = name if spec.submodule_search_locations is not None else name.rpartition(".")[0]
        new = [module for module in dict.fromkeys(_imports(found[name], package)) if module not in seen]
        seen.update(new)
        waiting += new
    return found


def _find(name: str, path: Sequence[str]) -> ModuleSpec | None:
    """Find a module without importing it or the packages it is in; None: there is no such file."""
    parts = name.split(".")
    if not all(part.isidentifier() for part in parts):
        return None
    spec = _find_top(parts[0], path)
    for depth in range(2, len(parts) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join(parts[:depth]), list(spec.submodule_search_locations))
    return spec


def _find_top(name: str, path: Sequence[str]) -> ModuleSpec | None:
    """Find a module that is in no package, as importing would: packages installed to be edited have a finder each."""
    for finder in sys.meta_path:
        if finder is PathFinder:
            spec = PathFinder.find_spec(name, list(path))
        else:
            find = getattr(finder, "find_spec", None)
            spec = None if find is None else find(name, None)
        if spec is not None:
            return spec
    return None


@lru_cache(maxsize=1)
def _others() -> tuple[Path, ...]:
    """Return the folders whose modules are somebody else's: the standard library, installed packages, aitia."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    found = [*(sysconfig.get_path(name) for name in names), *site.getsitepackages(), site.getusersitepackages()]
    return (*(Path(name).resolve() for name in found), Path(__file__).resolve().parents[2])


def _is_own(file: Path) -> bool:
    """Return whether a file is code of the user's, compiled or not."""
    if not file.is_file():
        return False
    whole = file.resolve()
    *installed, ours = _others()
    rooms = ("attribution", "training", "datasets", "reports", "workflows")
    if whole.is_relative_to(ours) and whole.relative_to(ours).parts[0] in (*rooms, "__init__.py", "__main__.py"):
        return False  # only the package itself: examples and tests lie next to it in a checkout
    return not any(whole.is_relative_to(folder) for folder in installed)


def _imports(file: Path, package: str) -> Iterator[str]:
    """Yield the modules that a source file may import, its own packages included, in the order of the file."""
    if file.suffix != ".py":
        return
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # whoever imports it is told so
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names = [] if base is None else [base, *(f"{base}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            yield from _with_packages(name)


def _absolute(node: ast.ImportFrom, package: str) -> str | None:
    """Return the module that `from ... import` names; None: above the topmost package."""
    if not node.level:
        return node.module
    parts = package.split(".") if package else []
    if node.level - 1 >= len(parts):
        return None
    base = parts[: len(parts) - (node.level - 1)]
    return ".".join([*base, *([node.module] if node.module else [])])
