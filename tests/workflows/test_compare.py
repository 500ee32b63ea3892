"""Two runs before and after a fix: paired plays and rates with known answers, the page, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Finished
from scipy import stats

import aitia
from aitia.datasets.outcomes import Outcomes, SeedRates
from aitia.datasets.schema import EPISODES
from aitia.reports.measures.paired import paired_rates
from aitia.reports.pages.compare import ComparedRun, compare_runs, in_points, write_comparison
from aitia.reports.statistics import Interval

Command = Callable[..., Finished]
MARKUP = "<script>alert('1')</script>"
DECLARED = Outcomes(desired=["goal"], misbehaved=[MARKUP])
KINDS = {"g": "goal", "m": MARKUP, "t": "timeout"}


def plays(*seeds: str, context: str = "5") -> pa.Table:
    """Return an episodes table: of each seed one letter a play, two repeats an episode; and a random policy's."""
    rows = [
        {"seed": seed, "part": "test", "episode": i // 2, "repeat": i % 2, "outcome": KINDS[letter], "context": context}
        for seed, letters in [*enumerate(seeds), (-1, "mmmm")]
        for i, letter in enumerate(letters)
    ]
    rows += [{**row, "part": "train", "outcome": MARKUP} for row in rows]
    return pa.Table.from_pylist(rows, schema=EPISODES)


def run_of(name: str, episodes: pa.Table, **task: Any) -> ComparedRun:
    values = {"name": name, "env": "x", "outcomes": DECLARED.model_dump(), "seeds": [0, 1, 2], "edits": None, **task}
    return ComparedRun(name, values, {"torch": "1"}, episodes, None, Path("nowhere"))


def test_failures_are_paired_by_seed_episode_and_repeat() -> None:
    """Known answers: two episodes of two repeats; seed 2 is only in A. Rows in another order make no difference."""
    before = run_of("a", plays("mmmg", "tmgg", "mmmm"))
    table = plays("gmmm", "mmgt")
    after = run_of("b", table.take(list(reversed(range(table.num_rows)))))
    found, pairs = compare_runs(before, after, "test")
    assert found["seeds"] == {"paired": [0, 1], "only_a": [2], "only_b": []}
    assert pairs["change"].to_pylist() == ["no_longer", "still", "still", "new", "new", "still", "neither", "neither"]
    assert found["plays"] == {"pairs": 8, "no_longer": 1, "new": 2, "still": 3, "neither": 2}
    assert found["failures"]["counts"] == {
        "a": 2, "b": 2, "no_longer": 1, "no_longer_desired": 1, "still": 1, "new": 1,
    }  # fmt: skip
    entries = {entry["failure"]: entry for entry in found["failures"]["entries"]}
    assert {name: entry["change"] for name, entry in entries.items()} == {
        "0-0": "no_longer", "0-1": "still", "1-0": "new",
    }  # fmt: skip
    assert (entries["0-0"]["rate_a"], entries["0-0"]["rate_b"]) == (1.0, 0.5)
    assert (entries["1-0"]["outcome_a"], entries["1-0"]["rate_a"]) == ("timeout", 1.0)
    assert found["other_contexts"] == 0
    other, _ = compare_runs(before, run_of("b", plays("gmmm", "mmgt", context="6")), "test")
    assert other["other_contexts"] == 8


def test_the_paired_difference_has_the_t_interval_of_the_differences() -> None:
    """Beside scipy's paired t; a seed that is never competent leaves the misbehaviour, not the competence."""
    first, second = [0.9, 0.8, 0.7, 0.95], [0.2, 0.4, 0.1, 0.3]
    before = [SeedRates(seed, m, 1.0, 1.0 - m, None) for seed, m in enumerate([*first, 0.5])]
    after = [SeedRates(seed, m, 0.9, 0.9 - m, None) for seed, m in enumerate(second)]
    found = paired_rates(before, [*after, SeedRates(4, None, 0.0, 0.0, None)])
    expected = stats.ttest_rel(second, first).confidence_interval(0.95)
    rate = found["misbehaviour_rate"]
    assert rate["seeds"] == 4 and rate["change"] == "fell"
    assert rate["difference"]["value"] == pytest.approx(-0.5875)
    assert (rate["difference"]["low"], rate["difference"]["high"]) == pytest.approx(tuple(expected))
    assert rate["a"]["value"] == pytest.approx(0.77) and rate["b"]["value"] == pytest.approx(0.25)
    assert found["competence"]["seeds"] == 5 and found["competence"]["difference"]["value"] == pytest.approx(-0.28)
    assert found["competence"]["change"] is None, "0.1, 0.1, 0.1, 0.1 and 1.0: the interval holds zero"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (Interval(-0.851, -0.9, -0.8), "-85 points [-90, -80]"),
        (Interval(0.0, -0.001, 0.2), "0 points [0, +20]"),
        (Interval(0.1, None, None), "+10 points (no interval)"),
        (Interval(None, None, None), "not measured"),
    ],
)
def test_differences_are_written_in_points(change: Interval, text: str) -> None:
    assert in_points(change) == text


