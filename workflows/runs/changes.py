"""Has anything changed since a run was begun that its task does not say: source code, environments, versions?

A run is made in pieces that are never done again. Pieces of other code would be mixed with the earlier ones; so a
change is refused, or recorded where the user accepts it.
"""

from __future__ import annotations

import logging
import socket
import sys
from datetime import UTC, datetime

from ...attribution.effects.top import TOP_K
from ...attribution.gradients.kernel import LAMBDAS
from ...datasets.errors import RunFolderError
from ...datasets.manifest import Manifest, digest, installed_versions, source_git_sha
from ...datasets.schema import GROUP_NAMES, SCHEMA_VERSION
from ...training.environments.fingerprint import Fingerprint, replay_fingerprint, take_fingerprint
from ...training.environments.spec import EnvSpec
from .sources import changed_sources, hashes_of, packages_of
from .task import TEST_SET, Task

log = logging.getLogger("aitia")
_imported: dict[str, str] = {}  # of this process: modules imported for runs, with the hashes of their source then
TRAINING = "train"
_DECISIVE = ("aitia", "torch")  # a major or minor release of theirs may change what a run holds


def identify(task: Task, manifest: Manifest) -> None:
    """Write into a manifest what the run is made with: source hashes, and fingerprints of environments without one."""
    manifest.sources = hashes_of(task.resolved(), manifest.task_folder)
    manifest.versions |= packages_of(task.resolved(), manifest.task_folder)
    manifest.attribution = attribution_key(task, manifest.task_folder)
    for name, env in _environments(task).items():
        if name not in manifest.fingerprints:
            found = take_fingerprint(env, task.agent.masked)
            manifest.fingerprints[name] = None if found is None else found.as_json()
            if found is None:
                log.warning("%s: %s", task.name, no_fingerprint(name))


def attribution_key(task: Task, folder: str | None) -> str:
    """Return the digest of what all attributions of a run share: rows with another key are out of date.

    Args:
        task: of the run.
        folder: that of the task file; None: not known.
    """
    code = hashes_of(task.target, folder)
    named = [GROUP_NAMES] if task.group_by == "transition" else []
    return digest([task.target, task.seeds, task.group_by, LAMBDAS, TOP_K, *([code] if code else []), *named])[:16]


def no_fingerprint(name: str) -> str:
    """Say that an environment has no fingerprint, and what follows."""
    which = "The training environment" if name == TRAINING else f"The environment of the {name}"
    return (
        f"{which} does not repeat itself, not even with the same seed and actions: it has no fingerprint, and a later "
        "change of it can only be noticed by its source."
    )


def code_in_words(manifest: Manifest) -> list[str]:
    """Say with what code a run was computed: the user's modules, changes that were accepted, environments unknown."""
    modules = [f"`{name}` ({source[:12]})" for name, source in sorted((manifest.sources or {}).items())]
    said = [f"Computed with these modules (the beginning of their SHA-256): {', '.join(modules)}."] if modules else []
    if manifest.sources is None:
        said.append("By which code the run was computed was not recorded by the version of aitia that began it.")
    for each in manifest.accepted:
        changes = "; ".join(map(str, each.get("changes", [])))
        said.append(f"Changed while the run was made, and accepted on {each.get('when')}: {changes}.")
    return said + [no_fingerprint(name) for name, found in manifest.fingerprints.items() if found is None]


