"""Verdicts in words: two sentences with the numbers, what would change them, what to do next; the file of edits."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_report import AFTER, BEFORE, CAPABLE, made_findings, seed_rates

from aitia.datasets.bank import Bank
from aitia.datasets.schema import MASKS
from aitia.reports.measures.budgets import Budget
from aitia.reports.measures.factorial import analyse
from aitia.reports.pages.advice import Surroundings, explain
from aitia.reports.pages.corrections import smallest_correction, write_corrections
from aitia.reports.pages.findings import SetFindings
from aitia.reports.statistics import Interval, seeds_for_lower_end
from aitia.reports.verdict.rules import ArbitraryTrial, Evidence, OutcomeRate, Tampering, open_margin
from aitia.training.edits.file import Edits, read_edits
from aitia.training.environments.spec import EnvSpec

OUTER = Evidence(BEFORE, AFTER, CAPABLE, largest_error=1.0)
SAME = seed_rates([0.86, 0.87, 0.86, 0.88, 0.86])
HALF = seed_rates([0.58, 0.57, 0.58, 0.59, 0.57])
WIDE = seed_rates([0.1, 0.6, 0.2, 0.55, 0.35])
EASY = tuple(rates._replace(desired_train=0.4) for rates in AFTER)
RARE = seed_rates([0.0, 0.8, 0.1, 0.6, 0.0])
TRIAL = ArbitraryTrial(2, 20.0, 20.0, 0.05, AFTER, BEFORE, 20.0, 20.0)

CASES: dict[str, tuple[Evidence, int, list[str]]] = {
    "tampering": (replace(OUTER, tampering=Tampering(3.0, 0.1, 10.0)), 1, ["3.00", "25%"]),
    "capability": (replace(OUTER, outcomes=(OutcomeRate("arrow", 0.1, 0.3),)), 2, ["10%", "30%"]),
    "aligned": (replace(OUTER, uncorrected=seed_rates([0.01, 0.0, 0.02, 0.01, 0.01])), 3, ["1%", "5%"]),
    "rare": (replace(OUTER, uncorrected=RARE, corrected=()), 4, ["30%", "20%"]),
    "unknown": (replace(OUTER, largest_error=None), 5, ["90%"]),
    "arbitrary": (replace(OUTER, largest_error=None, arbitrary=(TRIAL,)), 5, ["2 groups", "90%"]),
    "nothing wrong": (replace(OUTER, largest_error=0.0, corrected=()), 6, ["90%", "1e-09"]),
    "incompetent": (replace(OUTER, corrected=EASY), 7, ["98%", "40%"]),
    "outer": (OUTER, 8, ["3%", "90%", "97%", "50%"]),
    "inner": (replace(OUTER, corrected=SAME), 9, ["87%", "90%", "4%", "20%"]),
    "mixed": (replace(OUTER, corrected=HALF), 10, ["58%", "36%", "20%", "50%"]),
    "open": (replace(OUTER, corrected=WIDE), 11, ["36%", "90%", "50%", "20%"]),
    "not verified": (replace(OUTER, corrected=()), 11, ["90%"]),
    "few seeds": (replace(OUTER, uncorrected=BEFORE[:3], corrected=AFTER[:3]), 11, ["90%", "3 paired"]),
}


@pytest.mark.parametrize("name", CASES)
def test_every_verdict_is_two_plain_sentences_with_its_numbers(name: str) -> None:
    evidence, rule, numbers = CASES[name]
    findings = made_findings(evidence)
    found = explain(findings, Surroundings())
    assert findings.decision.rule == rule
    for number in numbers:
        assert number in " ".join(found.sentences), found.sentences
    if rule not in (2, 5, 7, 11):  # those quote the rule's own reason
        for sentence in found.sentences:
            assert sentence.endswith(".") and not re.search(r"\. [A-Z]", sentence), sentence
    assert found.would_change.startswith(("It would", "Its cause would", "The rates would"))
    assert found.next_steps and all(step.endswith(".") for step in found.next_steps)


def test_a_set_without_failures_says_so() -> None:
    found = explain(made_findings(), Surroundings(), "undetermined")
    assert found.title == "undetermined" and "no failure to explain" in found.sentences[1]


def test_outer_says_how_much_to_correct_and_what_would_not_be_outer() -> None:
    found = explain(made_findings(), Surroundings(corrected=24, correction=Interval(0.03, 0.02, 0.04)))
    assert found.next_steps == (
        "Correct the rewards of 24 groups (the smallest verified set, which leaves 3% [2%, 4%] misbehaving): "
        "the edits file lists them.",
    )
    assert "more than 45% of the competent plays" in found.would_change, "half of .90"


def coverage(removes: bool) -> Budget:
    rate = Interval(0.1, 0.0, 0.2)
    return Budget("coverage", removes, None, None, rate, rate, rate, rate, None)


def test_inner_names_levels_and_architectures_to_vary() -> None:
    inner = made_findings(CASES["inner"][0])
    around = Surroundings({"moved": 36, "size": 7}, {"moved": 1000, "size": 7}, worst=["850", "12"])
    steps = explain(inner, around).next_steps
    assert "moved (36 in training, 1000 here)" in steps[0] and "size" not in steps[0]
    assert steps[1].endswith("850, 12.") and "net_arch" in steps[2]
    rates = np.array([[[0.9, 0.9], [0.8, 0.8]], [[0.5, 0.5], [0.1, 0.1]]])
    measured = replace(inner, budgets=(coverage(True),), factorial=analyse(rates, ["as it is", "wide"]))
    steps = explain(measured, replace(around, coverage={"moved": 500}, worst=())).next_steps
    assert "moved: 500" in steps[0] and "10% [0%, 20%]" in steps[0] and "which removes it" in steps[0]
    assert steps[1] == "Of the inductive biases tried, “wide” misbehaves least (10%)."
    assert "does not remove it" in explain(replace(measured, budgets=(coverage(False),)), around).next_steps[0]


def test_mixed_says_both() -> None:
    steps = explain(made_findings(CASES["mixed"][0]), Surroundings(corrected=96)).next_steps
    assert steps[0].startswith("Correct the rewards of 96 groups (every wrong reward)") and "levels" in steps[1]


def test_undetermined_says_how_many_seeds() -> None:
    findings = made_findings(CASES["open"][0])
    margin = open_margin(findings.evidence, findings.thresholds)
    assert margin is not None and margin.seeds is not None and margin.seeds > 5
    (step,) = explain(findings, Surroundings()).next_steps
    assert f"about {margin.seeds} in all (now 5)" in step and margin.label in step
    (step,) = explain(made_findings(CASES["few seeds"][0]), Surroundings()).next_steps
    assert "at least 5 paired seeds" in step and "(now 3)" in step
    (step,) = explain(made_findings(CASES["not verified"][0]), Surroundings()).next_steps
    assert "aitia verify" in step


def test_a_rare_failure_is_told_the_seeds_that_would_lift_its_lower_end() -> None:
    (step,) = explain(made_findings(CASES["rare"][0]), Surroundings()).next_steps
    needed = seeds_for_lower_end([0.0, 0.8, 0.1, 0.6, 0.0], 0.2)
    assert needed is not None and needed > 5 and f"{needed} seeds in all (now 5)" in step
    rarer = replace(OUTER, uncorrected=seed_rates([0.0, 0.3, 0.1, 0.2, 0.0]), corrected=())
    (step,) = explain(made_findings(rarer), Surroundings()).next_steps
    assert step.startswith("More seeds do not help at this rate")


def test_seeds_for_a_lower_end_are_the_fewest_that_clear_it() -> None:
    rates = [0.3, 0.5, 0.4, 0.6]  # mean .45, standard deviation .129; margin .15
    assert seeds_for_lower_end(rates, 0.3) == 6  # t(5) .975 = 2.571: .1355; with 5: 2.776 * .129 / 2.236 = .1603
    assert seeds_for_lower_end(rates, 0.45) is None
    assert seeds_for_lower_end([0.3, 0.3], 0.2) == 2 and seeds_for_lower_end([0.9], 0.2) is None


def bank(*masks: dict[str, Any]) -> Bank:
    empty = {**dict.fromkeys(MASKS.names), "seed": 0, "variant": ""}
    return Bank(pa.Table.from_pylist([{**empty, **mask} for mask in masks], schema=MASKS), pa.table({}))


def removing(findings: SetFindings, kind: Any, groups: int, removes: bool = True) -> SetFindings:
    rate = Interval(0.03, 0.02, 0.04)
    return replace(findings, budgets=(Budget(kind, removes, groups, 30.0, rate, rate, rate, rate, None),))


def test_the_file_of_edits_holds_the_smallest_verified_set_most_suspected_first(tmp_path: Path) -> None:
    findings = removing(made_findings(), "corrective", 3)
    masks = bank(
        {"member": "a", "order": "attribution", "size": 3, "groups": ["7", "73", "=1"]},
        {"member": "r", "order": "random", "size": 3, "groups": ["1", "2", "3"]},
    )
    correction = smallest_correction(findings, masks, ["73", "=1", "7", "1"])
    assert correction is not None and correction.groups == ("73", "=1", "7") and correction.reward_events == 30.0
    write_corrections(tmp_path / "edits.yaml", correction, findings, {"task": "maze\n# a: b"}, "context")
    text = (tmp_path / "edits.yaml").read_text()
    assert "3% [2%, 4%]" in text and "aitia train" in text
    read = read_edits(tmp_path / "edits.yaml")
    assert (read.grouping, read.groups, read.correct) == ("context", ["73", "=1", "7"], "intended")
    assert read.source == {"task": "maze\n# a: b"}


def test_the_file_of_edits_is_an_edit_that_changes_these_groups_only(tmp_path: Path) -> None:
    findings = removing(made_findings(), "corrective", 3)
    masks = bank({"member": "a", "order": "attribution", "size": 3, "groups": ["73"]})
    write_corrections(tmp_path / "edits.yaml", smallest_correction(findings, masks, ["73"]), findings, {}, "context")
    edit = read_edits(tmp_path / "edits.yaml").edit(EnvSpec("aitia/ArrowMaze-v0"))
    rows = pa.table(
        {"context": ["73", "74"], "reward": [1.0, 1.0], "intended_reward": [0.0, 0.0], "terminated": [True, True]}
    )
    assert edit.rewards(rows).tolist() == [0.0, 1.0]


def test_what_a_run_was_trained_with_is_corrected_again_beside_what_is_still_wrong(tmp_path: Path) -> None:
    findings = removing(made_findings(), "corrective", 3)
    correction = smallest_correction(
        findings, bank({"member": "a", "order": "attribution", "size": 3, "groups": ["73"]}), []
    )
    write_corrections(
        tmp_path / "edits.yaml", correction, findings, {}, "context", Edits(groups=["5", "6"], correct="intended")
    )
    assert read_edits(tmp_path / "edits.yaml").groups == ["73", "5", "6"]
    other = Edits(grouping="component", groups=["bonus"], correct="intended")
    write_corrections(tmp_path / "edits.yaml", correction, findings, {}, "context", other)
    assert read_edits(tmp_path / "edits.yaml").groups == ["73"]
    assert "1 group (component): bonus" in (tmp_path / "edits.yaml").read_text()


def test_where_no_small_set_removes_it_all_wrong_groups_are_listed() -> None:
    findings = removing(made_findings(CASES["mixed"][0]), "corrective", 6, removes=False)
    masks = bank({"member": "a", "order": "all", "size": 6, "groups": list("abcdef")})
    correction = smallest_correction(findings, masks, list("fedcba"))
    assert correction is not None and "".join(correction.groups) == "fedcba" and not correction.removes


def test_arbitrary_edits_say_what_each_group_pays(tmp_path: Path) -> None:
    findings = removing(made_findings(CASES["arbitrary"][0]), "arbitrary", 2)
    masks = bank({"member": "x", "order": "arbitrary", "size": 2, "groups": ["5", "6"], "values": [0.0, 1.5]})
    write_corrections(tmp_path / "edits.yaml", smallest_correction(findings, masks, []), findings, {}, "transition")
    read = read_edits(tmp_path / "edits.yaml")
    assert read.values == {"5": 0.0, "6": 1.5} and read.groups == ["5", "6"] and read.grouping == "transition"
    assert "Nobody said" in (tmp_path / "edits.yaml").read_text()


def test_an_inner_report_removes_the_file_of_an_earlier_one(tmp_path: Path) -> None:
    (tmp_path / "edits.yaml").write_text("groups: []\n")
    findings = removing(made_findings(CASES["inner"][0]), "corrective", 6)
    correction = smallest_correction(findings, bank(), [])
    write_corrections(tmp_path / "edits.yaml", correction, findings, {}, "context")
    assert correction is None and not (tmp_path / "edits.yaml").exists()
