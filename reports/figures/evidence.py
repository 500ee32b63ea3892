"""Figures of the evidence: correction curve, rates and shares, failures a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...datasets.schema import Order
from ..measures.curve import CurvePoint
from ..statistics import Interval
from ..verdict.rules import Thresholds
from .grammar import (
    ACCENT,
    FEWEST_ON_A_LINE,
    GOOD,
    MUTED,
    WARM,
    Chart,
    Spec,
    bounds,
    category,
    colours,
    error_bars,
    make_spec,
    quantity,
    records,
)
from .rows import rows_of

_ORDERS: dict[str, str] = {
    Order.ATTRIBUTION: "attribution order",
    Order.RANDOM: "random order of the wrong rewards (control)",
    Order.SIZE: "largest error first (baseline)",
}
_SEARCHED = "adaptive search (chosen after looking)"
_STATES = {"rewards as paid": "as paid", "all rewards corrected": "corrected"}
_UNORDERED = "none and all corrected"
_COLOURS = {
    _ORDERS[Order.ATTRIBUTION]: ACCENT,
    _UNORDERED: ACCENT,
    _ORDERS[Order.RANDOM]: MUTED,
    _ORDERS[Order.SIZE]: WARM,
    _SEARCHED: GOOD,
}
_RATE = "misbehaviour rate"


def correction_curve(curve: Sequence[CurvePoint], thresholds: Thresholds, unit: str) -> Chart:
    """Draw misbehaviour against the number of corrected groups: attribution order, random control and baselines.

    Args:
        curve: all verified correction sets.
        thresholds: for the two lines that the verdict compares with.
        unit: what the groups are called.
    """
    columns = ("order", "groups", "reward_events", "transitions", "misbehaviour", "low", "high", "competent")
    units = [(int(p.corrected.groups), p.corrected.reward_events, p.corrected.transitions) for p in curve]
    rows = rows_of(columns, [(p.order, *n, *p.misbehaviour, p.competence) for p, n in zip(curve, units, strict=True)])
    joined = {order: text for order, text in _ORDERS.items() if any(point.order == order for point in curve)}
    lines = list(joined.values()) or [_UNORDERED]
    texts = {**joined, Order.ADAPTIVE: _SEARCHED}
    points: list[Spec] = []
    seeds: list[Spec] = []
    for record, point in zip(records(rows), curve, strict=True):
        names = lines if point.order in (Order.NONE, Order.ALL) else [texts.get(point.order, point.order)]
        points += [{**record, "line": name} for name in names]
        seeds += [
            {
                "line": names[0],
                "groups": record["groups"],
                "seed": rates.seed,
                "misbehaviour": round(rates.misbehaviour, 5),
            }
            for rates in point.rates
            if rates.misbehaviour is not None
        ]
    meaning = (
        "Blue: groups in the order that attribution gave, the largest predicted drop first. Grey: the same number of "
        "wrong groups in random order; attribution is worth something where blue lies below grey."
        if joined
        else "Sets between none and all were not trained: none was asked for, or correcting everything does not remove "
        "enough for their order to matter."
    )
    caption = (
        "Each large point is a set of groups whose rewards were set to the intended ones, and agents trained again on "
        f"it. {meaning} Bars are 95% t-intervals over seeds, small dots the seeds. Dashed: the lines that the verdict "
        "compares “all corrected” with."
    )
    start = next((point.misbehaviour.value for point in curve if point.order == Order.NONE), None)
    layers = [*_limits(start, thresholds), *_curve_layers(points, seeds, lines, f"{unit} corrected")]
    title = "Misbehaviour against the number of corrected groups"
    return Chart("correction-curve", title, caption, make_spec(300, layer=layers), rows)


def _limits(start: float | None, thresholds: Thresholds) -> list[Spec]:
    """Return the lines that `all corrected` is compared with, and their names."""
    if start is None:
        return []
    limits = [
        {"level": (1 - share) * start, "text": f"{text} {(1 - share) * start:.2f}"}
        for share, text in ((thresholds.outer_share, "outer below"), (thresholds.inner_share, "inner above"))
    ]
    y, data = quantity("level", _RATE), {"values": limits}
    text = {"x": {"value": {"expr": "width"}}, "y": y, "text": {"field": "text"}}
    return [
        {"data": data, "mark": {"type": "rule", "color": MUTED, "strokeDash": [4, 3]}, "encoding": {"y": y}},
        {"data": data, "mark": {"type": "text", "align": "right", "dx": -2, "dy": -7}, "encoding": text},
    ]


def _curve_layers(points: list[Spec], seeds: list[Spec], lines: Sequence[str], title: str) -> list[Spec]:
    sizes = {name: {point["groups"] for point in points if point["line"] == name} for name in lines}
    joined = [name for name in lines if len(sizes[name]) >= FEWEST_ON_A_LINE]
    every = sorted({point["groups"] for point in points})
    few = {} if joined else {"axis": {"values": every}, "scale": {"domain": [-0.1 * every[-1], 1.1 * every[-1]]}}
    x = quantity("groups", title, **few)
    y = quantity("misbehaviour", _RATE, scale={"domain": [0, 1]})
    names = list(dict.fromkeys([*lines, *(str(point["line"]) for point in points)]))
    colour = colours("line", {name: _COLOURS.get(name, GOOD) for name in names})  # others are sets the task names
    faded = {"condition": {"param": "chosen", "value": 1}, "value": 0.15}
    looks = {"color": colour, "opacity": faded}
    tip = [
        category("order"), x, quantity("reward_events", "reward events a run", format=".0f"),
        quantity("misbehaviour", format=".1%"), *bounds(".1%"), quantity("competent", format=".1%"),
    ]  # fmt: skip
    bars = error_bars(x, "y", _RATE, tip, strokeWidth=1.4)
    seed_tip = [quantity("seed"), x, quantity("misbehaviour", format=".1%")]
    return [
        {
            "data": {"values": seeds},
            "mark": {"type": "circle", "size": 14, "opacity": 0.45},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": seed_tip},
        },
        {
            "data": {"values": [point for point in points if point["line"] in joined]},
            "params": [{"name": "chosen", "select": {"type": "point", "fields": ["line"]}, "bind": "legend"}],
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {"x": x, "y": y, **looks},
        },
        {"data": {"values": points}, **bars, "encoding": {**bars["encoding"], **looks}},
        {
            "data": {"values": points},
            "mark": {"type": "point", "filled": True, "size": 60},
            "encoding": {"x": x, "y": y, **looks, "tooltip": tip},
        },
    ]


def shares(measured: Mapping[str, Sequence[Interval]], share: Interval, thresholds: Thresholds) -> Chart:
    """Draw rates before and after the correction and the outer share, each with its interval.

    Args:
        measured: by what is measured, the rate with rewards as paid and with all corrected.
        share: the outer share.
        thresholds: for the two marks on the outer share.
    """
    states = (*_STATES, "outer share")
    last = "outer share"
    values = [
        (what, state, *rate) for what, pair in measured.items() for state, rate in zip(states, pair, strict=False)
    ]
    rows = rows_of(("measured", "state", "value", "low", "high"), [*values, (last, states[2], *share)])
    lines = [f"{what}, {short}" for what in measured for short in _STATES.values()]
    limits = [
        {"line": last, "level": level, "text": text}
        for level, text in ((thresholds.inner_share, "inner below"), (thresholds.outer_share, "outer above"))
    ]
    y = category("line", axis={"title": None, "grid": True, "tickBand": "center"}, sort=[*lines, last])
    colour = colours("state", dict(zip(states, (WARM, ACCENT, GOOD), strict=True)))
    ends = [0.0, 1.0, share.low or 0.0, share.high or 1.0]
    scale = {"domain": [min(ends), max(ends)], "nice": False}
    x = quantity("value", "share", axis={"format": ".0%", "tickCount": 6}, scale=scale)
    level = quantity("level", "share")
    tip = [category("measured"), category("state"), quantity("value", format=".1%"), *bounds(".1%")]
    bars = error_bars(y, "x", "share", tip, strokeWidth=2)
    edge = "datum.value > 0.95 ? 'right' : datum.value < 0.05 ? 'left' : 'center'"
    above = {"dy": -10, "align": {"expr": edge}}
    layers: list[Spec] = [
        {
            "data": {"values": limits},
            "mark": {"type": "tick", "color": MUTED, "thickness": 1.5, "size": 26},
            "encoding": {"x": level, "y": y, "tooltip": [category("text"), quantity("level", format=".0%")]},
        },
        {
            "data": {"values": limits},
            "mark": {"type": "text", "dy": -20},
            "encoding": {"x": level, "y": y, "text": {"field": "text"}},
        },
        {**bars, "encoding": {**bars["encoding"], "color": colour}},
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": tip},
        },
        {
            "mark": {"type": "text", **above},
            "encoding": {"x": x, "y": y, "text": quantity("value", format=".0%")},
        },
    ]
    caption = (
        "Rates with rewards as paid and with all of them corrected, and the outer share: the part of the misbehaviour "
        "that the correction removes. Misbehaviour is a rate of competent plays (desired or misbehaved), the others of "
        "all plays. Means over seeds with 95% t-intervals (outer share: Fieller's); there is no bar where seeds are "
        "too few, or differ too much, for an interval, and no point where nothing was measured."
    )
    names = [*(f"{what}, {_STATES[state]}" for what, state, *_ in values), last]
    drawn = zip(records(rows), names, strict=True)
    shown = [{**record, "line": name} for record, name in drawn if record["value"] is not None]
    spec = make_spec(34 * (len(lines) + 1), data={"values": shown}, layer=layers)
    return Chart("shares", "Rates before and after the correction, and the outer share", caption, spec, rows)


def factorial_shares(by_source: Mapping[str, Interval]) -> Chart:
    """Draw the shares of rewards, inductive bias, their interaction and the seed, with their intervals.

    Args:
        by_source: the share of each source of variance.
    """
    rows = rows_of(("source", "share", "low", "high"), [(source, *share) for source, share in by_source.items()])
    y = category("source", axis={"title": None, "grid": True}, sort=list(by_source))
    x = quantity("share", "share of the variance between agents", axis={"format": ".0%"}, scale={"domain": [0, 1]})
    tip = [category("source"), quantity("share", format=".1%"), *bounds(".1%")]
    layers: list[Spec] = [
        error_bars(y, "x", "share of the variance between agents", tip, color=ACCENT, strokeWidth=2),
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1, "color": ACCENT},
            "encoding": {"x": x, "y": y, "tooltip": tip},
        },
    ]
    caption = "Share of the variance of the misbehaviour rate between agents, with 95% jackknife intervals over seeds."
    spec = make_spec(36 * len(by_source), data={"values": records(rows)}, layer=layers)
    return Chart("factorial-shares", "What moves the misbehaviour: rewards or inductive bias", caption, spec, rows)


_VERDICTS = {"outer": "outer", "inner": "inner", "mixed": "mixed", "aligned": "good"}


def failure_counts(entries: Sequence[Mapping[str, Any]]) -> Chart:
    """Draw how many failures each seed's agent has, by verdict.

    Args:
        entries: all failures' entries.
    """
    counts: dict[tuple[int, str, str], int] = {}
    for entry in entries:
        key = (entry["seed"], str(entry["verdict"]), entry["outcome"])
        counts[key] = counts.get(key, 0) + 1
    rows = rows_of(("seed", "verdict", "outcome", "failures"), [(*key, n) for key, n in sorted(counts.items())])
    verdicts = sorted({verdict for _, verdict, _ in counts})
    colour = colours("verdict", {name: f"var(--{_VERDICTS.get(name, 'other')})" for name in verdicts})
    encoding = {
        "x": {"field": "seed", "type": "ordinal", "title": "seed of the agent", "axis": {"labelAngle": 0}},
        "y": quantity("failures"),
        "color": colour,
        "tooltip": [quantity("seed"), category("verdict"), category("outcome"), quantity("failures")],
    }
    spec = make_spec(
        120, data={"values": records(rows)}, mark={"type": "bar", "width": {"band": 0.4}}, encoding=encoding
    )
    caption = "Failures (first plays of test episodes that ended misbehaved) of each seed's agent, by their verdict."
    return Chart("failure-counts", "Failures of each seed's agent", caption, spec, rows)
