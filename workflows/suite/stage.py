"""The suite of planted causes: the whole pipeline on every case, next to the truth."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import yaml

from ...datasets.arrays import decode_actions
from ...datasets.files.store import RunFolder, read_json, read_table, write_text
from ...datasets.manifest import Manifest, installed_versions
from ...reports.pages.suite import CaseResult, write_suite
from ...training.worlds.environment import WorldEnv
from ...training.worlds.proxies import agreement
from ..runs.task import TEST_SET
from .cases import Case, choose_cases, truths

_MOST_EXPLAINED = 40  # failures of a case whose actions are compared with the registered goals
log = logging.getLogger("aitia")


def suite_stage(out: Path, names: Sequence[str], run_task: Callable[[Path, Path], object]) -> dict[str, Any]:
    """Run the pipeline on cases and write the suite's page; a finished case is not run again.

    Args:
        out: folder of the suite: a run folder for each case, `suite.json` and `index.html`.
        names: cases or families; none: all.
        run_task: runs all stages of a task file into a run folder.

    Returns:
        The contents of `suite.json`.

    Raises:
        InputError: there is no such case.
    """
    cases, results = choose_cases(names), []
    for number, case in enumerate(cases, 1):
        folder = RunFolder(out / case.name)
        summary_path = folder.reports_folder(TEST_SET) / "summary.json"
        if not (summary_path.exists() and Manifest.read(folder).hashes == case.task().hashes()):
            log.info("suite: case %d of %d, %s", number, len(cases), case.name)
            task = out / "tasks" / f"{case.name}.yaml"
            write_text(task, yaml.safe_dump(case.task_values(), sort_keys=False))
            run_task(task, folder.root)
        results.append(_result(case, folder))
        provenance = {
            **installed_versions(),
            "git_sha": Manifest.read(folder).git_sha or "unknown",
            "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        }
        found = write_suite(out, results, provenance)
    return found


def _result(case: Case, folder: RunFolder) -> CaseResult:
    reports = folder.reports_folder(TEST_SET)
    summary, entries = read_json(reports / "summary.json"), read_json(reports / "verdicts.json")
    truth = truths().get(case.name)
    return CaseResult(
        name=case.name,
        family=case.family,
        half=case.half,
        planted=str(case.planted),
        why=case.why,
        truth=truth["verdict"] if truth else None,
        truth_rates=truth["misbehaviour_rate"] if truth else None,
        verdict=summary["verdict"],
        rule=summary["rule"],
        reasons=summary["reasons"],
        rates={**summary["misbehaviour_rate"], "outer_share": summary["outer_share"]},
        framing1=dict(Counter(entry["framing1"] for entry in entries)),
        ease=summary["ease"]["kind"] if summary["ease"] else None,
        unexplained=_unexplained(case, folder),
        seconds=sum(summary["seconds"].values()),
        page=f"{case.name}/reports/{TEST_SET}/index.html",
    )


def _unexplained(case: Case, folder: RunFolder) -> float | None:
    """Return the share of failures that no registered goal explains; None without failures or numbered actions."""
    env = case.task().evaluation_env(TEST_SET).make().unwrapped
    if not isinstance(env, WorldEnv) or not env.world.action_names:
        return None
    failures = case.task().outcomes.failures(read_table(folder.evaluation_path(TEST_SET, "episodes"))).to_pylist()
    steps = read_table(folder.evaluation_path(TEST_SET, "steps"))
    steps = steps.filter(pc.field("part") == "test")
    actions = decode_actions(steps)
    where = np.stack([steps["seed"].to_numpy(), steps["episode"].to_numpy()], axis=1)
    chosen = failures[:: max(1, len(failures) // _MOST_EXPLAINED)]
    found = []
    for failure in chosen:
        rows = (where == [failure["seed"], failure["episode"]]).all(axis=1)
        found.append(agreement(env.world, int(failure["context"]), list(actions[rows])).explained_by is None)
    return float(np.mean(found)) if found else None
