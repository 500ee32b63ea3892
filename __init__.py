"""aitia (Greek: cause, responsibility): what caused a reinforcement-learning agent to misbehave.

Every command of the command line is a function here with the same name and arguments: `aitia.train`,
`aitia.evaluate`, `aitia.attribute`, `aitia.verify`, `aitia.report`, `aitia.run`, `aitia.demo`, `aitia.validate`,
`aitia.suite`, `aitia.compare`, `aitia.illustrate`, `aitia.check`. `aitia.open` opens a run to read (docs/library.md);
`aitia.Recorder` and `aitia.LoopRecorder` record trainings of your own (docs/recording.md). All are loaded when first
used, so that `import aitia` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` gives, for editors and type checkers
    from .training.recording.loop import LoopRecorder
    from .training.recording.recorder import Recorder
    from .workflows.commands import (
        attribute,
        check,
        compare,
        demo,
        evaluate,
        illustrate,
        report,
        run,
        suite,
        train,
        validate,
        verify,
    )
    from .workflows.runs.run import open_run as open

__version__ = "0.1.0"
__all__ = [
    "LoopRecorder", "Recorder", "__version__", "attribute", "check", "compare", "demo", "evaluate", "illustrate",
    "open", "report", "run", "suite", "train", "validate", "verify",
]  # fmt: skip
_PLACES = {  # others are commands
    "open": ("workflows.runs.run", "open_run"),
    "Recorder": ("training.recording.recorder", "Recorder"),
    "LoopRecorder": ("training.recording.loop", "LoopRecorder"),
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        module, there = _PLACES.get(name, ("workflows.commands", name))
        return getattr(importlib.import_module(f".{module}", __name__), there)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