def test_what_differs_is_said_and_every_text_is_escaped(tmp_path: Path) -> None:
    edits = {"grouping": "context", "groups": [MARKUP], "correct": "intended", "source": {"run": "before"}}
    agent = {"algorithm": "PPO", "hyperparameters": {"gamma": 0.97, "policy_kwargs": {"net_arch": [64, 64]}}}
    wider = {"algorithm": "PPO", "hyperparameters": {"gamma": 0.97, "policy_kwargs": {"net_arch": [128]}}}
    table = plays("mmgg", "mmgg", "mmgg", context=MARKUP)
    before = run_of(MARKUP, table, agent=agent, train_kwargs={}, env=MARKUP)
    after = run_of("b", table, agent=wider, train_kwargs={"levels": MARKUP}, edits=edits, env=MARKUP)
    found, pairs = compare_runs(before, after, MARKUP)
    assert {row["key"]: row["a"] for row in found["task_differences"]} == {
        "name": MARKUP, "agent.hyperparameters.policy_kwargs.net_arch": [64, 64], "train_kwargs.levels": None,
        "edits": None,
    }  # fmt: skip
    assert found["b"]["edits"].startswith("as intended in 1 group (context): <script>")
    assert found["rates"]["misbehaviour_rate"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert found["words"][0].startswith("Misbehaviour, of competent plays, did not change: 50%")
    versions = dict.fromkeys(("aitia", "git_sha", "written", "python", "torch", "stable-baselines3"), "1")
    write_comparison(tmp_path, [before, after], found, pairs, versions)
    page = (tmp_path / "index.html").read_text()
    assert "<script" not in page and page.count("&lt;script&gt;") > 8
    assert json.loads((tmp_path / "compare.json").read_text()) == found


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


@pytest.mark.slow
def test_a_fix_is_seen_before_and_after(
    small_run: Path, fixed_run: Path, tmp_path: Path, aitia_command: Command
) -> None:
    """The small outer twin, and its rewards corrected: every failure of the three common seeds is gone."""
    done = aitia_command("compare", small_run, fixed_run, "--out", tmp_path / "compared")
    assert done.code == 0 and str(tmp_path / "compared" / "index.html") in done.out, done.err
    found = json.loads((tmp_path / "compared" / "compare.json").read_text())
    assert found["seeds"] == {"paired": [0, 1, 2], "only_a": [3, 4], "only_b": []}
    assert found["rates"]["misbehaviour_rate"]["change"] == "fell"
    assert found["rates"]["desired_rate"]["change"] == "rose"
    verdicts = json.loads((small_run / "reports/test/verdicts.json").read_text())
    counts = found["failures"]["counts"]
    assert counts["a"] == sum(entry["seed"] < 3 for entry in verdicts) > 0 and counts["new"] == 0
    assert counts["no_longer"] > 0.9 * counts["a"]
    assert found["a"]["verdict"]["verdict"] == "outer" and found["b"]["verdict"] is None
    assert {row["key"] for row in found["task_differences"]} == {"seeds", "edits"}
    pairs = pq.read_table(tmp_path / "compared" / "pairs.parquet")
    assert pairs.num_rows == 3 * 12 * 4
    assert set(pairs.column_names) >= {"seed", "episode", "repeat", "outcome_a", "outcome_b", "change"}
    page = tmp_path / "compared" / "index.html"
    links = _Links()
    links.feed(page.read_text())
    assert sum("failures/" in link for link in links.found) == counts["a"]
    for link in (link for link in links.found if not link.startswith("#")):
        assert (page.parent / link).resolve().is_file(), f"a link leads nowhere: {link}"
    assert "no report yet" in page.read_text()


@pytest.mark.slow
def test_a_run_equals_itself_and_is_written_beside_its_report(small_run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "again"
    shutil.copytree(small_run, copy, ignore=shutil.ignore_patterns("transitions", "checkpoints", ".parts", "frames"))
    for _ in range(2):  # a comparison may be written again
        found = aitia.compare(small_run, copy)
    assert found["task_differences"] == found["version_differences"] == []
    assert found["a"]["verdict"] == found["b"]["verdict"] and found["failures"]["counts"]["no_longer"] == 0
    assert found["rates"]["competence"]["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert (copy / "reports/test/compare" / small_run.name / "index.html").is_file()


@pytest.mark.slow
def test_runs_that_were_asked_different_questions_are_refused(
    small_run: Path, tmp_path: Path, aitia_command: Command
) -> None:
    copy = tmp_path / "other"
    shutil.copytree(small_run, copy, ignore=shutil.ignore_patterns("transitions", "checkpoints", ".parts", "frames"))
    manifest = json.loads((copy / "run.json").read_text())

    def refused(changes: dict[str, Any], *parts: str) -> None:
        (copy / "run.json").write_text(json.dumps({**manifest, "task": {**manifest["task"], **changes}}))
        done = aitia_command("compare", small_run, copy, "--out", tmp_path / "out")
        assert done.code == 2 and all(part in done.err for part in parts), done.err
        assert not (tmp_path / "out").exists()

    kwargs = manifest["task"]["test_kwargs"]
    refused({"test_kwargs": {**kwargs, "levels": 99}}, "cannot be compared", "arguments of the set `test`", "99")
    refused({"outcomes": {"desired": ["arrow"], "misbehaved": ["corner", "timeout"]}}, "outcomes", "timeout")
    refused({"evaluation": {"episodes": 8, "repeats": 4}}, "evaluation", "8")
    refused({"seeds": [7, 8]}, "no evaluated seed in common", "[0, 1, 2, 3, 4]")
    episodes = copy / "evaluations/test/episodes.parquet"
    pq.write_table(pq.read_table(episodes).slice(0, 100), episodes)
    refused({}, "plays could be paired", "aitia evaluate")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("precious")
    done = aitia_command("compare", small_run, small_run, "--out", tmp_path / "mine")
    assert done.code == 2 and "is no comparison" in done.err
    assert (tmp_path / "mine" / "index.html").read_text() == "precious"
    done = aitia_command("compare", small_run, tmp_path / "mine")
    assert done.code == 2 and "no run.json" in done.err
