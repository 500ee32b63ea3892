"""Where a task comes from: a task file, or a mapping or a model of a program."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...datasets.errors import TaskError
from ...datasets.files.limits import read_yaml
from ...datasets.files.remote import local_path
from ...training.edits.file import read_edits
from ...training.recording.task_file import unfilled
from .sources import named_in
from .task import Task, make_task

TaskSource = str | Path | Mapping[str, Any] | Task


def load_task(task: TaskSource, edits: str | Path | None = None) -> Task:
    """Validate a task; modules next to its file can then be named by `env` and `target`.

    Args:
        task: the task file, or the task itself, as a mapping of a task file's keys or a model.
        edits: an edits file: rewards to correct while training; of a model, instead of its own.

    Raises:
        TaskError: the file is missing or is not YAML, or the task breaks the contract.
        InputError: the same of the edits file.
    """
    if isinstance(task, Mapping | Task):
        values, where = _given_values(task), "the task"
    else:
        values, where = _read_task(task)
    if not isinstance(task, Task) and isinstance(values, dict) and "edits" in values:
        raise TaskError(f"{where}: key `edits` is no key of a task file: give a file with --edits FILE")
    loaded = make_task(values, where)
    return loaded if edits is None else loaded.model_copy(update={"edits": read_edits(edits)})


def place_of(task: TaskSource) -> tuple[str, str] | tuple[None, None]:
    """Return the folder of a task file and its name there; None of a task that is no file."""
    if isinstance(task, Mapping | Task):
        return None, None
    path = local_path(task, "the task file").resolve()
    return str(path.parent), path.name


def _read_task(task: str | Path) -> tuple[Any, str]:
    """Return what a task file holds, and its path for messages; modules next to it can then be imported.

    Raises:
        TaskError: it is missing, is not YAML, or is not filled in.
    """
    path = local_path(task, "the task file")
    if not path.is_file():
        raise TaskError(f"the task file {path} does not exist; expected a YAML file such as examples/*.yaml")
    try:
        values = read_yaml(path)
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise TaskError(f"the task file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise TaskError(f"{path} is not YAML: {error}") from error
    if left := unfilled(text):
        raise TaskError(
            f"{path} is not filled in yet; expected a value where a recording could not know it:\n" + "\n".join(left)
        )
    add_import_path(path.resolve().parent)
    return values, str(path)


def _given_values(task: Mapping[str, Any] | Task) -> Any:
    """Return a task as the plain values that `run.json` keeps, and that workers get.

    Raises:
        TaskError: something in it is no such value, or names code of the running script, which workers do not have.
    """
    try:
        values = json.loads(json.dumps(task.resolved() if isinstance(task, Task) else dict(task), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise TaskError(
            f"the task holds what a task file cannot ({error}); expected numbers, text, true, false, null, lists and "
            "mappings of these. Code is named as module:callable"
        ) from error
    if own := [name for name in named_in(values) if name.startswith("__main__:")]:
        raise TaskError(
            f"the task names `{own[0]}`, which is in the running script or notebook, where workers do not find it; "
            "expected a module that can be imported: write it into a file of its own"
        )
    return values


def add_import_path(path: Path) -> None:
    """Let modules next to the task file be imported."""
    if str(path) not in sys.path:
        sys.path.append(str(path))
