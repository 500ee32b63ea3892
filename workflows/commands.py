"""The commands as Python functions, with the names and arguments of the command line."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from ..attribution.estimators.base import Estimator
from ..datasets.errors import InputError
from ..datasets.files.remote import as_path, local_path
from .runs.begin import apart, beginning, computing
from .runs.run import Run, open_run
from .runs.task import TEST_SET
from .runs.task_source import TaskSource, load_task
from .stages.attribute import DEFAULT_ESTIMATOR, attribute_stage
from .stages.check import check_task
from .stages.compare import compare_stage
from .stages.pictures import Illustrated, draw_failures, draw_training
from .stages.predict import predict_stage
from .stages.report import report_stage
from .stages.train import evaluate_stage, train_stage
from .stages.validate import DEFAULT_MASKS, validate_stage
from .stages.verify import verify_stage
from .suite.stage import suite_stage
from .workers.pool import Workers
from .workers.start import start_workers

DEMO_TASKS = ("arrow-maze-outer", "arrow-maze-inner")
DEMO_OUT = "runs"
SUITE_OUT = "runs/suite"
SUITE_ILLUSTRATED = 4
log = logging.getLogger("aitia")


def train(
    task: TaskSource,
    out: str | Path,
    edits: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    accept_changes: bool = False,
) -> None:
    """Train the ensemble of a task, recording every transition and every window's parameters.

    Args:
        task: the task file; or the task itself, as a mapping of a task file's keys or a model (`aitia.open(RUN).task`):
            then modules that it names come from the import path.
        out: the run folder; a new one, one that holds a run of the same task (and edits), or one that a script's
            `Recorder` wrote and that fits the task (docs/recording.md).
        edits: an edits file (docs/task-file.md): rewards to correct while training; None: rewards as paid.
        workers: processes of a local Dask cluster; 0: none, everything runs in this process; None: one a core.
        scheduler: address of an existing Dask cluster, instead of a local one.
        accept_changes: continue a run although code or versions changed since it was begun; `run.json` keeps what did.

    Raises:
        InputError: bad input; nothing is left half-written.
    """
    with (
        beginning(task, out, "aitia train", edits, accept_changes) as run,
        start_workers(workers, scheduler) as pool,
        run.timed("train"),
    ):
        train_stage(run, pool)


def check(task: TaskSource, edits: str | Path | None = None, workers: int | None = None) -> dict[str, Any]:
    """Say in seconds what a task will do, what its environment does not report, and how long it takes.

    Args:
        task: see `train`.
        edits: an edits file, as of `train`.
        workers: processes that would work; None: one a core.

    Returns:
        Observations, keys of `info`, outcomes seen, seeds, steps, groups, trainings, an estimate of minutes and bytes
        with what it was measured from, and `warnings`.

    Raises:
        InputError: bad input.
    """
    with apart():
        return check_task(load_task(task, edits), workers)


def evaluate(
    run: str | Path,
    set: str = TEST_SET,
    workers: int | None = None,
    scheduler: str | None = None,
    accept_changes: bool = False,
    trust: bool = False,
) -> None:
    """Play the episodes of an evaluation set with every agent of a run, and with a random policy; draw some failures.

    Args:
        run: a trained run folder.
        set: name of the evaluation set.
        workers, scheduler, accept_changes: see `train`.
        trust: run the code that the run's task names, although the run was made elsewhere; remembered.
    """
    with _computing("evaluate", run, workers, scheduler, accept_changes, trust) as (opened, pool):
        evaluate_stage(opened, set, pool)
        draw_failures(opened, set, None, pool)


def attribute(
    run: str | Path,
    set: str = TEST_SET,
    failure: Sequence[str] = (),
    estimator: str | Estimator = DEFAULT_ESTIMATOR,
    workers: int | None = None,
    scheduler: str | None = None,
    accept_changes: bool = False,
    trust: bool = False,
    effects: Sequence[str] = (),
) -> None:
    """Attribute failures of an evaluation set to training rewards.

    Args:
        run: an evaluated run folder.
        set: name of the evaluation set.
        failure: ids of failures; none given: all.
        estimator: an estimator of `aitia.attribution`, or a name; `auto`: exact TRAK, or TRAK projected where the
            policy or the window leaves no choice. Verdicts use what `auto` chooses. Tables call an estimator by its
            name and the parameters that differ from the default ones.
        workers, scheduler, accept_changes: see `train`.
        trust: see `evaluate`.
        effects: computed in addition: `raw` (without the normalisation of advantages), `value` (through the value
            loss), `lambdas` (at more dampings). No report reads them; their columns are null otherwise.
    """
    with _computing("attribute", run, workers, scheduler, accept_changes, trust) as (opened, pool):
        attribute_stage(opened, set, failure, estimator, pool, effects)
        draw_training(opened, set, pool)


def verify(
    run: str | Path,
    set: str = TEST_SET,
    workers: int | None = None,
    scheduler: str | None = None,
    accept_changes: bool = False,
    trust: bool = False,
) -> None:
    """Train again with corrected rewards: the counterfactual bank of an evaluation set.

    Args:
        run: an attributed run folder.
        set: name of the evaluation set.
        workers, scheduler, accept_changes: see `train`.
        trust: see `evaluate`.
    """
    with _computing("verify", run, workers, scheduler, accept_changes, trust) as (opened, pool):
        verify_stage(opened, set, pool)
        predict_stage(opened, set, pool)


def illustrate(
    run: str | Path,
    number: Illustrated = "all",
    set: str = TEST_SET,
    workers: int | None = None,
    scheduler: str | None = None,
    accept_changes: bool = False,
    trust: bool = False,
) -> None:
    """Draw failures of an evaluation set and the training states that their pages show; `report` embeds them.

    Args:
        run: an evaluated run folder; without `attribute` only the failing episodes are drawn.
        number: how many failures have pictures, spread evenly over all; those that are drawn already stay.
        set: name of the evaluation set.
        workers, scheduler, accept_changes: see `train`.
        trust: see `evaluate`.
    """
    with _computing("illustrate", run, workers, scheduler, accept_changes, trust) as (opened, pool):
        draw_failures(opened, set, number, pool, again=True)
        draw_training(opened, set, pool, again=True)


def report(
    run: str | Path,
    set: str = TEST_SET,
    out: str | Path | None = None,
    illustrate: None = None,
    workers: int | None = None,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Write verdicts and pages of an evaluation set. It only reads the run: nothing that its task names is imported.

    Args:
        run: an attributed run folder; without `verify` most verdicts are undetermined.
        set: name of the evaluation set.
        out: folder of the pages; None: the run's own, `RUN/reports/SET`.
        illustrate: no more taken: `evaluate` and `attribute` draw, and `aitia.illustrate` draws more.
        workers, scheduler: not needed: taken so that all stages can be called alike.

    Returns:
        The summary, as in `summary.json`.

    Raises:
        InputError: `illustrate` was given.
    """
    if illustrate is not None:
        raise InputError(
            f"illustrate={illustrate!r} was given to report, which draws nothing any more: `evaluate` and `attribute` "
            "draw 20 failures, `aitia illustrate RUN [N|all]` (aitia.illustrate) as many as you like, and report shows "
            "them"
        )
    return report_stage(open_run(run), set, out)


