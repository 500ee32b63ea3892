"""Licences: what a report embeds carries the notices of those who wrote it."""

from __future__ import annotations

from pathlib import Path

import pytest
import vl_convert

from aitia.reports.figures.files import LIBRARY, write_library


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("assets")
    write_library(folder)
    return (folder / LIBRARY).read_text(encoding="utf-8")


def test_the_library_begins_with_the_notices_of_what_it_holds(library: str) -> None:
    notice, end, code = library.removeprefix("/*!").partition("*/\n")
    assert library.startswith("/*!") and end, "minifiers keep comments that begin with /*!"
    for name in ("vega", "vega-lite", "vega-embed", "d3-*", "lodash.debounce", "fast-json-patch", "topojson-client"):
        assert f"{name}," in notice or f"{name}:" in notice or f" {name} " in notice, name
    for words in (
        "University of Washington Interactive Data\n  Lab", "Trifacta", "Mike Bostock", "Mapbox",
        "Redistributions in binary", "ISC License", "MIT License", "Cynthia Brewer",
    ):  # fmt: skip
        assert words in notice, words
    assert code == vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def test_the_notices_are_those_of_the_distribution() -> None:
    root = Path(__file__).parents[2]
    (line,) = [line for line in (root / "pyproject.toml").read_text().splitlines() if line.startswith("license-files")]
    assert "reports/templates/vega-licences.txt" in line
    assert (root / "reports/templates/vega-licences.txt").is_file()
