"""Clusters of failures: which plays count, that selection does not raise rates, and pages of several clusters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from made_report import CAPABLE, made_findings, seed_rates, write_report

from aitia.datasets.bank import Bank, Selection, ensemble_rates
from aitia.datasets.outcomes import Outcomes, failure_ids
from aitia.datasets.schema import BANK_OUTCOMES, EPISODES, MASKS
from aitia.reports.pages.findings import deciding, set_verdict
from aitia.reports.verdict.rules import Evidence, Thresholds, Verdict, decide

DECLARED = Outcomes(desired=["arrow"], misbehaved=["corner"])


def plays(rates: np.ndarray[Any, np.dtype[np.float64]], repeats: int, seeds: int = 5) -> pa.Table:
    """Plays of agents that misbehave in episode e with probability `rates[e]`, and do well in training."""
    generator = np.random.default_rng(0)
    rows = [
        {
            "seed": seed, "part": part, "episode": episode, "repeat": repeat, "length": 1, "reward": 0.0,
            "outcome": "corner" if part == "test" and generator.random() < rate else "arrow", "context": "0",
        }
        for seed in range(seeds)
        for part in ("test", "train")
        for episode, rate in enumerate(rates)
        for repeat in range(repeats)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=EPISODES)


def test_of_an_agent_count_episodes_that_another_failed_and_never_the_first_play() -> None:
    chosen = Selection.of(["0-3", "1-3", "1-7", "2-8"], seeds=[0, 1, 2])
    assert chosen.episodes == {0: {3, 7, 8}, 1: {3, 8}, 2: {3, 7}}
    table = plays(np.zeros(10), repeats=2, seeds=3)
    counted = chosen.plays(table.filter(pa.compute.field("seed") == 1), 1)
    test = counted.filter(pa.compute.field("part") == "test")
    assert set(zip(test["episode"].to_pylist(), test["repeat"].to_pylist(), strict=True)) == {(3, 1), (8, 1)}
    assert counted.filter(pa.compute.field("part") == "train").num_rows == 20, "training episodes all count"


def test_a_cluster_of_chance_failures_has_the_rate_of_chance() -> None:
    """Every play misbehaves with 30%, so failures are chance; counted naively their episodes misbehave far more."""
    table = plays(np.full(200, 0.3), repeats=4)
    failures = failure_ids(DECLARED.failures(table))
    selected = ensemble_rates(table, DECLARED, Selection.of(failures, list(range(5))))
    assert np.mean([rates.misbehaviour or 0.0 for rates in selected]) == pytest.approx(0.3, abs=0.03)
    own = {(int(name.split("-")[0]), int(name.split("-")[1])) for name in failures}
    naive = [
        row["outcome"] == "corner"
        for row in table.to_pylist()
        if row["part"] == "test" and (row["seed"], row["episode"]) in own
    ]
    assert np.mean(naive) > 0.4, "the naive count is biased, or this test shows nothing"


def test_two_kinds_of_episodes_have_their_own_rates() -> None:
    rates = np.array([0.9, 0.5] * 60)
    table = plays(rates, repeats=5)
    kinds: list[list[str]] = [[], []]
    for name in failure_ids(DECLARED.failures(table)):
        kinds[int(name.split("-")[1]) % 2].append(name)
    for kind, rate in zip(kinds, (0.9, 0.5), strict=True):
        found = ensemble_rates(table, DECLARED, Selection.of(kind, list(range(5))))
        assert np.mean([r.misbehaviour or 0.0 for r in found]) == pytest.approx(rate, abs=0.03)


def test_a_seed_without_selected_plays_is_left_out() -> None:
    table = plays(np.ones(4), repeats=2, seeds=3)
    found = ensemble_rates(table, DECLARED, Selection.of(["0-1", "0-2"], seeds=[0, 1, 2]))
    assert [rates.seed for rates in found] == [1, 2], "nobody but agent 0 failed in its episodes"


def test_a_cluster_sees_its_own_order_and_what_is_shared() -> None:
    rows = [
        {"member": name, "seed": 0, "order": order, "size": 1, "groups": ["g"], "variant": "", "cluster": cluster}
        for name, order, cluster in (
            ("a", "attribution", 0), ("b", "attribution", 1), ("c", "attribution", None), ("d", "random", None)
        )
    ]  # fmt: skip
    bank = Bank(pa.Table.from_pylist(rows, schema=MASKS), BANK_OUTCOMES.empty_table())
    part = Selection({})
    seen = {number: bank.of_cluster(number, part).masks["member"].to_pylist() for number in (0, 1)}
    assert seen == {0: ["a", "d"], 1: ["b", "d"]}
    assert bank.of_cluster(0, None).masks["member"].to_pylist() == ["c", "d"], "the whole set's"


def test_rule_3_speaks_of_the_whole_set() -> None:
    rare = Evidence(seed_rates([0.01, 0.02, 0.0, 0.01, 0.02]), (), CAPABLE, largest_error=1.0)
    assert decide(rare, Thresholds()).verdict is Verdict.ALIGNED
    of_cluster = Evidence(rare.uncorrected, (), CAPABLE, largest_error=1.0, of_cluster=True)
    assert decide(of_cluster, Thresholds()).rule == 4


def test_a_set_has_the_verdict_of_most_failures_and_the_rule_that_gave_it() -> None:
    stays = Evidence(seed_rates([0.9] * 5), seed_rates([0.88, 0.9, 0.9, 0.91, 0.9]), CAPABLE, largest_error=1.0)
    outer, inner = made_findings(), made_findings(stays)
    halfway = seed_rates([0.60, 0.58, 0.61, 0.59, 0.62])
    whole = made_findings(Evidence(seed_rates([0.9] * 5), halfway, CAPABLE, largest_error=1.0))
    clusters = {0: outer, 1: inner}
    verdict = set_verdict(whole.decision, {"outer": 30, "inner": 20})
    assert verdict == "outer" and deciding(whole, clusters, verdict) is outer
    assert deciding(outer, clusters, verdict) is outer, "its own, where it has that verdict"
    tie = set_verdict(whole.decision, {"outer": 25, "inner": 25})
    assert tie == "undetermined" and deciding(whole, clusters, tie) is whole


def test_pages_of_several_clusters(tmp_path: Path) -> None:
    made = write_report(tmp_path / "run", failures=10, pages=2, clusters=2)
    index = (made.folder / "index.html").read_text()
    assert "2 kinds of influence profile" in index
    assert "5 of 10 are outer, 5 of 10 are inner." in index
    for number in (0, 1):
        page = (made.folder / "clusters" / f"{number}.html").read_text()
        assert f'href="clusters/{number}.html"' in index
        mine = [entry["failure"] for entry in made.entries if entry["cluster"] == number]
        others = [entry["failure"] for entry in made.entries if entry["cluster"] != number]
        assert all(f'"{name}"' in page for name in mine) and not any(f'"{name}"' in page for name in others)
        assert "never the play that made a failure" in page
    assert 'href="edits-0.yaml"' in index and 'href="edits-1.yaml"' not in index, "cluster 1 is inner"
    assert 'href="edits.yaml"' in index, "of the whole set"
