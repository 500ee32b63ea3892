"""Figure of learning: how the episodes of each window of a training ended."""

from __future__ import annotations

from ...datasets.outcomes import KINDS
from ..measures.learning import AS_PAID, CORRECTED, Learning
from .grammar import (
    CONFIG,
    GOOD,
    MUTED,
    WARM,
    Chart,
    Spec,
    bounds,
    category,
    colours,
    quantity,
    records,
    trace,
)
from .rows import rows_of

_COLOURS: dict[str, str] = dict(zip(KINDS, (GOOD, WARM, MUTED), strict=True))


def learning_chart(learning: Learning) -> Chart:
    """Draw outcomes over training: shares of episodes that end desired, misbehaved or otherwise."""
    columns = ("agents", "outcomes", "first_window", "last_window", "share", "low", "high")
    rows = rows_of(columns, [(s.agents, s.kind, s.first, s.last, *s.rate) for s in learning.stages])
    x = quantity("last_window", "training time (window)", axis={"tickMinStep": 1, "tickCount": 6})
    y = quantity("share", "share of episodes", axis={"format": ".0%"}, scale={"domain": [0, 1]})
    colour = colours("outcomes", _COLOURS)
    tip = [
        category("outcomes"), quantity("first_window", "from window"), quantity("last_window", "to window"),
        quantity("share", format=".1%"), *bounds(".1%"),
    ]  # fmt: skip
    points = {
        agents: len(lasts)
        for agents in (AS_PAID, CORRECTED)
        if (lasts := {stage.last for stage in learning.stages if stage.agents == agents})
    }
    panels, layers = list(points), trace(x, y, colour, tip, min(points.values()))
    spec: Spec = {
        "config": {**CONFIG, "legend": {**CONFIG["legend"], "columns": len(KINDS)}},
        "data": {"values": records(rows)},
        "columns": 2,
        "facet": category("agents", header={"title": None}, sort=panels),
        "spec": {"width": 380, "height": 200, "layer": layers},
    }
    missing = (
        " How the corrected agents learned was not kept: an earlier version trained them."
        if learning.corrected and not learning.kept
        else "" if learning.corrected else " No agent was trained with corrected rewards."
    )  # fmt: skip
    caption = (
        "How the training episodes that ended in each window ended (actions drawn, on the training levels), as shares "
        f"of all of them; means over seeds with 95% t-intervals. Other: outcomes that the task does not declare."
        f"{missing}"
    )
    return Chart("learning", "Outcomes over training", caption, spec, rows)
