"""Files of the pages' figures: rows as CSV, a still SVG for readers without JavaScript, the library once."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import vl_convert

from ...datasets.files.store import write_text
from .grammar import Chart
from .rows import island

LIBRARY = "vega.js"
_STILL_WIDTH, _STILL_PADDING = 760, 16
_COLOUR = re.compile(r"--([\w-]+): light-dark\((#\w+), #\w+\)")
_NAMED = re.compile(r"var\(--([\w-]+)\)")
_DATA = ("values", "domain", "sort")  # texts of the environment stand only here, and are left as they are


def write_chart(folder: Path, chart: Chart) -> None:
    """Write the files of a chart that pages share: its rows, its specification, a still picture in light colours.

    Args:
        folder: `assets` of the reports.
        chart: the figure.
    """
    write_text(folder / f"{chart.name}.csv", chart.rows.as_csv())
    script = f"(window.aitiaCharts ??= {{}})[{island(chart.name)}] = {island(chart.spec)};\n"
    write_text(folder / f"{chart.name}.js", script)  # pages from disk cannot read JSON files, scripts they can
    spec = _in_light_colours(chart.spec)
    config = {**spec["config"], "font": "sans-serif"}  # system-ui cannot be measured outside a browser
    size = {} if "facet" in spec else {"width": _STILL_WIDTH}  # panels have a width of their own
    still = vl_convert.vegalite_to_svg({**spec, "config": config, **size, "padding": _STILL_PADDING})
    write_text(folder / f"{chart.name}.svg", still)


def write_library(folder: Path) -> None:
    """Write Vega, Vega-Lite and Vega-Embed as one file, which all pages of a set share, with their licences."""
    write_text(folder / LIBRARY, _library())


@lru_cache(maxsize=1)
def _library() -> str:
    licences = template_text("vega-licences.txt")
    return f"/*!\n{licences}*/\n" + vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def template_text(name: str) -> str:
    """Return a file of `reports/templates`."""
    package = (__package__ or "").rpartition(".")[0]
    return files(package).joinpath("templates", name).read_text(encoding="utf-8")


def style_sheet() -> str:
    """Return the style sheet of the pages."""
    return template_text("style.css")


def _in_light_colours(value: Any) -> Any:
    """Return a specification with the style sheet's names of colours replaced by their light values."""
    if isinstance(value, dict):
        return {key: item if key in _DATA else _in_light_colours(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_in_light_colours(item) for item in value]
    if isinstance(value, str) and (named := _NAMED.fullmatch(value)):
        return _light_colours()[named[1]]
    return value


@lru_cache(maxsize=1)
def _light_colours() -> dict[str, str]:
    return dict(_COLOUR.findall(style_sheet()))
