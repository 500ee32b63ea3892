"""Training again leaves nothing stale, and a run goes on only with the code it was begun with."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from filelock import FileLock

from aitia.datasets.errors import InputError, RunFolderError
from aitia.datasets.files import lock
from aitia.datasets.files.store import RunFolder, read_json, write_json
from aitia.datasets.manifest import Manifest
from aitia.datasets.rewards import reward_summary
from aitia.training.environments import fingerprint
from aitia.training.environments import spec as environments
from aitia.training.environments.spec import EnvSpec
from aitia.workflows import commands
from aitia.workflows.runs import changes, sources
from aitia.workflows.runs.begin import begin_run, beginning
from aitia.workflows.runs.groups import clusters_path
from aitia.workflows.runs.task import Task
from aitia.workflows.runs.task_source import load_task
from aitia.workflows.stages import attribute
from aitia.workflows.workers.cluster import DaskWorkers
from aitia.workflows.workers.pool import run_piece

ENVIRONMENT = """
from toy_environments import Bonus
import {helper}

class Mine(Bonus):
    def __init__(self):
        super().__init__(cells=7, length=6, limit=12)

    def reset(self, *, seed=None, options=None):
        observation, info = super().reset(seed=seed, options=options)
        self.start = "{name}" + str(self.cell)
        return observation, info

    def step(self, action):
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {{**info, "context": self.start,
                "intended_reward": info["intended_reward"] + {helper}.ERROR}}
"""
TARGET = "def target(log_probs, steps):\n    return {sign}log_probs.sum()\n"
PLACE = "my_rooms"


class Workbench:
    """A task with modules of its own, and commands that compute in this process, each with its modules read anew."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run, self.task = folder, folder / "run", folder / "task.yaml"
        self.write()

    def write(self, error: float = 1.0, name: str = "cell-", sign: str = "", **task: Any) -> None:
        (self.folder / f"{PLACE}_amount.py").write_text(f"ERROR = {error}\n")
        (self.folder / f"{PLACE}.py").write_text(ENVIRONMENT.format(helper=f"{PLACE}_amount", name=name))
        (self.folder / f"{PLACE}_target.py").write_text(TARGET.format(sign=sign))
        values = {
            "name": "mine", "env": f"{PLACE}:Mine", "outcomes": {"desired": ["goal"], "misbehaved": ["pit"]},
            "target": f"{PLACE}_target:target",
            "agent": {
                "total_timesteps": 256, "n_envs": 2,
                "hyperparameters": {"n_steps": 64, "batch_size": 64, "n_epochs": 2, "policy_kwargs": {"net_arch": [8]}},
            },
            "seeds": 2, "evaluation": {"episodes": 6, "repeats": 2}, "verify": {"seeds": 2, "points": 1}, **task,
        }  # fmt: skip
        self.task.write_text(yaml.safe_dump(values))
        for module in (f"{PLACE}_amount", PLACE, f"{PLACE}_target"):
            sys.modules.pop(module, None)
        environments._describe.cache_clear()

    def all(self, **options: Any) -> None:
        commands.train(self.task, self.run, **options)
        commands.evaluate(self.run)
        commands.attribute(self.run)

    def lose_training(self) -> None:
        for seed in (0, 1):
            RunFolder(self.run).final_path(seed).unlink()

    def error(self) -> float:
        """Sum of |dr| in the transitions of seed 0."""
        tables = [pq.read_table(path) for path in sorted((self.run / "transitions/seed=0").iterdir())]
        return float(sum(np.abs(t["intended_reward"].to_numpy() - t["reward"].to_numpy()).sum() for t in tables))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workbench:
    monkeypatch.setattr(DaskWorkers, "map", lambda self, function, pieces, label: [function(piece) for piece in pieces])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(changes, "_imported", {})
    return Workbench(tmp_path)


