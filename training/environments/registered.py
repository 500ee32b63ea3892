"""What importing a module registers with Gymnasium, determined in a process of its own that runs this file.

So it imports nothing of aitia: that would take longer than the answer.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym

_LONGEST_IMPORT = 60.0  # seconds
_ASKED = "AITIA_ASKED_WHAT_A_MODULE_REGISTERS"  # set in that process


def module_of(entry_point: Any) -> str:
    """Return the module of what makes an environment; an empty text: not known."""
    if isinstance(entry_point, str):
        return entry_point.partition(":")[0]
    return str(getattr(entry_point, "__module__", ""))


def maker(entry_point: Any) -> str:
    """Return what makes an environment as `module:name`."""
    if isinstance(entry_point, str):
        return entry_point
    return f"{module_of(entry_point)}:{getattr(entry_point, '__qualname__', type(entry_point).__qualname__)}"


@lru_cache(maxsize=64)
def registers(module: str, name: str) -> bool:
    """Return whether importing a module registers a Gymnasium id as this process has it: maker, arguments, limit.

    False where the module cannot be imported within a minute.
    """
    if name not in gym.registry or not sys.executable:
        return False
    if _ASKED in os.environ:  # importing the module records: it would ask again, and so on
        return False
    path = os.pathsep.join(str(Path(folder).absolute()) for folder in sys.path)
    try:
        asked = subprocess.run(
            [sys.executable, "-P", "-W", "ignore", __file__, module, name], stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": path, _ASKED: "1"}, capture_output=True, timeout=_LONGEST_IMPORT,
            check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return False
    return asked.stdout.splitlines()[-1:] == [_registered(name).encode()]


def _registered(name: str) -> str:
    """Return how an id is registered, as one line."""
    spec = gym.registry[name]
    wrappers = [wrapper.entry_point for wrapper in spec.additional_wrappers]
    return json.dumps([maker(spec.entry_point), spec.kwargs, spec.max_episode_steps, wrappers], default=repr)


if __name__ == "__main__":
    importlib.import_module(sys.argv[1])
    print(f"\n{_registered(sys.argv[2])}")  # what the module prints itself stands above
