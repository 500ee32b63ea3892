"""The suite: cases that are whole, a score that counts as it says, and smoke cases of known cause."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import Finished

from aitia.datasets.errors import InputError
from aitia.reports.pages.suite import CaseResult, confusion, score, scores
from aitia.reports.verdict.rules import Verdict
from aitia.training.environments.spec import probe
from aitia.workflows.suite import cases
from aitia.workflows.suite.cases import Case, all_cases, choose_cases, truths

RATES: dict[str, Any] = {"uncorrected": None, "all_corrected": None, "outer_share": None}
RESULT = CaseResult(
    "a", "coin-run", "open", "outer", "why", "outer", None, "outer", 8, (), RATES, {}, None, None, 10.0, "a/index.html"
)


def test_there_are_enough_cases_of_every_kind_and_their_tasks_are_valid() -> None:
    cases = all_cases()
    assert len(cases) >= 40 and len({case.name for case in cases}) == len(cases)
    assert {case.planted for case in cases} == set(Verdict) - {Verdict.UNDETERMINED}
    assert all(case.why and case.task().name == case.name for case in cases)
    halves = [case.half for case in cases]
    assert abs(halves.count("open") - halves.count("held-out")) <= 1


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_the_environments_of_a_case_keep_the_contract(case: Case) -> None:
    task = case.task()
    for env in (task.training_env, task.evaluation_env("test")):
        assert "intended_reward" in probe(env).keys


def test_every_case_has_its_truth_and_the_truth_is_of_this_very_task() -> None:
    for case in all_cases():
        assert truths()[case.name]["task"] == case.identity(), case.name
        assert truths()[case.name]["seeds"] == 16


def test_an_unknown_case_is_named() -> None:
    with pytest.raises(InputError, match="coin-run-clean"):
        choose_cases(["coin-run-claen"])
    assert {case.family for case in choose_cases(["boat-race"])} == {"boat-race"}


def test_the_score_counts_as_it_says() -> None:
    results = [
        RESULT,
        replace(RESULT, truth="inner"),  # outer for inner
        replace(RESULT, verdict="undetermined", half="held-out"),
        replace(RESULT, truth="mixed", half="held-out"),  # wrong, and not confidently
        replace(RESULT, truth="undetermined"),  # nothing to be judged by
    ]
    found = score(results)
    assert (found["cases"], found["judged"], found["confidently_wrong"]) == (5, 4, 1)
    assert found["right"] == pytest.approx(1 / 3) and found["undetermined"] == pytest.approx(1 / 4)
    assert scores(results)["held-out"]["confidently_wrong"] == 0
    assert confusion(results)["inner"]["outer"] == 1 and "aligned" not in confusion(results)
    assert score([])["right"] is None


@pytest.mark.slow
def test_a_case_of_the_coin_line_runs_and_is_kept(
    tmp_path: Path, aitia_command: Callable[..., Finished], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The exact model says: absolute positions, right rewards, and yet the right end (inner); a seventh of the steps
    of the suite shows it."""
    monkeypatch.setattr(cases, "_AGENT", {"total_timesteps": 6144})
    for _ in range(2):
        done = aitia_command("suite", "--cases", "coin-line-absolute", "--out", tmp_path, "--workers", 0)
        assert done.code == 0, done.err
    assert "case 1 of 1" not in done.err, "a finished case was run again"
    found = json.loads((tmp_path / "suite.json").read_text())
    (case,) = found["cases"]
    assert case["verdict"] == "inner" and case["rule"] == 6 and case["right"] is True
    assert set(case["framing1"]) == {"not_applicable"}, "the coin or the right end? Both extend the training reward"
    page = (tmp_path / "index.html").read_text()
    assert "Are the verdicts right?" in page and "coin-line-absolute/reports/test/index.html" in page
