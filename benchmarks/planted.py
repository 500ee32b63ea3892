"""Does attribution find the planted cause? Estimators and baselines on settings whose cause is known.

A setting is a training in which some levels' wrong rewards cause the failure and other levels' wrong rewards do no harm
(benchmarks/planted.yaml). Recordings that are missing are made first, in OUT, and used again. Prints a table; the last
line is one JSON object. AUC: 1 ranks every causal level before every harmless wrong one, .5 is chance. docs/influence.md.

    python -m benchmarks.planted [--out DIR] [--only NAME ...]
    python -m benchmarks.planted --run runs/arrow-maze-outer
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pydantic import BaseModel, ConfigDict, Field

import aitia
from aitia.datasets.errors import InputError
from aitia.datasets.files.store import RunFolder
from aitia.datasets.manifest import Manifest
from aitia.workflows.runs.task import Task, make_task

SETTINGS = Path(__file__).with_suffix(".yaml")
REST: dict[str, Any] = {"seeds": 5, "evaluation": {"episodes": 24, "repeats": 4}}
CAUSES = {"bug": "aitia.training.worlds.maze:causal_levels", "moved": "aitia.benchmarks.grids:moved_levels"}


class _Model(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class Family(_Model):
    """What the settings of a world share."""

    env: str
    outcomes: dict[str, list[str]]
    test: dict[str, Any] = Field(default_factory=dict)
    steps: int = 40_960


class Setting(_Model):
    """A training with planted wrong rewards.

    Attributes:
        name: its world's, and what is planted.
        half: what it may be used for, see the settings' file.
        train, test: arguments of the environments.
        causes: which levels cause the failure.
    """

    name: str
    half: Literal["open", "held-out", "sign", "control"]
    train: dict[str, Any]
    test: dict[str, Any] = Field(default_factory=dict)
    causes: Literal["bug", "moved"] = "bug"

    def task(self) -> Task:
        """Return its task."""
        worlds = _read()["worlds"]
        family = Family.model_validate(worlds[max((name for name in worlds if self.name.startswith(name)), key=len)])
        test = {"levels": 500, "moved": 500, "level_seed": 1, **family.test, **self.test}
        values = {
            "name": self.name, "env": family.env, "outcomes": family.outcomes, "train_kwargs": self.train,
            "test_kwargs": test, "agent": {"total_timesteps": family.steps}, "causes": CAUSES[self.causes], **REST,
        }  # fmt: skip
        return make_task(values, f"setting {self.name}")


@lru_cache(maxsize=1)
def _read() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    return values


def settings(names: Sequence[str] = ()) -> list[Setting]:
    """Return settings by name; all of them where none is named."""
    known = {row["name"]: Setting.model_validate(row) for row in _read()["settings"]}
    for name in names:
        if name not in known:
            raise InputError(f"--only {name} was given, expected one of {', '.join(known)}")
    return [setting for name, setting in known.items() if not names or name in names]


def record(setting: Setting, out: Path) -> Path:
    """Return the run folder of a setting, trained and played; one of another task is made again."""
    task, root = setting.task(), out / setting.name
    folder = RunFolder.at(root)
    if folder.manifest_path.exists() and task.differences(Manifest.read(folder).task):
        shutil.rmtree(root)
    aitia.train(task, root, workers=0, accept_changes=True)
    aitia.evaluate(root, workers=0, accept_changes=True)
    return root


def main() -> None:
    """Record, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/planted"), help="where recordings are kept")
    parser.add_argument("--only", nargs="*", default=(), help="settings; none: all")
    parser.add_argument("--run", type=Path, help="one run whose task declares `causes`, instead")
    given = parser.parse_args()
    for setting in settings(given.only):
        root = record(setting, given.out)
        print(setting.name, aitia.open(root)["test"].failures.num_rows, flush=True)


if __name__ == "__main__":
    main()
