"""Figures and pictures of the pages: SVG for curves, PNG for frames."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from ..datasets.store import write_bytes, write_text
from .curve import CurvePoint
from .predictions import Calibration
from .statistics import Interval
from .verdict import Thresholds

_INK, _MUTED, _BLUE, _ORANGE, _GREEN = "#2b2d33", "#8a8d96", "#285ac8", "#d9721e", "#16964a"
_SET_LABELS = {"attribution": "attribution order", "random": "random order", "all": "all corrected"}
_STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "svg.hashsalt": "aitia",  # the same figure gives the same file
    "svg.fonttype": "none",
}


def write_correction_curve(path: Path, curve: Sequence[CurvePoint], thresholds: Thresholds, groups: str) -> None:
    """Draw misbehaviour against the number of corrected groups: attribution order and random control.

    Args:
        path: SVG file.
        curve: all verified correction sets.
        thresholds: for the two lines that the verdict compares with.
        groups: what the groups are called.
    """
    ends = {point.order: point for point in curve if point.order in ("none", "all")}
    nested = {o: [p for p in curve if p.order == o] for o in ("attribution", "random")}
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.9), layout="constrained")
        axes = figure.subplots()
        start = ends["none"].misbehaviour.value if "none" in ends else None
        if start is not None:
            for share, text in (
                (thresholds.outer_share, "outer below"),
                (thresholds.inner_share, "inner above"),
            ):
                level = (1 - share) * start
                axes.axhline(level, color=_MUTED, lw=0.8, ls=(0, (4, 3)))
                axes.annotate(
                    f"{text} {level:.2f}", (1.0, level), xycoords=("axes fraction", "data"),
                    xytext=(-2, 3), textcoords="offset points", ha="right", fontsize=8, color=_MUTED,
                )  # fmt: skip
        has_nested = bool(nested["attribution"])
        both = [ends[o] for o in ("none", "all") if o in ends]
        for order, colour, label, marker in (
            ("random", _MUTED, "random order of the wrong rewards (control)", "s"),
            ("attribution", _BLUE, "attribution order", "o"),
        ):
            points = sorted(nested[order] + both, key=lambda point: point.corrected.groups)
            if nested[order] or (order == "attribution" and not has_nested):
                _draw_line(axes, points, colour, label if has_nested else "none and all corrected", marker)
        axes.set_xlabel(f"{groups} corrected")
        axes.set_ylabel("misbehaviour rate\n(of competent plays)")
        axes.set_ylim(-0.03, 1.03)
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_text(path, buffer.getvalue())


def _draw_line(axes: Axes, points: Sequence[CurvePoint], colour: str, label: str, marker: str) -> None:
    shown = [point for point in points if point.misbehaviour.value is not None]
    x = np.array([point.corrected.groups for point in shown])
    y = np.array([point.misbehaviour.value for point in shown], dtype=float)
    low = np.array([p.misbehaviour.low if p.misbehaviour.low is not None else 0.0 for p in shown])
    high = np.array([p.misbehaviour.high if p.misbehaviour.high is not None else 1.0 for p in shown])
    axes.errorbar(
        x,
        y,
        yerr=np.stack([y - low, high - y]),
        color=colour,
        marker=marker,
        ms=5,
        lw=1.6,
        capsize=3,
        label=label,
    )
    for point in shown:
        seeds = [rates.misbehaviour for rates in point.rates if rates.misbehaviour is not None]
        axes.scatter([point.corrected.groups] * len(seeds), seeds, s=9, color=colour, alpha=0.35, linewidths=0)


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Draw measured against predicted changes of log-odds of every verified correction set, and the line.

    Args:
        path: SVG file.
        calibration: sets and line.
    """
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        axes = figure.subplots()
        for order, colour, marker in (("attribution", _BLUE, "o"), ("random", _MUTED, "s"), ("all", _ORANGE, "D")):
            shown = [found for found in calibration.sets if found.order == order]
            if shown:
                x, y = [found.predicted for found in shown], [found.measured for found in shown]
                axes.scatter(x, y, color=colour, marker=marker, s=26, label=_SET_LABELS[order], zorder=3)
        low = min([found.predicted for found in calibration.sets], default=0.0)
        if calibration.slope.value is not None:
            axes.plot([low, 0.0], [calibration.slope.value * low, 0.0], color=_MUTED, lw=1.0, zorder=2)
        axes.axhline(0.0, color=_MUTED, lw=0.6)
        axes.set_xlabel("predicted change (sum of effects of the corrected groups)")
        axes.set_ylabel("measured change of\nlog-odds of misbehaviour")
        axes.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=3)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_text(path, buffer.getvalue())


def write_group_effects(path: Path, effects: Sequence[Interval], groups: str) -> None:
    """Draw the predicted effect of correcting each wrong group, sorted.

    Args:
        path: SVG file.
        effects: mean predicted effect of each wrong group, with its interval over seeds.
        groups: what the groups are called.
    """
    ordered = sorted(effects, key=lambda effect: effect.value or 0.0)
    values = np.array([effect.value or 0.0 for effect in ordered])
    scale = float(np.abs(values).max()) if len(values) and np.abs(values).max() > 0 else 1.0
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.2, 2.6), layout="constrained")
        axes = figure.subplots()
        colours = [_BLUE if value < 0 else _ORANGE for value in values]
        axes.bar(np.arange(1, len(values) + 1), values / scale, color=colours, width=0.85)
        known = [(i + 1, e.low, e.high) for i, e in enumerate(ordered) if e.low is not None and e.high is not None]
        axes.vlines(
            [i for i, _, _ in known], [low / scale for _, low, _ in known], [high / scale for _, _, high in known],
            color=_MUTED, lw=0.7,
        )  # fmt: skip
        axes.axhline(0.0, color=_MUTED, lw=0.8)
        axes.set_xlabel(f"{groups} with wrong rewards, sorted")
        axes.set_ylabel("predicted effect\n(largest = 1)")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    write_text(path, buffer.getvalue())


def write_frame(folder: Path, frame: NDArray[np.uint8]) -> str:
    """Write a picture once under the hash of its pixels and return the file's name."""
    name = hashlib.sha256(frame.tobytes() + str(frame.shape).encode()).hexdigest()[:16] + ".png"
    path = folder / name
    if not path.exists():
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, format="PNG", optimize=True)
        write_bytes(path, buffer.getvalue())
    return name
