"""Every error that aitia raises on purpose, on the lowest floor of the package.

::

    AitiaError                 something went wrong; exit code 1
    ├── InputError             what the user gave cannot be used; exit code 2
    │   ├── TaskError          the task file
    │   ├── EnvironmentError_  the environment or the content of its `info`
    │   └── RunFolderError     a run folder: another task's, a missing or damaged file
    ├── NonFiniteError         a gradient or a score is not finite
    ├── DiskFullError          a file could not be written: no space left
    └── ClusterError           Dask workers that were killed, or a scheduler that does not answer any more

Every message names the value, what was expected, and what to do.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable, Sequence

_MOST_PROBLEMS, _MOST_LETTERS = 10, 500
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlist = _SHORT.maxdict = 10


class AitiaError(Exception):
    """Base of all errors raised on purpose. The command line ends with exit code 1."""


class InputError(AitiaError):
    """What the user gave cannot be used. The command line ends with exit code 2."""


class TaskError(InputError):
    """The task file has an unknown key, a wrong value or a value that later work will support."""


class EnvironmentError_(InputError):
    """The environment cannot be made, or what it returns breaks the contract (`info` keys, rewards)."""


class RunFolderError(InputError):
    """The run folder belongs to another task, or one of its files is missing or damaged."""


class NonFiniteError(AitiaError):
    """A gradient, score or advantage is NaN or infinite; the message names window and row."""


class DiskFullError(AitiaError):
    """A file could not be written because no space is left, or the quota is used up; nothing of it remains."""


class ClusterError(AitiaError):
    """Dask lost what a piece needs: its workers were killed, or the scheduler does not answer any more."""


def shown(value: object) -> str:
    """Return a value as messages show it: the beginning of a long one."""
    return _SHORT.repr(value)


def listed(problems: Sequence[str], separator: str = "\n") -> str:
    """Return problems as messages list them: the first ones, and the beginning of long ones."""
    lines = [text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..." for text in problems[:_MOST_PROBLEMS]]
    more = len(problems) - len(lines)
    return separator.join([*lines, *([f"and {more:,} more"] if more else [])])


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `` Did you mean `x`?`` for the known name nearest to `name`, or an empty string."""
    close = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean `{close[0]}`?" if close else ""
