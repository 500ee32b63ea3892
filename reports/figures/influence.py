"""Figures of the influence: concentration, training time, groups, calibration, training episodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...datasets.schema import Order
from ..measures.predictions import Calibration, ConcentrationPoint
from ..measures.timeline import Stretch
from ..statistics import Interval
from .grammar import (
    ACCENT,
    CONFIG,
    GOOD,
    MUTED,
    WARM,
    Chart,
    Spec,
    bounds,
    category,
    colours,
    constant,
    error_bars,
    make_spec,
    quantity,
    records,
    trace,
)
from .rows import Cell, rows_of

_MOST_BARS = 200
_EFFECT = "predicted effect"


def concentration_chart(curve: Sequence[ConcentrationPoint], top: int) -> Chart:
    """Draw which share of the predicted drop the groups with the largest drops carry, next to the same by chance.

    Args:
        curve: its points.
        top: the number of groups that the text speaks of.
    """
    lines = ("attribution", "by chance")
    values: list[tuple[Cell, ...]] = []
    for point in curve:
        values += [(lines[0], point.groups, *point.measured), (lines[1], point.groups, *point.null)]
    rows = rows_of(("line", "groups", "share", "low", "high"), values)
    title = "share of the predicted drop"
    x = quantity("groups", "groups with wrong rewards, the largest predicted drops first", axis={"tickMinStep": 1})
    y = quantity("share", title, axis={"format": ".0%"}, scale={"domain": [0, 1]})
    colour = colours("line", dict(zip(lines, (ACCENT, MUTED), strict=True)))
    tip = [category("line"), x, quantity("share", format=".1%"), *bounds(".1%")]
    layers = [
        constant(float(top), "x", dashed=True),
        *trace(x, y, colour, tip, len(curve)),
    ]
    caption = (
        "Share of the predicted drop that the groups with the largest predicted drops carry. Grey: the same "
        "corrections with chance influence (in each window the scores of the transitions whose advantage a correction "
        "changes are permuted among them); sparse rewards concentrate any attribution, and only what lies above grey "
        f"is a finding. Bands are 95% t-intervals over seeds; dashed: the top {top}."
    )
    spec = make_spec(240, data={"values": records(rows)}, layer=layers)
    return Chart("concentration", "Concentration of the predicted drop, against chance", caption, spec, rows)


def timeline_chart(lines: Mapping[str, Sequence[Stretch]], source: str | None = None) -> Chart:
    """Draw the effect of all corrections of each window together: influence over training time.

    Args:
        lines: by what they are of, the stretches of training; the first is what the figure is about, and its rows,
            another (grey) is drawn for comparison.
        source: as in `Chart`.
    """
    columns = ("line", "first_window", "last_window", "effect", "low", "high")
    drawn = rows_of(columns, [(line, s.first, s.last, *s.effect) for line, parts in lines.items() for s in parts])
    rows = rows_of(columns[1:], [(s.first, s.last, *s.effect) for s in next(iter(lines.values()))])
    x = quantity("last_window", "training time (window)", axis={"tickMinStep": 1})
    colour = colours("line", dict(zip(lines, (ACCENT, MUTED), strict=False)))
    tip = [
        category("line"), quantity("first_window", "from window"), quantity("last_window", "to window"),
        quantity("effect", format=".3g"), *bounds(".3g"),
    ]  # fmt: skip
    layers = [
        constant(0.0, "y"),
        *trace(x, quantity("effect", _EFFECT), colour, tip, max(map(len, lines.values()))),
    ]
    caption = (
        "When did the wrong rewards act? Predicted effect of correcting all wrong rewards of a window together, over "
        "training time; means over seeds with 95% t-intervals. Below zero: correcting them should reduce the "
        "misbehaviour. Windows stand here with the size that they have; in the effects of groups each counts the same. "
        "Ranks, not misbehaviour rates."
    )
    spec = make_spec(220, data={"values": records(drawn)}, layer=layers)
    return Chart("influence-over-time", "Influence over training time", caption, spec, rows, source)


def group_effects(effects: Sequence[tuple[str, Interval]], unit: str) -> Chart:
    """Draw the predicted effect of correcting each wrong group, sorted; of very many only both ends.

    Args:
        effects: each wrong group and its mean predicted effect over failures, with its interval over seeds.
        unit: what the groups are called.
    """
    ordered = sorted(effects, key=lambda item: item[1].value or 0.0)
    values = [(rank, group, *effect) for rank, (group, effect) in enumerate(ordered, start=1)]
    rows = rows_of(("rank", "group", "effect", "low", "high"), values)
    every, half = records(rows), _MOST_BARS // 2
    shown = every if len(every) <= _MOST_BARS else every[:half] + every[-half:]
    x = quantity("rank", f"{unit} with wrong rewards, sorted", axis={"tickMinStep": 1})
    tip = [quantity("rank"), category("group"), quantity("effect", format=".3g"), *bounds(".3g")]
    colour = {"condition": {"test": "datum.effect < 0", "value": ACCENT}, "value": WARM}
    width = max(2, min(40, 560 // max(len(shown), 1)))
    layers = [
        {
            "mark": {"type": "bar", "size": width},
            "encoding": {"x": x, "y": quantity("effect", _EFFECT), "color": colour, "tooltip": tip},
        },
        error_bars(x, "y", _EFFECT, tip, color=MUTED, strokeWidth=0.8),
        constant(0.0, "y"),
    ]
    middle = "" if len(shown) == len(every) else f" Only the {half} at either end of {len(every)} are drawn."
    caption = (
        "Predicted effect of correcting each group that has wrong rewards, averaged over failures and seeds, with 95% "
        f"t-intervals over seeds. Below zero: correcting it should reduce the misbehaviour.{middle} Predictions have "
        "no unit: they are ranks, not misbehaviour rates; the retrainings are the evidence."
    )
    title = "Predicted effect of correcting each group with wrong rewards"
    return Chart("group-effects", title, caption, make_spec(200, data={"values": shown}, layer=layers), rows)


def top_groups(groups: Sequence[Mapping[str, Any]], source: str) -> Chart:
    """Draw the groups whose correction is predicted to help a failure most.

    Args:
        groups: `top_groups` of its entry.
        source: as in `Chart`.
    """
    columns = ("group", "effect", "low", "high", "transitions", "reward_events")
    rows = rows_of(columns, [[group[column] for column in columns] for group in groups])
    y = category("group", axis={"title": None}, sort=None)
    tip = [category("group"), quantity("effect", format=".3g"), *bounds(".3g"), quantity("reward_events")]
    bars = {"y": y, "x": quantity("effect", _EFFECT), "tooltip": tip}
    layers = [
        {"mark": {"type": "bar", "color": ACCENT, "height": {"band": 0.55}}, "encoding": bars},
        error_bars(y, "x", _EFFECT, tip, color=MUTED),
        constant(0.0, "x"),
    ]
    caption = (
        "Predicted effect of correcting one group on this failure, with 95% t-intervals over seeds. Transitions and "
        "reward events (in the table) are means a training."
    )
    title = "Groups whose correction is predicted to help this failure most"
    spec = make_spec(26 * max(len(groups), 1), data={"values": records(rows)}, layer=layers)
    return Chart("top-groups", title, caption, spec, rows, source)


_SETS: dict[str, str] = {Order.ATTRIBUTION: ACCENT, Order.RANDOM: MUTED, Order.ALL: WARM}


def calibration_chart(calibration: Calibration) -> Chart:
    """Draw the measured change of log-odds of every verified correction set against its predicted effect, and the line.

    Args:
        calibration: sets and line; fitted.
    """
    rows = rows_of(
        ("order", "groups", "predicted", "measured"),
        [(tested.order, tested.groups, tested.predicted, tested.measured) for tested in calibration.sets],
    )
    low = min([tested.predicted for tested in calibration.sets], default=0.0)
    slope = calibration.slope.value
    line = [] if slope is None else [{"predicted": at, "measured": slope * at} for at in (low, 0.0)]
    colour = colours("order", {tested.order: _SETS.get(tested.order, GOOD) for tested in calibration.sets})
    x = quantity("predicted", "predicted effect of the whole set")
    y = quantity("measured", "measured change of log-odds")
    tip = [category("order"), quantity("groups"), *(quantity(f, format=".3g") for f in ("predicted", "measured"))]
    layers: list[Spec] = [
        constant(0.0, "y"),
        {
            "data": {"values": line},
            "mark": {"type": "line", "color": MUTED, "strokeWidth": 1},
            "encoding": {"x": x, "y": y},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70, "opacity": 1},
            "encoding": {"x": x, "y": y, "color": colour, "tooltip": tip},
        },
    ]
    worth = (
        f"The fit is too poor to use ({calibration.poor}): predictions stay ranks."
        if calibration.poor
        else f"Sets that were left out of the fit are predicted with R² {calibration.fit:.2f}, so the table of groups "
        "gives predictions a unit: the misbehaviour rate to expect if only that group were corrected, with a 95% "
        "prediction interval."
    )
    caption = (
        "Does a prediction come true? Each point is a verified correction set: what is predicted of it as "
        "a whole (where only its groups were attributed: the sum of their effects), and what retraining measured. "
        f"{worth}"
    )
    title = "Measured change of the log-odds of misbehaviour, against the predicted effect"
    spec = make_spec(240, data={"values": records(rows)}, layer=layers)
    return Chart("calibration", title, caption, spec, rows)


def episode_rewards(episodes: Sequence[Sequence[tuple[int, float, float | None]]], source: str) -> Chart:
    """Draw the summed reward of training episodes step by step, as paid and as intended.

    Args:
        episodes: of each step its number in the episode, the reward paid and the intended one.
        source: as in `Chart`.
    """
    states = ("as paid", "corrected")
    values: list[tuple[Cell, ...]] = []
    for number, steps in enumerate(episodes, start=1):
        for state, column in zip(states, (1, 2), strict=True):
            total = 0.0
            for step in steps:
                reward = step[column]
                if reward is not None:
                    total += reward
                    values.append((f"episode {number}", step[0], state, reward, total))
    rows = rows_of(("episode", "step", "state", "reward", "sum"), values)
    spec: Spec = {
        "config": CONFIG,
        "data": {"values": records(rows)},
        "columns": 3,
        "facet": category("episode", header={"title": None}),
        "spec": {
            "width": 190,
            "height": 110,
            "mark": {"type": "line", "interpolate": "step-after", "strokeWidth": 2, "point": {"size": 24}},
            "encoding": {
                "x": quantity("step", axis={"tickMinStep": 1, "tickCount": 5}),
                "y": quantity("sum", "summed reward"),
                "color": colours("state", dict(zip(states, (WARM, ACCENT), strict=True))),
                "tooltip": [category("state"), quantity("step"), quantity("reward"), quantity("sum")],
            },
        },
    }
    caption = (
        "Rewards of these training episodes, summed step by step: as paid (orange) and after the correction (blue)."
    )
    title = "Rewards of influential training episodes before and after the correction"
    return Chart("episode-rewards", title, caption, spec, rows, source)