def test_training_again_leaves_no_sums_clusters_bank_or_policies_of_before(bench: Workbench) -> None:
    bench.all()
    folder = RunFolder(bench.run)
    kept = [
        folder.parts_folder("policies"),
        folder.parts_folder("bank"),
        folder.parts_folder("validation"),
        folder.root / "bank",
        folder.root / "validation",
    ]
    for stale in kept:
        stale.mkdir(parents=True)
        (stale / "seed=0-stale.safetensors").write_text("stale")
    clusters_path(folder).parent.mkdir()
    clusters_path(folder).write_text("stale")
    before = bench.error()
    bench.lose_training()
    bench.write(error=20.0, name="room-")  # every context has another name
    bench.all(accept_changes=True)
    after = bench.error()
    assert after > 5 * before
    summed = sum(reward_summary(folder, 0)["error"].to_pylist())
    assert summed == pytest.approx(after), "what training paid is summed from the first training, not from this one"
    assert not any(path.exists() for path in (*kept, clusters_path(folder)))
    groups = pq.read_table(bench.run / "influence/test/groups.parquet")["group"].unique().to_pylist()
    assert groups and all(group.startswith("room-") for group in groups)


def test_a_new_seed_keeps_what_was_derived_from_the_others(bench: Workbench) -> None:
    bench.all()
    policy = RunFolder(bench.run).parts_folder("policies") / "seed=0-kept.safetensors"
    policy.parent.mkdir()
    policy.write_text("kept")
    bench.write(seeds=3)
    commands.train(bench.task, bench.run)
    assert policy.exists()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"error": 20.0}, [f"the source of module `{PLACE}_amount` changed", "environment (train): infos, from"]),
        ({"name": "room-"}, [f"the source of module `{PLACE}` changed"]),
        ({"sign": "-"}, [f"the source of module `{PLACE}_target` changed"]),
    ],
)
def test_a_run_is_not_continued_with_other_code(bench: Workbench, changed: dict[str, Any], said: list[str]) -> None:
    commands.train(bench.task, bench.run)
    before = {path: path.read_bytes() for path in bench.run.rglob("*") if path.is_file()}
    bench.write(**changed, seeds=3)
    again: list[Callable[[], object]] = [
        lambda: commands.train(bench.task, bench.run),
        lambda: commands.evaluate(bench.run),
    ]
    for command in again:
        with pytest.raises(RunFolderError) as refused:
            command()
        assert all(words in str(refused.value) for words in (*said, "--accept-changes"))
    assert {path: path.read_bytes() for path in bench.run.rglob("*") if path.is_file()} == before
    commands.evaluate(bench.run, accept_changes=True)
    kept = Manifest.read(RunFolder(bench.run)).accepted
    assert len(kept) == 1 and set(said[:1]) <= set(kept[0]["changes"])
    commands.evaluate(bench.run)  # once accepted, it is what the run is made with


def test_a_changed_target_is_attributed_anew_once_it_is_accepted(bench: Workbench) -> None:
    bench.all()
    effects = bench.run / "influence/test/groups.parquet"
    before = pq.read_table(effects)["effect"].to_numpy()
    assert np.abs(before).max() > 0
    bench.write(sign="-")
    commands.attribute(bench.run, accept_changes=True)
    np.testing.assert_array_equal(pq.read_table(effects)["effect"].to_numpy(), -before)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"versions": {"aitia": "0.1.0", "torch": "1.4.7"}}, "torch 1.4.7 then, "),
        ({"versions": {"aitia": "7.1.0", "torch": "2.13.0"}}, "aitia 7.1.0 then, "),
        ({"schema_version": 1}, "earlier version of aitia .*run folders of version 1 then, 2 now.*--accept-changes"),
    ],
)
def test_versions_are_compared_by_major_and_minor(bench: Workbench, change: dict[str, Any], said: str) -> None:
    commands.train(bench.task, bench.run)
    path = RunFolder(bench.run).manifest_path
    values = read_json(path)
    torch = values["versions"]["torch"]
    write_json(path, {**values, "versions": {**values["versions"], "torch": torch.partition("+")[0] + ".post1"}})
    commands.evaluate(bench.run)  # a post-release is the same minor release
    write_json(path, {**read_json(path), **change})
    with pytest.raises(RunFolderError, match=said):
        commands.evaluate(bench.run)


