"""Opening and beginning runs: the folder, its task and its manifest, always in agreement."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..attribution.targets import user_target
from ..datasets.errors import EnvironmentError_, RunFolderError
from ..datasets.manifest import Manifest, installed_versions
from ..datasets.rewards import missing_file
from ..datasets.store import RunFolder
from ..training.agents import new_policy
from ..training.environments import probe
from .adopt import recorded_seeds, require_adoptable, require_scripts_fit
from .task import TEST_SET, Task, add_import_path, load_task, make_task

log = logging.getLogger("aitia")
NOT_REPEATABLE = (
    "The environment does not repeat itself when reset with the same seed: agents do not play the same test episodes. "
    "Seeds stay independent, so the tests hold; the differences between episodes are extra noise in every rate, and "
    "rates of single episodes mean little."
)


@dataclass(frozen=True)
class Run:
    """A run folder together with the task it belongs to."""

    folder: RunFolder
    task: Task
    manifest: Manifest

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall-clock seconds of the block to the stage's in `run.json`."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = self.manifest.seconds
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - began, 2)
            if self.folder.root.exists():
                self.manifest.write(self.folder)

    def require_trained(self) -> None:
        """Check that every seed's training is whole.

        Raises:
            RunFolderError: names the first file that is missing.
        """
        for seed in self.task.seeds:
            missing = self.folder.missing_files(seed)
            if missing:
                raise missing_file(missing[0])


def open_run(path: str | Path) -> Run:
    """Open a run folder.

    Raises:
        RunFolderError: it is not a run of this version.
    """
    folder = RunFolder.at(path)
    manifest = Manifest.read(folder)
    if manifest.task_folder is not None:
        add_import_path(Path(manifest.task_folder))
    return Run(folder, make_task(manifest.task, str(folder.manifest_path)), manifest)


def begin_run(task_path: str | Path, out: str | Path, edits: str | Path | None = None) -> Run:
    """Begin a run, or continue one of the same task and edits; checks all of them and environments before writing.

    A folder that a script's `Recorder` wrote is taken over: seeds that are there are not trained again.

    Raises:
        TaskError: the task file, or the target function that it names.
        InputError: the edits file.
        EnvironmentError_: an environment does not exist or breaks the contract.
        RunFolderError: the folder holds a run of another task, recordings that do not fit it, or something else.
    """
    task, folder = load_task(task_path, edits), RunFolder.at(out)
    if folder.manifest_path.exists():
        manifest = Manifest.read(folder)
        differences = task.differences(manifest.task)
        if differences:
            raise RunFolderError(
                f"{folder.root} holds a run of another task (`{manifest.task.get('name')}`): "
                + "; ".join(differences)
                + ". Give another --out, or the task file (and --edits) that the run was made with"
            )
        require_scripts_fit(folder, task)
        _warn_of_other_versions(manifest)
        manifest.task, manifest.hashes, manifest.seeds = task.resolved(), task.hashes(), task.seeds
    elif recorded_seeds(folder):
        require_adoptable(folder, task)
        manifest = Manifest(task.resolved(), task.hashes(), task.seeds)
    elif folder.root.exists() and (not folder.root.is_dir() or any(folder.root.iterdir())):
        raise RunFolderError(
            f"{folder.root} exists and is not a run folder (no run.json); expected a new or empty folder. "
            "Give another --out"
        )
    else:
        manifest = Manifest(task.resolved(), task.hashes(), task.seeds)
    user_target(task.target)
    require_environments(task)
    manifest.task_folder, manifest.task_file = str(Path(task_path).resolve().parent), Path(task_path).name
    manifest.write(folder)
    return Run(folder, task, manifest)


def _warn_of_other_versions(manifest: Manifest) -> None:
    """Say where a run goes on with other versions than it began with: results may differ in the last digits."""
    now = installed_versions()
    changed = [f"{name} {old} -> {now[name]}" for name, old in manifest.versions.items() if now.get(name, old) != old]
    if changed:
        log.warning("this run was begun with other versions: %s", ", ".join(changed))


def require_environments(task: Task) -> None:
    """Probe the training environment and every evaluation set.

    Raises:
        EnvironmentError_: one of them breaks the contract, or their spaces differ.
    """
    training = probe(task.training_env, task.agent.masked)
    new_policy(task.agent, task.training_env)
    if task.edits is not None:
        task.edits.require_told(training.keys, task.env)
    if task.group_by == "component" and "reward_components" not in training.keys:
        raise EnvironmentError_(
            f"group_by: component was given, but `{task.env}` tells no info['reward_components']: use context, cluster "
            "or transition"
        )
    if task.target == "labels" and "action_labels" not in probe(task.evaluation_env(TEST_SET), task.agent.masked).keys:
        raise EnvironmentError_(
            f"target: `labels` was given, but `{task.env}` tells no info['action_labels']: use `auto` or `log-odds`"
        )
    for name in (TEST_SET, *task.sets):
        found = probe(task.evaluation_env(name), task.agent.masked)
        if not found.repeats:
            log.warning("set `%s` of %s: %s", name, task.name, NOT_REPEATABLE)
        for kind in ("observation_space", "action_space"):
            given, expected = getattr(found, kind), getattr(training, kind)
            if given != expected:
                raise EnvironmentError_(
                    f"the evaluation set `{name}` has {kind} {given}, the training environment {expected}: "
                    "expected the same; check test_kwargs and sets"
                )
