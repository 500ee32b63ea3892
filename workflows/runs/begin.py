"""Beginning a run, and opening one to compute in it: folder, task and manifest agree, and nobody else is at work."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ...attribution.targets.steps import user_target
from ...datasets.errors import EnvironmentError_, InputError, RunFolderError
from ...datasets.files.lock import locked
from ...datasets.files.remote import remove_folder
from ...datasets.files.store import FINAL, RunFolder
from ...datasets.manifest import Manifest
from ...training.agents.spec import new_policy
from ...training.environments.spec import EnvProfile, EnvSpec, probe
from .adopt import recorded_seeds, require_adoptable, require_scripts_fit
from .changes import identify, require_unchanged
from .recorded import TRAINING, record_environments
from .run import Run, open_for_computing
from .task import TEST_SET, Task
from .task_source import TaskSource, load_task, place_of
from .trust import remember, require_no_links_outside

log = logging.getLogger("aitia")
NOT_REPEATABLE = (
    "The environment does not repeat itself when reset with the same seed: agents do not play the same test episodes. "
    "Seeds stay independent, so the tests hold; the differences between episodes are extra noise in every rate, and "
    "rates of single episodes mean little."
)


@contextmanager
def apart() -> Iterator[None]:
    """Compute whatever the caller has set in torch, and leave its random state and defaults as they were."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


@contextmanager
def computing(path: str | Path, command: str, accept_changes: bool = False, trust: bool = False) -> Iterator[Run]:
    """Open a run to compute in it: nobody else does in the block, and its code is what it was made with.

    Args:
        path: the run folder.
        command: what is done, for others who want to.
        accept_changes: go on where code or versions changed; `run.json` keeps what did.
        trust: see `open_for_computing`.

    Raises:
        RunFolderError: it is no run folder, another command is at work in it, or its code changed.
        InputError: see `open_for_computing`.
    """
    folder = open_for_computing(path, trust).folder  # first: nothing is written into what is no run of this user's
    with locked(folder, command), apart():
        run = open_for_computing(path, trust)
        if require_unchanged(run.task, run.manifest, accept_changes):
            run.manifest.write(folder)
        yield run


@contextmanager
def beginning(
    source: TaskSource, out: str | Path, command: str, edits: str | Path | None = None, accept_changes: bool = False
) -> Iterator[Run]:
    """Begin or continue a run (see `begin_run`) in which nobody else computes in the block.

    What the block began is removed where its input is bad and nothing was finished.

    Raises:
        RunFolderError: another command is at work in it.
    """
    folder = RunFolder.at(out)
    require_no_links_outside(folder)  # a lock would be written through them
    _require_room(folder)  # nor is one left in what is no run folder
    with locked(folder, command), apart():
        new = not folder.manifest_path.exists() and not recorded_seeds(folder)
        try:
            yield begin_run(source, out, edits, accept_changes)
        except InputError:
            if new and not any(folder.root.glob(f"checkpoints/seed=*/{FINAL}")):
                remove_folder(folder.root)  # nothing is finished
            raise


def begin_run(
    source: TaskSource, out: str | Path, edits: str | Path | None = None, accept_changes: bool = False
) -> Run:
    """Begin a run, or continue one of the same task and edits; checks all of them and environments before writing.

    A folder that a script's `Recorder` wrote is taken over: seeds that are there are not trained again. Of a task that
    is no file, modules come from the import path, and so they do for later commands on the run.

    Raises:
        TaskError: the task file, or the target function that it names.
        InputError: the edits file.
        EnvironmentError_: an environment does not exist or breaks the contract.
        RunFolderError: the folder holds a run of another task, recordings that do not fit it, or something else; or the
            code changed since the run was begun, and `accept_changes` was not given.
    """
    task, folder = load_task(source, edits), RunFolder.at(out)
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
        manifest.task, manifest.hashes, manifest.seeds = task.resolved(), task.hashes(), task.seeds
    elif recorded_seeds(folder):
        require_adoptable(folder, task)
        manifest = Manifest(task.resolved(), task.hashes(), task.seeds)
    else:
        _require_room(folder)
        manifest = Manifest(task.resolved(), task.hashes(), task.seeds)
    manifest.task_folder, manifest.task_file = place_of(source)
    if folder.manifest_path.exists():
        require_unchanged(task, manifest, accept_changes)
    user_target(task.target)
    record_environments(manifest, task, require_environments(task))
    identify(task, manifest)
    manifest.write(folder)
    remember(folder, manifest)
    return Run(folder, task, manifest)


def _require_room(folder: RunFolder) -> None:
    """Check that a folder is a run, recordings, new, or empty but for the lock that this command holds.

    Raises:
        RunFolderError: it is something else.
    """
    if not folder.root.exists() or folder.manifest_path.exists() or recorded_seeds(folder):
        return
    ours = {folder.parts_folder(), folder.parts_folder("lock"), folder.parts_folder("lock.json")}
    if not folder.root.is_dir() or any(path not in ours for path in folder.root.rglob("*")):
        raise RunFolderError(
            f"{folder.root} exists and is not a run folder (no run.json); expected a new or empty folder. "
            "Give another --out"
        )


def require_environments(task: Task) -> dict[str, EnvProfile]:
    """Probe the training environment and every evaluation set, equal ones once.

    Returns:
        What probes measured of the training environment (`TRAINING`), and of each set, by its name.

    Raises:
        EnvironmentError_: one of them breaks the contract, or their spaces differ.
    """
    known: dict[str, EnvProfile] = {}

    def probed(env: EnvSpec) -> EnvProfile:
        key = repr(env)
        known[key] = known.get(key) or probe(env, task.agent.masked)
        return known[key]

    training = probed(task.training_env)
    profiles = {TRAINING: training}
    new_policy(task.agent, task.training_env)
    if task.edits is not None:
        task.edits.require_told(training.keys, task.env)
    if task.group_by == "component" and "reward_components" not in training.keys:
        raise EnvironmentError_(
            f"group_by: component was given, but `{task.env}` tells no info['reward_components']: use context, cluster "
            "or transition"
        )
    if task.target == "labels" and "action_labels" not in probed(task.evaluation_env(TEST_SET)).keys:
        raise EnvironmentError_(
            f"target: `labels` was given, but `{task.env}` tells no info['action_labels']: use `auto` or `log-odds`"
        )
    for name in (TEST_SET, *task.sets):
        profile = profiles[name] = probed(task.evaluation_env(name))
        if not profile.repeats:
            log.warning("set `%s` of %s: %s", name, task.name, NOT_REPEATABLE)
        for kind in ("observation_space", "action_space"):
            actual, expected = getattr(profile, kind), getattr(training, kind)
            if actual != expected:
                raise EnvironmentError_(
                    f"the evaluation set `{name}` has {kind} {actual}, the training environment {expected}: "
                    "expected the same; check test_kwargs and sets"
                )
    return profiles