def test_a_run_of_the_first_version_is_read(bench: Workbench) -> None:
    commands.train(bench.task, bench.run)
    path = RunFolder(bench.run).manifest_path
    values = {
        key: value for key, value in read_json(path).items() if key not in ("sources", "fingerprints", "accepted")
    }
    write_json(path, {**values, "schema_version": 1})
    assert Manifest.read(RunFolder(bench.run)).sources is None
    write_json(path, {**values, "schema_version": 3})
    with pytest.raises(RunFolderError, match="reads 1 to 2"):
        Manifest.read(RunFolder(bench.run))


def test_an_environment_is_recognised_and_one_that_does_not_repeat_itself_gets_no_fingerprint() -> None:
    corridor = EnvSpec("toy_environments:Corridor")
    first = fingerprint.take_fingerprint(corridor)
    assert first is not None and first.steps > 16 and "t" in first.ends
    assert fingerprint.Fingerprint.of_json(json.loads(json.dumps(first.as_json()))) == first
    assert first.differences(fingerprint.replay_fingerprint(corridor, first)) == []
    paid = EnvSpec("toy_environments:Corridor", {"step_reward": 0.5})
    (words,) = [w for w in first.differences(fingerprint.replay_fingerprint(paid, first)) if "rewards" in w]
    assert words == "rewards, from step 0 on: 0 when the run began, 0.5 now"
    assert fingerprint.take_fingerprint(EnvSpec("toy_environments:Unseeded")) is None


def test_what_the_user_did_not_write_is_known_by_its_version(bench: Workbench, tmp_path: Path) -> None:
    task = load_task(bench.task)
    found = sources.hashes_of(task.resolved(), tmp_path)
    mine = {PLACE, f"{PLACE}_amount", f"{PLACE}_target", "toy_environments"}
    assert set(found) == mine, "numpy, gymnasium, the standard library and aitia are installed packages"
    assert set(sources.hashes_of(task.target, tmp_path)) == {f"{PLACE}_target"}


def test_relative_imports_and_packages_are_followed_without_importing(tmp_path: Path, bench: Workbench) -> None:
    package = tmp_path / "deep_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (package / "inner/__init__.py").write_text("from ..other import x\n")
    (package / "inner/env.py").write_text("from . import sibling\n")
    (package / "inner/sibling.py").write_text("")
    (package / "other.py").write_text("x = 1\n")
    bench.write(env="deep_package.inner.env:Env", target="auto")
    found = set(sources.hashes_of(load_task(bench.task).resolved(), tmp_path))
    assert found == {f"deep_package{part}" for part in ("", ".inner", ".inner.env", ".inner.sibling", ".other")}
    assert "deep_package" not in sys.modules


def test_a_manifest_that_another_command_wrote_meanwhile_is_left_alone(bench: Workbench) -> None:
    run = begin_run(bench.task, bench.run)
    other = Manifest.read(run.folder)
    other.seconds["train"] = 7.0
    other.write(run.folder)
    with pytest.raises(RunFolderError, match="changed by another command"), run.timed("evaluate"):
        pass
    assert Manifest.read(run.folder).seconds == {"train": 7.0}


def test_two_commands_at_once_are_refused_by_the_name_of_the_first(bench: Workbench, tmp_path: Path) -> None:
    commands.train(bench.task, bench.run)

    def meanwhile(call: Callable[[], object]) -> None:
        with pytest.raises(RunFolderError, match=r"in use by `aitia evaluate` \(process \d+ on .*two commands at once"):
            call()

    def during(self: DaskWorkers, function: Any, pieces: Any, label: str) -> list[Any]:
        meanwhile(lambda: commands.train(bench.task, bench.run))
        meanwhile(lambda: commands.attribute(bench.run))
        return [function(piece) for piece in pieces]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DaskWorkers, "map", during)
        commands.evaluate(bench.run)
    commands.attribute(bench.run)
    with pytest.raises(RunFolderError, match="is not a run folder"):
        commands.evaluate(tmp_path / "no_run")
    assert not (tmp_path / "no_run").exists()


