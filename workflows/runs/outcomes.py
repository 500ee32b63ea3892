"""Outcomes that agents came to, against those that their task declares: nothing is trained again on empty names."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from ...datasets.errors import TaskError
from ...datasets.files.store import read_table
from ...training.agents.outcome_names import HOW_TO_LIST, listed_outcomes, unseen_in_words
from .run import Run
from .task import TEST_SET, Task

log = logging.getLogger("aitia")
_PLAYED = "any episode played: agents, a random policy, reference solvers"


def warn_of_outcomes(run: Run, set_name: str) -> None:
    """Say which declared outcomes no episode of an evaluation set ended in."""
    seen = set(_played(run, set_name))
    if words := unseen_in_words(run.task.outcomes, seen, _listed(run.task), _PLAYED):
        log.warning("evaluate %s: %s", run.task.name, words)


def require_outcomes(run: Run) -> None:
    """Check, before agents are trained again, that some desired and some misbehaved outcome ever occurred.

    Raises:
        TaskError: none of a kind did, in training, in evaluation, with a random policy or reference solvers, and the
            environment does not list it.
    """
    for kind in ("desired", "misbehaved"):
        names = getattr(run.task.outcomes, kind)
        if any(name in names for name in _everywhere(run)) or set(names) & (_listed(run.task) or set()):
            continue
        seen = sorted(set(_everywhere(run)))
        raise TaskError(
            f"outcomes.{kind}: none of {', '.join(f'`{name}`' for name in names)} ever occurred, in training or in "
            f"{_PLAYED}; what occurred: {', '.join(seen)}. Nothing is trained again on a name that never occurs: "
            f"correct `outcomes` (in another --out; trainings of this run are as they are), or, if it is right, "
            f"{HOW_TO_LIST}"
        )


def _listed(task: Task) -> frozenset[str] | None:
    env = task.training_env.make()
    try:
        return listed_outcomes(env)
    finally:
        env.close()


def _played(run: Run, set_name: str) -> Iterator[str]:
    for table in ("episodes", "references"):
        path = run.folder.evaluation_path(set_name, table)
        if path.exists():
            yield from set(read_table(path, ["outcome"])["outcome"].to_pylist())


def _everywhere(run: Run) -> Iterator[str]:
    """Yield outcomes of evaluations, then of training, the last windows first: whoever looks for one may stop."""
    for name in (TEST_SET, *run.task.sets):
        yield from _played(run, name)
    for seed in run.task.seeds:
        for window in reversed(range(run.folder.window_count(seed))):
            table = read_table(run.folder.transitions_path(seed, window), ["outcome"])
            yield from set(table["outcome"].drop_null().to_pylist())
