"""aitia (Greek: cause, responsibility): what caused a reinforcement-learning agent to misbehave.

Every command of the command line is a function here with the same name and arguments: `aitia.train`,
`aitia.evaluate`, `aitia.attribute`, `aitia.verify`, `aitia.report`, `aitia.run`, `aitia.demo`, `aitia.validate`,
`aitia.suite`, `aitia.compare`, `aitia.illustrate`, `aitia.check`. They are loaded when first used, so that
`import aitia` costs nothing.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
_COMMANDS = (
    "attribute", "check", "compare", "demo", "evaluate", "illustrate", "report", "run", "suite", "train", "validate",
    "verify",
)  # fmt: skip
__all__ = ["__version__", *_COMMANDS]


def __getattr__(name: str) -> Any:
    if name in _COMMANDS:
        from .workflows import commands

        return getattr(commands, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