def test_a_script_that_records_is_not_removed_by_a_training(bench: Workbench) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback, CallbackList

    from aitia.training.recording.recorder import Recorder

    commands.train(bench.task, bench.run)
    shutil.rmtree(bench.run / "checkpoints/seed=1")
    refused: list[str] = []

    class Meanwhile(BaseCallback):
        def _on_step(self) -> bool:
            if not refused:
                with pytest.raises(RunFolderError, match="a script is recording seed 1") as error:
                    commands.train(bench.task, bench.run)
                refused.append(str(error.value))
            return True

    spec = EnvSpec(f"{PLACE}:Mine")
    recorder = Recorder(bench.run, seed=1)
    model = PPO("MlpPolicy", spec.make(), n_steps=64, batch_size=64, n_epochs=1)
    model.learn(64, callback=CallbackList([recorder, Meanwhile()]))
    assert refused and recorder.published


def test_state_clusters_are_fitted_once_and_by_no_worker(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    from aitia.workflows.runs import groups

    bench.write(group_by="cluster")
    at_work, fits = [False], list[bool]()
    original, fit = DaskWorkers.map, groups._fit

    def mapped(self: DaskWorkers, function: Any, pieces: Any, label: str) -> list[Any]:
        at_work[0] = True
        try:
            return original(self, function, pieces, label)
        finally:
            at_work[0] = False

    monkeypatch.setattr(DaskWorkers, "map", mapped)

    def counted(folder: RunFolder, task: Task) -> None:
        fits.append(at_work[0])
        fit(folder, task)

    monkeypatch.setattr(groups, "_fit", counted)
    commands.train(bench.task, bench.run)
    clusters_path(RunFolder(bench.run)).unlink()  # as an earlier version left it
    shutil.rmtree(RunFolder(bench.run).parts_folder("reward_sums"), ignore_errors=True)
    commands.evaluate(bench.run)
    commands.attribute(bench.run)
    assert fits == [False, False], "workers that fit clusters race with each other"


def test_too_many_groups_are_refused_before_any_window_is_computed(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.train(bench.task, bench.run)
    commands.evaluate(bench.run)
    monkeypatch.setattr(attribute, "_MOST_SUMS", 1)
    monkeypatch.setattr(attribute, "_attribute_window", lambda piece: pytest.fail("a window was computed first"))
    with pytest.raises(InputError, match="expected at most 1"):
        commands.attribute(bench.run)


def test_changes_are_compared_for_every_set(bench: Workbench) -> None:
    bench.write(sets={"again": {}})
    run = begin_run(bench.task, bench.run)
    assert set(run.manifest.fingerprints) == {changes.TRAINING, "set test", "set again"}
    assert all(run.manifest.fingerprints.values())


def test_a_worker_that_outlives_commands_does_not_go_on_with_modules_of_before(bench: Workbench) -> None:
    commands.train(bench.task, bench.run)
    manifest = Manifest.read(RunFolder(bench.run))
    changes.remember_modules(manifest)  # what a worker of --scheduler does after a piece
    changes.require_current_modules(manifest)
    bench.write(name="room-")
    commands.evaluate(bench.run, accept_changes=True)
    with pytest.raises(RunFolderError, match=f"imported {PLACE} before the source changed.*Restart the workers"):
        changes.require_current_modules(Manifest.read(RunFolder(bench.run)))


def test_a_piece_that_failed_has_imported_its_modules_too(bench: Workbench) -> None:
    commands.train(bench.task, bench.run)

    @dataclass(frozen=True)
    class Piece:
        root: Path

    def fail(piece: Piece) -> None:
        EnvSpec(f"{PLACE}:Mine").make()
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run_piece(fail, Piece(bench.run))
    bench.write(name="room-")
    commands.evaluate(bench.run, accept_changes=True)
    with pytest.raises(RunFolderError, match="Restart the workers"):
        run_piece(fail, Piece(bench.run))


def test_a_command_that_came_too_late_leaves_the_run_of_the_first_alone(bench: Workbench) -> None:
    with (
        beginning(bench.task, bench.run, "aitia train"),
        pytest.raises(RunFolderError, match="in use by `aitia train`"),
    ):
        commands.train(bench.task, bench.run)
    assert RunFolder(bench.run).manifest_path.exists()
    bench.write(env=f"{PLACE}:Nowhere")
    with pytest.raises(InputError):
        commands.train(bench.task, bench.folder / "other")
    assert not (bench.folder / "other").exists()


def test_what_the_process_adds_to_info_is_no_change_of_the_environment(bench: Workbench) -> None:
    source = (bench.folder / f"{PLACE}.py").read_text()
    source = source.replace('"context": self.start', '"pid": os.getpid(), "at": time.time(), "context": self.start')
    (bench.folder / "restless.py").write_text("import os, time\n" + source)
    found = fingerprint.take_fingerprint(EnvSpec("restless:Mine"))
    assert found is not None
    command = (
        "import json, sys; from aitia.training.environments import fingerprint; "
        "from aitia.training.environments.spec import EnvSpec; "
        "known = fingerprint.Fingerprint.of_json(json.loads(sys.argv[1])); "
        "print(known.differences(fingerprint.replay_fingerprint(EnvSpec('restless:Mine'), known)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, json.dumps(found.as_json())], capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )  # fmt: skip
    assert done.stdout.strip() == "[]", done.stderr


def test_the_last_digits_of_numbers_are_no_change_of_the_environment() -> None:
    values = np.array([0.1, 1.0 / 3.0, 1e9, -0.0, 5e-324, 0.0])
    near = values * (1 + 4e-16)
    np.testing.assert_array_equal(fingerprint._rounded(values), fingerprint._rounded(near))
    assert fingerprint._rounded(0.1) != fingerprint._rounded(0.10001)


def test_packages_that_a_task_names_count_by_their_version_and_editable_ones_by_their_source(
    bench: Workbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(
        sources.packages_of({"env": "minigrid.envs:DoorKeyEnv", "target": f"{PLACE}_target:target"}, tmp_path)
    ) == {"minigrid"}
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/edited.py").write_text("x = 1\n")

    class Finder:
        @classmethod
        def find_spec(cls, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
            file = tmp_path / "elsewhere" / f"{name}.py"
            return spec_from_file_location(name, file) if file.exists() else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder])
    assert set(sources.hashes_of("edited:Env", tmp_path)) == {"edited"} and "edited" not in sys.modules


def test_a_lock_that_cannot_be_tried_counts_as_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: object, timeout: float) -> None:
        raise PermissionError(13, "permission denied")

    with lock.held(tmp_path / "lock", tmp_path, "a command"):
        assert (tmp_path / "lock").stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o666
        assert lock.is_held(tmp_path / "lock")
    assert not lock.is_held(tmp_path / "lock")
    monkeypatch.setattr(FileLock, "acquire", denied)
    assert lock.is_held(tmp_path / "lock")


def test_pages_say_by_which_code_and_with_which_accepted_changes_they_were_computed(bench: Workbench) -> None:
    bench.all()
    bench.write(name="room-")
    commands.evaluate(bench.run, accept_changes=True)
    commands.report(bench.run)
    page = (bench.run / "reports/test/index.html").read_text(encoding="utf-8")
    source = Manifest.read(RunFolder(bench.run)).sources
    assert source is not None and f"`{PLACE}` ({source[PLACE][:12]})" in page
    assert "and accepted on 20" in page and f"the source of module `{PLACE}` changed" in page
