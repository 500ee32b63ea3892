"""The writer of a recording: windows of one training into a run folder, whole or not at all, whoever collected them.

`Recorder` (Stable-Baselines3), `OffPolicyRecorder`, `LoopRecorder` and `import_minari` each hold one, and translate
what they see into the records of `window`.
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch import Tensor, nn

from ...datasets.arrays import Array
from ...datasets.errors import AitiaError, EnvironmentError_, InputError
from ...datasets.files.lock import held
from ...datasets.files.remote import remote, remove_folder
from ...datasets.files.store import RunFolder, begin_folder, publish_folder, write_table, write_tensors
from ..edits.edit import CORRECTED, UNEDITED
from ..environments.contract import InfoReader, Told
from .provenance import SCRIPT, EarlierTraining
from .window import Collected, Learned, Step

log = logging.getLogger("aitia")
_HELD = ".held"  # next to the staging folder: held while a script records


def recording_lock(staging: Path) -> Path:
    """Return the lock that is held while a script records into a staging folder."""
    return staging.with_name(f"{staging.name}{_HELD}")


def under_way(folder: RunFolder) -> list[Path]:
    """Return the staging folders of trainings that have not ended, or not well."""
    return sorted(path for path in folder.parts_folder("train").glob("seed=*") if _HELD not in path.name)


def parameters_of(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of a module's parameters and buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


class WindowWriter:
    """Writes `transitions/seed=J`, `checkpoints/seed=J` and `replay/seed=J` of a run folder.

    The files are collected in a staging folder, and moved to their places by `publish`. In order: `begin`; for each
    window `read` its infos step by step, then `write`; at the end `publish` or `discard`.

    Args:
        out: the run folder: a path, or an address on an object store (docs/run-folder.md).
        seed: the number under which the training is kept.
        trained_by: `SCRIPT` or `AITIA`. While a script records, commands see that it does.

    Attributes:
        windows: written so far.
        published: whether the files are at their places.
        outcomes: episodes that ended so far, by outcome.
        corrected: rewards that an edit has changed so far.
    """

    def __init__(self, out: str | Path | RunFolder, seed: int, trained_by: str = SCRIPT) -> None:
        self.folder, self.seed, self.trained_by = RunFolder.at(out), seed, trained_by
        self.windows, self.corrected, self.outcomes = 0, 0, Counter[str]()
        self.published = False
        # a folder of this attempt's own: a training that was given up may still be running on a cluster
        self._staging = self.folder.parts_folder("train", f"seed={seed}-{uuid.uuid4().hex[:8]}")
        self._staged = RunFolder(self._staging)
        self._held = contextlib.ExitStack()

    def begin(self, n_envs: int, earlier: EarlierTraining, actions: int | None = None) -> None:
        """Prepare for the first step.

        Args:
            n_envs: environments stepped together.
            earlier: what the agent had trained before.
            actions: number of discrete actions, by which `action_labels` are checked; None: they are not.

        Raises:
            InputError: this writer has written already, or the seed belongs to a finished run.
        """
        if self.windows:
            raise InputError(
                f"this recorder has already recorded a training as seed {self.seed}; expected one `learn` a recorder. "
                "Make another with another seed"
            )
        if self.folder.manifest_path.exists() and not self.folder.missing_files(self.seed):
            raise InputError(
                f"{self.folder.root} holds a run (run.json) with a whole training of seed {self.seed}, and its other "
                "tables follow from that one: record into another folder, or as another seed"
            )
        if earlier:
            log.warning("seed %d: %s", self.seed, earlier.what_follows())
        self._earlier = earlier
        self._staged = RunFolder(begin_folder(self._staging))
        if self.trained_by == SCRIPT:
            self._held.enter_context(held(recording_lock(self._staging), self._staging, "a script"))
        self._reader = InfoReader(actions, f"training environment (seed {self.seed})")
        self._episode = np.arange(n_envs, dtype=np.int64)
        self._t = np.zeros(n_envs, dtype=np.int64)
        self._next_episode = n_envs

    def read(self, step: int, infos: Sequence[Mapping[str, Any]], reward: Array, ended: Array) -> list[Told]:
        """Return what the infos of one step say, checked against the contract (docs/task-file.md).

        Args:
            step: its number in the current window.
            infos: of each environment; of an ended episode that of its last step.
            reward: [E], as paid.
            ended: bool [E].

        Raises:
            EnvironmentError_: one breaks the contract; the message names window, environment and step.
        """
        reported = []
        for env, info in enumerate(infos):
            self.corrected += bool(info.get(CORRECTED, False))
            try:  # the contract is about what the environment pays, not about what an edit made of it
                told = self._reader.read(info, info.get(UNEDITED, float(reward[env])), bool(ended[env]))
            except EnvironmentError_ as error:
                raise EnvironmentError_(f"window {self.windows}, env {env}, step {step}: {error}") from error
            if told.outcome is not None:
                self.outcomes[told.outcome] += 1
            reported.append(told)
        return reported

    def write(
        self, window: Collected, learned: Learned, parameters: Mapping[str, Tensor] | None,
        draws: pa.Table | None = None,
    ) -> None:  # fmt: skip
        """Write the next window.

        Args:
            window: what was collected.
            learned: what it was learned from.
            parameters: those that collected it; None: there is no policy, and no checkpoint.
            draws: what a replay buffer drew in its updates (`schema.REPLAY_DRAWS`); None: there is none.

        Raises:
            AitiaError: somebody removed what was written so far.
        """
        if not self._staging.exists():
            raise AitiaError(f"{self._staging} was removed while seed {self.seed} was training; it is given up")
        table = window.table(self.seed, self.windows, learned, self._earlier, *self._episodes(window.steps))
        write_table(self._staged.transitions_path(self.seed, self.windows), table)
        if parameters is not None:
            about = {"seed": str(self.seed), "window": str(self.windows)}
            write_tensors(self._staged.checkpoint_path(self.seed, self.windows), parameters, about)
        if draws is not None:
            write_table(self._staged.replay_path(self.seed, self.windows), draws)
        self.windows += 1

    def _episodes(self, steps: Sequence[Step]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the numbers of the next steps' episodes, unique within a training, and the steps since they began."""
        numbers, ages = [], []
        for step in steps:
            numbers.append(self._episode.copy())
            ages.append(self._t.copy())
            self._t += 1
            for env in np.flatnonzero(step.ended):
                self._t[env], self._episode[env] = 0, self._next_episode
                self._next_episode += 1
        return np.stack(numbers), np.stack(ages)

    def publish(self, parameters: Mapping[str, Tensor] | None, about: Mapping[str, str] | None = None) -> None:
        """Move the files to their places.

        Args:
            parameters: those at the end; None: there is no policy, and there are no checkpoints.
            about: how they were trained, for the final checkpoint's metadata.
        """
        folders = [RunFolder.transitions_folder]
        if parameters is not None:
            metadata = {"seed": str(self.seed), "windows": str(self.windows), **(about or {})}
            write_tensors(self._staged.final_path(self.seed), parameters, {**metadata, "trained_by": self.trained_by})
            remove_folder(self.folder.checkpoints_folder(self.seed))
            folders.append(RunFolder.checkpoints_folder)
        if self._staged.replay_folder(self.seed).exists():
            folders.insert(0, RunFolder.replay_folder)
        for place in folders:
            publish_folder(place(self._staged, self.seed), place(self.folder, self.seed))
        self.discard()
        self.published = True

    def discard(self) -> None:
        """Remove what has not been published."""
        self._held.close()
        if remote(self._staging) is None:
            recording_lock(self._staging).unlink(missing_ok=True)
        remove_folder(self._staged.root)
        remove_folder(self._staging)
