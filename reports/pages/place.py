"""Where a run is, for commands on its pages that can be pasted into a shell as they stand."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

_TEST_SET = "test"
_UNKNOWN_TASK = "TASK.yaml"


@dataclass(frozen=True)
class Place:
    """Where a run, its task file and the reports of an evaluation set are: paths or addresses, whole.

    Attributes:
        run: the run folder.
        reports: the folder of the pages.
        set_name: the evaluation set.
        task: the task file; None where the run does not tell (earlier versions did not): `TASK.yaml` stands for it.
    """

    run: str
    reports: str
    set_name: str
    task: str | None = None

    def command(self, name: str, *arguments: str) -> str:
        """Return a command on this run and its evaluation set."""
        return shlex.join(["aitia", name, self.run, *self._set, *arguments])

    def train_again(self, edits: str) -> str:
        """Return the commands that train with an edits file of the reports, evaluate, and compare; one a line.

        Args:
            edits: the file, relative to the folder of the reports; the run it makes is named by the evaluation set
                (unless that is `test`) and by what distinguishes the file from `edits.yaml`: clusters have one each.
        """
        part = edits.rpartition("/")[2].removesuffix(".yaml").removeprefix("edits").strip("-")
        named = [*self._set[1:], *([f"cluster-{part}"] if part else [])]
        out = "-".join([f"{self.run.rstrip('/')}-corrected", *named])
        task, file = self.task or _UNKNOWN_TASK, f"{self.reports.rstrip('/')}/{edits}"
        commands = (
            ["aitia", "train", task, "--edits", file, "--out", out],
            ["aitia", "evaluate", out, *self._set],
            ["aitia", "compare", self.run, out, *self._set],
        )
        return "\n".join(map(shlex.join, commands))

    @property
    def _set(self) -> list[str]:
        return [] if self.set_name == _TEST_SET else ["--set", self.set_name]
