"""Commands on pages can be pasted; points sit on their rows, two points are no line; two framings are explained."""

from __future__ import annotations

import html
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from made_report import made_findings, write_report

from aitia.datasets.schema import seed_and_episode
from aitia.reports.figures.evidence import correction_curve, shares
from aitia.reports.figures.influence import timeline_chart
from aitia.reports.measures.timeline import Stretch
from aitia.reports.pages.place import Place
from aitia.reports.statistics import Interval
from aitia.reports.verdict.rules import Thresholds, Verdict
from aitia.reports.verdict.words import differing


def marks(spec: dict[str, Any]) -> list[str]:
    """Return the marks of a figure's layers that have something to draw."""
    found = []
    for layer in spec["layer"]:
        if layer.get("data", {"values": [{}]})["values"]:
            mark = layer["mark"]
            found.append(mark["type"] if isinstance(mark, dict) else mark)
    return found


def test_commands_come_back_from_a_shell_as_they_were_meant() -> None:
    place = Place("/runs/my run's", "/runs/my run's/reports/new set", "new set", "/tasks/a $task.yaml")
    train, evaluate, compare = (shlex.split(text) for text in place.train_again("edits.yaml").splitlines())
    corrected = "/runs/my run's-corrected-new set"
    file = "/runs/my run's/reports/new set/edits.yaml"
    assert train == ["aitia", "train", "/tasks/a $task.yaml", "--edits", file, "--out", corrected]
    assert evaluate == ["aitia", "evaluate", corrected, "--set", "new set"]
    assert compare == ["aitia", "compare", "/runs/my run's", corrected, "--set", "new set"]
    assert Place("r", "r/reports/test", "test").train_again("e").startswith("aitia train TASK.yaml --edits")


def test_each_edits_file_is_trained_into_a_folder_of_its_own() -> None:
    places = [Place("/runs/r/", "/runs/r/reports/x", name) for name in ("test", "far")]
    names = ("edits.yaml", "edits-0.yaml", "edits-1.yaml")
    outs = [shlex.split(place.train_again(name).splitlines()[0])[-1] for place in places for name in names]
    assert outs[:3] == ["/runs/r-corrected", "/runs/r-corrected-cluster-0", "/runs/r-corrected-cluster-1"]
    assert outs[3:] == [out.replace("corrected", "corrected-far") for out in outs[:3]]


def test_every_page_with_a_verdict_has_the_commands_with_the_real_paths(tmp_path: Path) -> None:
    folder = write_report(tmp_path / "run").folder
    for name in ("index.html", "clusters/0.html", "failures/0-0.html"):
        found = re.search(r'<pre class="command"[^>]*>(.*?)</pre>', (folder / name).read_text(), re.S)
        assert found is not None, name
        words = shlex.split(html.unescape(found[1]).splitlines()[0])
        assert words[:3] == ["aitia", "train", "/tasks/made.yaml"]
        assert words[4] == "/runs/made run/reports/test/edits.yaml"


def test_points_of_the_numbers_sit_on_their_rows() -> None:
    rate = Interval(0.5, 0.4, 0.6)
    chart = shares({"misbehaviour": (rate, rate), "desired": (rate, rate)}, rate, Thresholds())
    rows = [record["line"] for record in chart.spec["data"]["values"]]
    assert len(rows) == len(set(rows)) == 5, "a row each"
    for layer in chart.spec["layer"]:
        assert "yOffset" not in layer["encoding"] and layer["encoding"]["y"]["field"] == "line"
    assert chart.spec["layer"][0]["encoding"]["y"]["sort"] == rows


def test_two_points_are_no_line_and_three_are() -> None:
    findings = made_findings()
    ends = tuple(point for point in findings.curve if point.order in ("none", "all"))
    two = marks(correction_curve(ends, Thresholds(), "groups").spec)
    assert "line" not in two and {"point", "rule"} <= set(two)
    assert "line" in marks(correction_curve(findings.curve, Thresholds(), "groups").spec)
    stretches = [Stretch(n, n, Interval(-1.0, -2.0, 0.0)) for n in range(3)]
    assert not {"line", "area"} & set(marks(timeline_chart({"mean": stretches[:2]}).spec))
    assert {"line", "area"} <= set(marks(timeline_chart({"mean": stretches}).spec))


@pytest.mark.parametrize("number", [0, 1])
def test_where_the_framings_differ_a_page_says_what_each_asks(tmp_path: Path, number: int) -> None:
    made = write_report(tmp_path / "run")
    entry = made.entries[number]
    assert seed_and_episode(entry["failure"]) and entry["verdict"] == "outer"
    page = (made.folder / "failures" / f"{entry['failure']}.html").read_text()
    assert ("Framing 1.5 what caused it" in page) == (entry["framing1"] == "inner")
    index = (made.folder / "index.html").read_text()
    count = sum(entry["framing1"] == "inner" for entry in made.entries)
    assert f"Of {count} failures Framing 1 says <b>inner</b>" in index


@pytest.mark.parametrize("basis", [None, "corrective", "arbitrary"])
def test_what_two_framings_say_together_keeps_to_its_evidence(basis: str | None) -> None:
    outer, inner = differing("inner", "outer", basis), differing("outer", "inner", basis)
    assert outer is not None and inner is not None
    assert ("wrong rewards in training made" in outer) == (basis != "arbitrary")
    assert ("does not say that those rewards were wrong" in outer) == (basis == "arbitrary")
    assert ("trained with correct rewards" in inner) == (basis != "arbitrary")
    assert differing("outer", "outer", basis) is None and differing("inner", "undetermined", basis)


def test_every_verdict_that_is_not_what_framing_1_says_has_words() -> None:
    for one in ("inner", "outer"):
        for verdict in Verdict:
            assert (differing(one, str(verdict), None) is None) == (one == str(verdict)), (one, verdict)