def require_unchanged(task: Task, manifest: Manifest, accept: bool = False) -> bool:
    """Check that a run goes on with the code that it was begun with; return whether the manifest was changed.

    Args:
        task: the task, whose modules can be imported.
        manifest: of the run; accepted changes are written into it.
        accept: go on in spite of changes.

    Raises:
        RunFolderError: names every change, and what can be done.
    """
    _warn_of_other_versions(manifest)
    changes = [
        *_changed_versions(task, manifest),
        *_changed_sources(task, manifest),
        *_changed_environments(task, manifest),
    ]
    if not changes:
        return False
    if not accept and manifest.schema_version < SCHEMA_VERSION:
        raise RunFolderError(
            f"the run `{manifest.task.get('name')}` was made by an earlier version of aitia ({'; '.join(changes)}). It "
            "can be read as it is (`aitia report`, `aitia compare`); to compute in it with this version, which cannot "
            "tell whether its code has changed since, give --accept-changes"
        )
    if not accept:
        raise RunFolderError(
            f"the run `{manifest.task.get('name')}` was begun with other code: {'; '.join(changes)}. Its finished "
            "pieces would be mixed with new ones. Bring back what it was begun with, or begin a new run (another "
            "--out); where the change makes no difference to the results, give --accept-changes, which keeps a record "
            "of it in run.json and on the pages"
        )
    log.warning("%s: accepted changes: %s", task.name, "; ".join(changes))
    when = datetime.now(UTC).isoformat(timespec="seconds")
    manifest.accepted.append({"when": when, "changes": changes})
    manifest.versions, manifest.git_sha = dict(installed_versions()), source_git_sha()
    manifest.schema_version, manifest.fingerprints = SCHEMA_VERSION, {}
    identify(task, manifest)
    return True


def _environments(task: Task) -> dict[str, EnvSpec]:
    sets = {name: task.evaluation_env(name) for name in (TEST_SET, *task.sets)}
    return {TRAINING: task.training_env, **{f"set {name}": env for name, env in sets.items()}}


def _changed_versions(task: Task, manifest: Manifest) -> list[str]:
    known, now, named = manifest.versions, installed_versions(), packages_of(task.resolved(), manifest.task_folder)
    changed = [
        f"{name} {known[name]} then, {now[name]} now"
        for name in _DECISIVE
        if name in known and _release(known[name]) != _release(now[name])
    ]
    changed += [f"{name} {known[name]} then, {new} now" for name, new in named.items() if known.get(name, new) != new]
    if manifest.schema_version != SCHEMA_VERSION:
        changed.append(f"run folders of version {manifest.schema_version} then, {SCHEMA_VERSION} now")
    return changed


def _release(version: str) -> list[str]:
    """Return major and minor of a version."""
    return version.partition("+")[0].split(".")[:2]


def _changed_sources(task: Task, manifest: Manifest) -> list[str]:
    if manifest.sources is None:  # of an earlier version, whose schema is another one
        return []
    return changed_sources(manifest.sources, hashes_of(task.resolved(), manifest.task_folder))


def _changed_environments(task: Task, manifest: Manifest) -> list[str]:
    changed = []
    for name, env in _environments(task).items():
        if (kept := manifest.fingerprints.get(name)) is None:
            continue
        known = Fingerprint.of_json(kept)
        now = replay_fingerprint(env, known, task.agent.masked)
        changed += [f"environment ({name}): {words}" for words in known.differences(now)]
    return changed


def _warn_of_other_versions(manifest: Manifest) -> None:
    """Say where a run goes on with other versions than it began with: results may differ in the last digits."""
    now = installed_versions()
    changed = [f"{name} {old} -> {now[name]}" for name, old in manifest.versions.items() if now.get(name, old) != old]
    if changed:
        log.warning("this run was begun with other versions: %s", ", ".join(changed))


def require_current_modules(manifest: Manifest) -> None:
    """Check that a worker that outlives commands has not imported a module of the run before its source changed.

    Raises:
        RunFolderError: it has; Python would go on with the old one.
    """
    old = [name for name, source in (manifest.sources or {}).items() if _imported.get(name, source) != source]
    if old:
        raise RunFolderError(
            f"a process on {socket.gethostname()} that computes has imported {', '.join(old)} before the source "
            "changed, or another module of that name for another task, and would go on with what it has. Restart the "
            "workers of the cluster (of --workers 0: this Python); finished pieces are kept"
        )


def remember_modules(manifest: Manifest) -> None:
    """Remember which modules of a run this process has imported by now."""
    _imported.update({name: source for name, source in (manifest.sources or {}).items() if name in sys.modules})