def validate(
    run: str | Path,
    set: str = TEST_SET,
    masks: int = DEFAULT_MASKS,
    workers: int | None = None,
    scheduler: str | None = None,
    accept_changes: bool = False,
    trust: bool = False,
) -> dict[str, Any]:
    """Ask whether predictions foretell retraining: LDS with its noise ceiling, interactive and replayed.

    Args:
        run: an attributed run folder; every estimator that attributed all failures is scored.
        set: name of the evaluation set.
        masks: random correction sets; each is trained again and replayed with every paired seed.
        workers, scheduler, accept_changes: see `train`.
        trust: see `evaluate`.

    Returns:
        The contents of `validation/SET/validation.json`.
    """
    with _computing("validate", run, workers, scheduler, accept_changes, trust) as (opened, pool):
        return validate_stage(opened, set, masks, pool)


def compare(run_a: str | Path, run_b: str | Path, set: str = TEST_SET, out: str | Path | None = None) -> dict[str, Any]:
    """Compare two runs of the same environment, before and after a fix: the same episodes and seeds, paired.

    Args:
        run_a: an evaluated run folder: before.
        run_b: another: after. Same env, outcomes and evaluation episodes; anything of the training may differ.
        set: name of the evaluation set.
        out: folder of the page, rows and `compare.json`; None: `RUN_B/reports/SET/compare/NAME_OF_RUN_A`.

    Returns:
        The contents of `compare.json`.
    """
    return compare_stage(run_a, run_b, set, out)


