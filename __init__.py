"""aitia (Greek: cause, responsibility): what caused a reinforcement-learning agent to misbehave.

Every command of the command line is a function here with the same name and arguments: `aitia.train`,
`aitia.evaluate`, `aitia.attribute`, `aitia.verify`, `aitia.report`, `aitia.run`, `aitia.demo`, `aitia.validate`,
`aitia.suite`, `aitia.compare`, `aitia.illustrate`, `aitia.check`. `aitia.Recorder` and `aitia.LoopRecorder` record
trainings of your own (docs/recording.md). They are loaded when first used, so that `import aitia` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"
_COMMANDS = (
    "attribute", "check", "compare", "demo", "evaluate", "illustrate", "report", "run", "suite", "train", "validate",
    "verify",
)  # fmt: skip
_PLACES = {name: ("workflows.commands", name) for name in _COMMANDS} | {
    "Recorder": ("training.recording.recorder", "Recorder"),
    "LoopRecorder": ("training.recording.loop", "LoopRecorder"),
}
__all__ = ["__version__", *_PLACES]


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, there = _PLACES[name]
        return getattr(importlib.import_module(f".{module}", __name__), there)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
