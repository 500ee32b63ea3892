"""A run, opened: folder, task, manifest, what it recorded and its evaluation sets; stages and notebooks hold it.

Opening reads: nothing that the task names is imported, and no environment is made, until somebody asks for what needs
it (`policy`, `grouping` and `group_rows` of some groupings).
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import torch
from pyarrow.dataset import Dataset
from stable_baselines3.common.policies import ActorCriticPolicy

from ...datasets.errors import InputError
from ...datasets.files.checksums import noting
from ...datasets.files.remote import exist, name_in
from ...datasets.files.store import RunFolder, on_write, open_tables, read_tensors, sha256_of
from ...datasets.groups import Grouping
from ...datasets.learning import training_outcomes
from ...datasets.manifest import Manifest
from ...datasets.rewards import missing_file
from ...datasets.words import counted
from ...training.agents.spec import load_policy
from .answers import Card
from .evaluated_set import EvaluatedSet
from .groups import OF_ENVIRONMENT, load_grouping, rows_in_groups
from .recorded import recorded_rewards
from .task import TEST_SET, Task, make_task
from .task_source import add_import_path
from .trust import require_no_links_outside, require_trusted


@dataclass(frozen=True, eq=False, repr=False)
class Run:
    """A run folder together with the task it belongs to (docs/library.md).

    Attributes:
        folder: where its files are.
        task: the task, with the edits that it was trained with.
        manifest: its `run.json`.
    """

    folder: RunFolder
    task: Task
    manifest: Manifest

    @property
    def seeds(self) -> list[int]:
        """Seeds of the ensemble."""
        return list(self.task.seeds)

    @property
    def sets(self) -> list[str]:
        """Names of the evaluation sets that were evaluated."""
        names = [TEST_SET, *self.task.sets]
        there = exist([self.folder.evaluation_path(name, "episodes") for name in names])
        return [name for name, evaluated in zip(names, there, strict=True) if evaluated]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the evaluation sets that were evaluated."""
        return iter(self.sets)

    def __getitem__(self, set_name: str) -> EvaluatedSet:
        """Return an evaluation set as it is now; what it has read stays as it was when a stage runs later.

        Raises:
            TaskError: the task has no such set.
        """
        return EvaluatedSet(self, set_name)

    def transitions(self, seed: int) -> Dataset:
        """Return the transitions of a seed's training, all windows in their order, as a lazy dataset.

        Nothing but the schema is read yet; what then reads is pyarrow, without the limits of commands (docs/safety.md).

        Raises:
            InputError: the run has no such seed.
            RunFolderError: its training is not whole.
        """
        self._require_whole(seed)
        return open_tables([self.folder.transitions_path(seed, w) for w in range(self.folder.window_count(seed))])

    def policy(self, seed: int, window: int | None = None, trust: bool = False) -> ActorCriticPolicy:
        """Return a recorded policy, in evaluation mode. Its environment is made, for the spaces.

        Args:
            seed: of the agent.
            window: the one whose transitions it collected; None: the policy as training left it.
            trust: make the environment, although the run was made elsewhere, and remember that.

        Raises:
            InputError: no such seed or window, or the run was made elsewhere and was not trusted.
            RunFolderError: its training is not whole, or the checkpoint is damaged.
        """
        self._require_whole(seed)
        windows = self.folder.window_count(seed)
        if window is not None and not 0 <= window < windows:
            raise InputError(
                f"window {window} was given, expected one of the {counted(windows, 'window')} of seed {seed}, from 0 "
                f"to {windows - 1}; None is the policy as training left it"
            )
        self.allow_code(trust)
        final, folder = self.folder.final_path(seed), self.folder
        parameters = read_tensors(final if window is None else folder.checkpoint_path(seed, window))
        with torch.random.fork_rng(devices=[]):
            return load_policy(self.task.agent, self.task.training_env, parameters)

    def group_rows(self, groups: Collection[str] | None = None, trust: bool = False) -> pa.Table:
        """Return which rows of the transitions are in which group: `seed, window, env, step, group`, one a transition.

        One window is held at a time. What `group` of the influence tables, of `bank/SET/masks.parquet` and of an edits
        file names is joined to the transitions by it, with any `group_by`. With `group_by: transition` or `cluster` the
        environment is made, for the names of actions; else nothing that the task names is imported.

        Args:
            groups: whose rows to return; None: all.
            trust: make the environment, although the run was made elsewhere, and remember that.

        Raises:
            InputError: a group that no transition is in, or the run was made elsewhere, and was not trusted.
            RunFolderError: the run is not trained.
        """
        if self.task.group_by in OF_ENVIRONMENT:
            self.allow_code(trust)
        self.require_trained()
        return rows_in_groups(self.folder, self.task, self.grouping, groups)

    @cached_property
    def grouping(self) -> Grouping:
        """What is corrected together; of a trained run whose state clusters were fitted (`ensure_groups`)."""
        return load_grouping(self.folder, self.task)

    @cached_property
    def rewards(self) -> dict[int, pa.Table]:
        """What training paid each group, by seed (`reward_summary`); nothing is written."""
        return recorded_rewards(self.folder, self.task)

    @cached_property
    def training_outcomes(self) -> dict[int, pa.Table]:
        """How the episodes of each training ended, by seed (`LEARNING`)."""
        return {seed: training_outcomes(self.folder, seed) for seed in self.task.seeds}

    def allow_code(self, trust: bool = False) -> None:
        """Check that the code which the task names is the user's or trusted; let modules next to its file be imported.

        Args:
            trust: run it, although the run was made elsewhere, and remember that.

        Raises:
            InputError: the run was made elsewhere, and was not trusted.
        """
        require_trusted(self.folder, self.manifest, trust)
        if self.manifest.task_folder is not None:
            add_import_path(Path(self.manifest.task_folder))

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the wall-clock seconds of the block to the stage's in `run.json`, and checksums of tables it writes."""
        began = time.monotonic()
        try:
            with on_write(noting(self.folder, self.note)):
                yield
        finally:
            seconds = self.manifest.seconds
            seconds[stage] = round(seconds.get(stage, 0.0) + time.monotonic() - began, 2)
            if self.folder.manifest_path.exists():
                self.manifest.write(self.folder)

    def note(self, name: str, checksum: str) -> None:
        """Write the checksum of a table into `run.json`, before the table is there."""
        self._set_checksums({**self.manifest.checksums, name: checksum})

    def note_files(self, paths: Sequence[Path]) -> None:
        """Write the checksums of files that workers wrote into `run.json`; those that are not there are left out."""
        written = {name_in(path, self.folder.root): sha256_of(path) for path in paths if path.exists()}
        self._set_checksums({**self.manifest.checksums, **written})

    def note_new(self, paths: Sequence[Path]) -> None:
        """Write the checksums of files that have none yet into `run.json`."""
        self.note_files([p for p in paths if name_in(p, self.folder.root) not in self.manifest.checksums])

    def forget_missing_files(self) -> None:
        """Take the checksums of files that are no more out of `run.json`."""
        kept = self.manifest.checksums
        there = exist([self.folder.root / name for name in kept])
        self._set_checksums({name: kept[name] for name, exists in zip(kept, there, strict=True) if exists})

    def _set_checksums(self, checksums: dict[str, str]) -> None:
        if checksums != self.manifest.checksums:
            self.manifest.checksums = checksums
            self.manifest.write(self.folder)

    def require_trained(self) -> None:
        """Check that every seed's training is whole.

        Raises:
            RunFolderError: names the first file that is missing.
        """
        for seed in self.task.seeds:
            self._require_whole(seed)

    def _require_whole(self, seed: int) -> None:
        """Check that a seed is one of the run's, and its training whole.

        Raises:
            InputError: it is another number.
            RunFolderError: names the first file that is missing.
        """
        if seed not in self.task.seeds:
            raise InputError(f"seed {seed} was given, {self.folder.root} has seeds {', '.join(map(str, self.seeds))}")
        if missing := self.folder.missing_files(seed):
            raise missing_file(missing[0])

    @property
    def _card(self) -> Card:
        there = exist([self.folder.final_path(seed) for seed in self.task.seeds])
        trained = [seed for seed, whole in zip(self.task.seeds, there, strict=True) if whole]
        agent = self.task.agent
        return Card(
            f"Run {self.task.name}",
            {
                "folder": str(self.folder.root),
                "trained on": f"{self.task.env}: {agent.algorithm}, {counted(agent.total_timesteps, 'step')}",
                "seeds": f"{', '.join(map(str, trained)) or 'none'} trained of {len(self.task.seeds)}",
                **{f"set {name}": self[name].in_a_line for name in self.sets},
            },
        )

    def __repr__(self) -> str:
        return self._card.text

    def _repr_html_(self) -> str:
        return self._card.html


def open_run(path: str | Path) -> Run:
    """Open a run folder for reading: nothing that its task names is imported, no environment is made.

    Raises:
        RunFolderError: it is not a run of this version, or something in it leads out of it.
    """
    folder = RunFolder.at(path)
    manifest = Manifest.read(folder)
    require_no_links_outside(folder)
    return Run(folder, make_task(manifest.task, str(folder.manifest_path)), manifest)


def open_for_computing(path: str | Path, trust: bool = False) -> Run:
    """Open a run folder to compute, which runs the code that its task names, with modules next to its task file.

    Args:
        path: the run folder.
        trust: run it, although the run was made elsewhere, and remember that.

    Raises:
        RunFolderError: see `open_run`.
        InputError: the run was made elsewhere, and was not trusted.
    """
    run = open_run(path)
    run.allow_code(trust)
    return run