def run(
    task: TaskSource,
    out: str | Path,
    edits: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    accept_changes: bool = False,
) -> dict[str, dict[str, Any]]:
    """Run all stages of a task, on every evaluation set it has.

    Args:
        task: see `train`.
        out: the run folder.
        edits, workers, scheduler, accept_changes: see `train`.

    Returns:
        The summary of each evaluation set.
    """
    with start_workers(workers, scheduler) as pool:
        return _run(task, out, pool, edits=edits, accept_changes=accept_changes)


def demo(
    out: str | Path = DEMO_OUT, workers: int | None = None, scheduler: str | None = None
) -> dict[str, dict[str, Any]]:
    """Run both twins of the arrow maze end to end.

    Args:
        out: folder of the two runs.
        workers, scheduler: see `train`.

    Returns:
        The summary of each task.
    """
    summaries = {}
    with start_workers(workers, scheduler) as pool:
        for name in DEMO_TASKS:
            resource = files(__package__).joinpath(f"tasks/{name}.yaml")
            with as_file(resource) as task:
                summaries[name] = _run(task, as_path(out) / name, pool)[TEST_SET]
    return summaries


def suite(
    out: str | Path = SUITE_OUT, cases: Sequence[str] = (), workers: int | None = None, scheduler: str | None = None
) -> dict[str, Any]:
    """Run the pipeline on failures whose cause was planted, and score the verdicts.

    Args:
        out: folder of the suite; finished cases are kept.
        cases: names of cases or families; none given: all.
        workers, scheduler: see `train`.

    Returns:
        The contents of `suite.json`: scores, confusion matrix, cases.
    """
    folder = local_path(out, "the folder of the suite").resolve()
    with start_workers(workers, scheduler) as pool:
        return suite_stage(folder, cases, lambda task, run: _run(task, run, pool, illustrated=SUITE_ILLUSTRATED))


def _run(
    task: TaskSource,
    out: str | Path,
    pool: Workers,
    illustrated: Illustrated | None = None,
    edits: str | Path | None = None,
    accept_changes: bool = False,
) -> dict[str, dict[str, Any]]:
    with beginning(task, out, "aitia run", edits, accept_changes) as opened:
        with opened.timed("train"):
            train_stage(opened, pool)
        summaries = {}
        for name in (TEST_SET, *opened.task.sets):
            with opened.timed("evaluate"):
                evaluate_stage(opened, name, pool)
                draw_failures(opened, name, illustrated, pool)
            with opened.timed("attribute"):
                attribute_stage(opened, name, (), DEFAULT_ESTIMATOR, pool)
                draw_training(opened, name, pool)
            with opened.timed("verify"):
                verify_stage(opened, name, pool)
                predict_stage(opened, name, pool)
            summaries[name] = report_stage(opened, name)
    return summaries


@contextlib.contextmanager
def _computing(
    stage: str, run: str | Path, workers: int | None, scheduler: str | None, accept_changes: bool, trust: bool
) -> Iterator[tuple[Run, Workers]]:
    """Open a run for a stage that computes in it, with workers, and add the seconds of the block to the stage's."""
    with (
        computing(run, f"aitia {stage}", accept_changes, trust) as opened,
        start_workers(workers, scheduler) as pool,
        opened.timed(stage),
    ):
        yield opened, pool
