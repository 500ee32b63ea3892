"""pygame: an environment that imports it makes neither the command nor its workers print about it."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh import fresh_python
from small_task import SMALL_TASK

from aitia.workflows.workers.processes import silence_pygame

ENVIRONMENT = """
import pygame
from aitia.training.worlds.maze import ArrowMazeEnv

print("imported here", flush=True)
"""


@pytest.mark.slow
def test_pygame_prints_nothing_in_the_command_and_in_its_workers(
    tmp_path: Path, write_task: Callable[..., Path]
) -> None:
    (tmp_path / "with_pygame.py").write_text(ENVIRONMENT)
    agent = {**SMALL_TASK["agent"], "total_timesteps": 512}
    task = write_task(env="with_pygame:ArrowMazeEnv", seeds=2, agent=agent)
    done = fresh_python(
        "-m", "aitia", "train", task, "--out", tmp_path / "run", "--workers", 1, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    said = done.told.replace(str(tmp_path), "")
    assert done.code == 0, said
    assert said.count("imported here") == 2, "in the command's process and in its worker, or the test is empty"
    assert "pygame" not in said.replace("with_pygame", "")


@pytest.mark.parametrize("category", [UserWarning, DeprecationWarning])
def test_its_deprecation_warning_is_silent_and_that_of_others_is_not(category: type[Warning]) -> None:
    message = "pkg_resources is deprecated as an API. See https://setuptools.pypa.io/en/latest/pkg_resources.html"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        silence_pygame()
        warnings.warn_explicit(message, category, "pygame/pkgdata.py", 25, module="pygame.pkgdata")
        warnings.warn_explicit(message, category, "mine.py", 1, module="mine")
    assert [each.filename for each in seen] == ["mine.py"]
