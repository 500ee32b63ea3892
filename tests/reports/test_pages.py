"""Pages without a browser: text of environments stays text, figures are drawable, files say what pages say."""

from __future__ import annotations

import csv
import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import vl_convert
from made_report import MadeReport, write_report

from aitia.reports.figures.rows import island, rows_of

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)><!--<b>&amp;\"'\u2028\u2029]]>\x07"
_IN_SVG = {"svg", "rect", "g", "path", "text", "line", "tspan", "defs", "clipPath", "linearGradient", "stop", "title"}


class Structure(HTMLParser):
    """Elements with the names of their attributes, links, texts and scripts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.links: list[str] = []
        self.scripts: list[str] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag
        self.elements.append((tag, tuple(name for name, _ in attrs)))
        self.links += [value for name, value in attrs if name in ("href", "src") and value]

    def handle_data(self, data: str) -> None:
        if self._tag == "script" and data.strip():
            self.scripts.append(data)


def pages(made: MadeReport) -> list[Path]:
    return [made.folder / "index.html", *sorted(made.folder.glob("*/*.html"))]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> MadeReport:
    return write_report(tmp_path_factory.mktemp("plain") / "run", text="zz")


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> MadeReport:
    return write_report(tmp_path_factory.mktemp("hostile") / "run", text=HOSTILE)


def test_markup_in_every_field_changes_no_element_of_any_page(plain: MadeReport, hostile: MadeReport) -> None:
    for harmless, attacked in zip(pages(plain), pages(hostile), strict=True):
        assert Structure(attacked.read_text()).elements == Structure(harmless.read_text()).elements, attacked.name


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [found for item in value.values() for found in strings(item)]
    if isinstance(value, list):
        return [found for item in value for found in strings(item)]
    return [value] if isinstance(value, str) else []


def test_json_in_pages_holds_the_very_text_and_no_markup(hostile: MadeReport) -> None:
    for page in pages(hostile):
        found = [json.loads(script) for script in Structure(page.read_text()).scripts]
        drawn = HOSTILE.replace("\x07", "\ufffd")  # a picture holds no control characters
        assert any(text.endswith((HOSTILE, drawn)) for value in found for text in strings(value)), page.name
        for script in Structure(page.read_text()).scripts:
            assert not set(script) & set("<>&'\u2028\u2029")


def test_scripts_of_figures_hold_json_only(hostile: MadeReport) -> None:
    scripts = sorted((hostile.folder / "assets").glob("*-0.js"))
    assert len(scripts) > 3
    for path in scripts:
        text = path.read_text()
        assert not set(text.split("=", 1)[1]) & set("<>&'\u2028\u2029")
        json.loads(text.split("] = ", 1)[1].rstrip(";\n"))


def test_still_pictures_hold_no_markup_of_environments(hostile: MadeReport) -> None:
    stills = sorted((hostile.folder / "assets").glob("*.svg"))
    assert len(stills) > 3
    for path in stills:
        assert {element.tag.rpartition("}")[2] for element in ET.parse(path).iter()} <= _IN_SVG, path.name


def test_rows_come_back_from_csv_as_they_were(hostile: MadeReport) -> None:
    text = (hostile.folder / "assets" / "group-effects-0.csv").read_text()
    assert [row["group"] for row in csv.DictReader(io.StringIO(text, newline=""))] == hostile.groups


def test_no_cell_of_a_csv_file_is_a_formula() -> None:
    bad = ["=1+1", "+1+cmd", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-", "=-1"]
    good = ["850", "-3", "+4.5", "level 7", "a=b", ""]
    cells: list[list[str | float]] = [[text, -1.5] for text in [*bad, *good]]
    rows = rows_of(["=name", "number"], cells)
    header, *read = csv.reader(io.StringIO(rows.as_csv(), newline=""))
    assert header == ["'=name", "number"]
    assert [row[0] for row in read] == [*("'" + text for text in bad), *good]
    assert {row[1] for row in read} == {"-1.5"}, "numbers stay numbers"


def test_an_island_holds_no_number_that_json_does_not_have() -> None:
    with pytest.raises(ValueError):
        island(float("nan"))


def specifications(made: MadeReport) -> dict[str, Any]:
    shared = (made.folder / "assets").glob("*.js")
    texts = {path.stem: path.read_text() for path in shared if "aitiaCharts" in path.read_text()[:40]}
    found = {name: json.loads(text.split("] = ", 1)[1].rstrip(";\n")) for name, text in texts.items()}
    page = (made.folder / "failures" / "0-0.html").read_text()
    for name, text in re.findall(r'id="([\w-]+)">.*?<script type="application/json">(.*?)</script>', page, re.S):
        found[name] = json.loads(text)
    return found


@pytest.mark.parametrize("which", ["plain", "hostile"])
def test_every_figure_can_be_drawn(which: str, request: pytest.FixtureRequest) -> None:
    found = specifications(request.getfixturevalue(which))
    assert {"shares", "failure-counts", "correction-curve-0", "concentration-0", "group-effects-0", "top-groups",
            "influence-over-time", "influence-over-time-0", "episode-rewards"} <= found.keys()  # fmt: skip
    for name, specification in found.items():
        drawn = vl_convert.vegalite_to_svg(specification)
        assert drawn.count("<path") > 1, name


def test_every_figure_names_its_rows_and_says_what_it_shows(plain: MadeReport) -> None:
    for page in pages(plain):
        for figure in re.findall(r"<figure.*?</figure>", page.read_text(), re.S):
            caption = re.search(r"<figcaption>(.*?)</figcaption>", figure, re.S)
            assert caption and len(caption[1]) > 60 and re.search(r'href="[^"]+\.(csv|parquet|json)"', caption[1])


def test_the_library_is_shipped_once_and_pages_ask_nothing_of_a_network(plain: MadeReport) -> None:
    assert len([path for path in plain.folder.rglob("*") if path.stat().st_size > 400_000]) == 1
    for page in pages(plain):
        structure = Structure(page.read_text())
        assert not any(re.match(r"\w+:|//", link) for link in structure.links), page.name
        missing = [link for link in structure.links if not (page.parent / link.partition("#")[0]).exists()]
        assert all("failures/" in link for link in missing), "of the made failures only two have a page"


def test_every_failure_stands_in_the_index_also_without_javascript(plain: MadeReport) -> None:
    text = (plain.folder / "index.html").read_text()
    fallback = re.findall(r"<noscript>(.*?)</noscript>", text, re.S)
    assert all(f'href="failures/{entry["failure"]}.html"' in fallback[-1] for entry in plain.entries)
    rows = next(value for s in Structure(text).scripts if "rows" in (value := json.loads(s)))["rows"]
    assert [row[0] for row in rows] == [entry["failure"] for entry in plain.entries]
