"""What a figure is: a Vega-Lite specification with its rows and caption, and the parts specifications are made of.

A specification holds its own rows, so a page needs no request. Text of environments is only ever data (`values`): sort
orders and domains become expressions of Vega. Colours are names of the style sheet (`var(--accent)`): a browser looks
them up in the reader's colour scheme, `files.write_chart` in the light one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .rows import Cell, Rows, printable

Spec = dict[str, Any]
FEWEST_ON_A_LINE = 3
INK, MUTED, LINE, ACCENT, WARM, GOOD = (
    f"var(--{name})" for name in ("ink", "muted", "line", "accent", "outer", "good")
)
CONFIG: Spec = {
    "font": "system-ui, sans-serif",
    "background": "transparent",
    "view": {"stroke": None},
    "axis": {
        "labelColor": INK, "titleColor": INK, "gridColor": LINE, "domainColor": MUTED, "tickColor": MUTED,
        "labelFontSize": 12, "titleFontSize": 12, "titleFontWeight": "normal", "labelLimit": 260,
    },
    "legend": {
        "orient": "top", "symbolOpacity": 1, "labelColor": INK, "labelFontSize": 12, "labelLimit": 320,
        "columns": {"expr": "width < 420 ? 1 : 4"}, "columnPadding": 24,
    },
    "header": {"labelColor": INK, "titleColor": INK, "labelFontSize": 12, "labelLimit": 240},
    "text": {"color": MUTED, "fontSize": 11},
}  # fmt: skip


@dataclass(frozen=True)
class Chart:
    """A figure of a page.

    Attributes:
        name: its id on the page, and its files' name.
        title: what it is of, in a few words: the text for those who do not see it.
        caption: what it shows.
        spec: Vega-Lite.
        rows: the numbers it is drawn from.
        source: file with the rows behind it, relative to the folder of the reports; None: the figure has files of
            its own, which pages share and `write_chart` writes.
    """

    name: str
    title: str
    caption: str
    spec: Spec
    rows: Rows = field(repr=False)
    source: str | None = None


def make_spec(height: int, **parts: Any) -> Spec:
    """Return a specification as wide as the page; `parts` are its data, layers and the like."""
    fit = {"type": "fit-x", "contains": "padding"}
    return {"width": "container", "height": height, "autosize": fit, "config": CONFIG, **parts}


def quantity(column: str, title: str | None = None, **more: Any) -> Spec:
    """Return the encoding of a number."""
    return {"field": column, "type": "quantitative", "title": title or column, **more}


def category(column: str, **more: Any) -> Spec:
    """Return the encoding of a name."""
    return {"field": column, "type": "nominal", "title": column, **more}


def colours(column: str, of: Mapping[str, str]) -> Spec:
    """Return the encoding of a name as a colour.

    Args:
        column: of the names.
        of: colour of each name.
    """
    scale = {"domain": list(of), "range": list(of.values())}
    return {"field": column, "type": "nominal", "legend": {"title": None}, "scale": scale}


def records(rows: Rows) -> list[dict[str, Cell]]:
    """Return rows as Vega takes them; numbers have the digits that a figure can show."""
    return [{name: _drawn(cell) for name, cell in zip(rows.columns, row, strict=True)} for row in rows.rows]


def _drawn(cell: Cell) -> Cell:
    return float(f"{cell:.5g}") if isinstance(cell, float) else printable(cell)


def constant(value: float, axis: str, dashed: bool = False) -> Spec:
    """Return a layer of one line across the figure, at a value of an axis."""
    dash = {"strokeDash": [4, 3]} if dashed else {}
    mark = {"type": "rule", "color": MUTED, "strokeWidth": 0.8, **dash}
    return {"data": {"values": [{}]}, "mark": mark, "encoding": {axis: {"datum": value}}}


def error_bars(at: Spec, along: str, title: str, tip: Sequence[Spec], **look: Any) -> Spec:
    """Return a layer of bars from column `low` to column `high`; none where an end is not known.

    Args:
        at: encoding of the other axis.
        along: axis of the bars, x or y.
        title: of that axis, as the other layers have it.
        tip: the tooltip.
        look: of the mark.
    """
    other = "y" if along == "x" else "x"
    return {
        "transform": [{"filter": "isValid(datum.low) && isValid(datum.high)"}],
        "mark": {"type": "rule", **look},
        "encoding": {other: at, along: quantity("low", title), f"{along}2": {"field": "high"}, "tooltip": list(tip)},
    }


def band(at: Spec, title: str, colour: Spec) -> Spec:
    """Return a layer of a shaded band from column `low` to column `high` along x."""
    encoding = {"x": at, "y": quantity("low", title), "y2": {"field": "high"}, "color": colour}
    return {"mark": {"type": "area", "opacity": 0.18}, "encoding": encoding}


def trace(x: Spec, y: Spec, colour: Spec, tip: Sequence[Spec], points: int) -> list[Spec]:
    """Return the layers of a curve over `points` places of x: a line in a band from column `low` to column `high`.

    Two points are no curve: a line between them would show what was not measured. They are drawn as points with bars.
    """
    encoding = {"x": x, "y": y, "color": colour, "tooltip": list(tip)}
    if points >= FEWEST_ON_A_LINE:
        mark = {"type": "line", "strokeWidth": 2, "point": {"size": 24}}
        return [band(x, y["title"], colour), {"mark": mark, "encoding": encoding}]
    bars = error_bars(x, "y", y["title"], tip, strokeWidth=1.4)
    return [
        {**bars, "encoding": {**bars["encoding"], "color": colour}},
        {"mark": {"type": "point", "filled": True, "size": 60, "opacity": 1}, "encoding": encoding},
    ]


def bounds(style: str) -> list[Spec]:
    """Return tooltip entries for the two ends of an interval, in a number format."""
    return [quantity("low", "95% from", format=style), quantity("high", "to", format=style)]
