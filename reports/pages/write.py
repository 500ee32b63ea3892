"""The pages: an index, one page a cluster and one a failure, as plain HTML that opens from disk without a network."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, select_autoescape

from ...datasets.files.store import write_text
from ...datasets.plain import ISOLATED, ISOLATED_END, isolated
from ...datasets.words import counted
from ..figures.evidence import correction_curve, factorial_shares, failure_counts, shares
from ..figures.files import style_sheet, template_text, write_chart, write_library
from ..figures.grammar import Chart
from ..figures.influence import episode_rewards, timeline_chart, top_groups
from ..figures.learning import learning_chart
from ..figures.rows import Cell, island
from ..measures.learning import Learning, in_words
from ..measures.preference import Preference
from ..statistics import Interval, percent
from ..verdict.words import RULES, differing
from .advice import Explanation
from .findings import SetFindings
from .views import ClusterContext, ClusterView, FailureView, PageContext

SCRIPTS = ("failures.js", "figures.js", "strip.js")
_SHOWN_PICTURES = 12
_NO_TEXT = re.compile(r"(<(?:script|style|title)\b.*?</(?:script|style|title)>|<[^>]*>)", re.DOTALL)


def write_failure_page(folder: Path, page: PageContext, entry: Mapping[str, Any], view: FailureView) -> None:
    """Write `failures/ID.html`."""
    cluster = page.clusters[entry["cluster"]]
    charts = {}
    if (curve := page.curve_of(cluster)) is not None:
        charts["curve"] = curve
    if view.timeline:
        lines = {f"failure {entry['failure']}": view.timeline, "mean of its cluster": cluster.timeline}
        charts["timeline"] = timeline_chart(lines, page.influence_file("windows"))
    if entry["top_groups"]:
        charts["groups"] = top_groups(entry["top_groups"], "verdicts.json")
    if view.episodes:
        steps = [[(step.number, step.reward, step.intended) for step in episode.steps] for episode in view.episodes]
        charts["episodes"] = episode_rewards(steps, page.influence_file("transitions"))
    text = _rendered(
        "failure.html", page=page, cluster=cluster, entry=entry, view=view, charts=charts, root="../",
        framing=_where_framings_differ([entry]),
    )  # fmt: skip
    write_text(folder / "failures" / f"{entry['failure']}.html", text)


def write_cluster_page(
    folder: Path, page: PageContext, cluster: ClusterContext, entries: Sequence[Mapping[str, Any]], view: ClusterView
) -> None:
    """Write `clusters/NUMBER.html` and its figures."""
    charts = {"shares": _shares(cluster.findings), **view.charts}
    if cluster.timeline:
        charts["timeline"] = timeline_chart({"mean of the cluster": cluster.timeline})
    charts = {what: cluster.own(chart) for what, chart in charts.items()}
    if (curve := page.curve_of(cluster)) is not None:
        charts["curve"] = curve
    for chart in charts.values():
        write_chart(folder / "assets", chart)
    text = _rendered(
        "cluster.html", page=page, cluster=cluster, view=view, charts=charts, root="../",
        budget=_cheapest_budget(cluster.findings), table=_failures_table(entries, frozenset(), "../"), entries=entries,
    )  # fmt: skip
    write_text(folder / cluster.page, text)


def write_index_page(
    folder: Path,
    page: PageContext,
    summary: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    thumbnails: Mapping[str, str],
    explanation: Explanation,
    learning: Learning | None = None,
    preference: Preference | None = None,
) -> None:
    """Write `index.html`, its figures, and what all pages share: style sheet, scripts, the library of the figures.

    Args:
        folder: the reports folder of the set.
        page: shared context.
        summary: contents of `summary.json`.
        entries: all failures' entries.
        thumbnails: asset of the first frame of each illustrated failure.
        explanation: the set's verdict in words.
        learning: outcomes over training; None: not known.
        preference: returns by outcome, where the intended reward is not known; else None.
    """
    thresholds = asdict(page.findings.thresholds)
    rules = [(number, verdict, text.format(**thresholds)) for number, verdict, text in RULES]
    charts = {"shares": _shares(page.findings)}
    if entries:
        charts["counts"] = failure_counts(entries)
    factorial = page.findings.factorial
    if factorial is not None and factorial.shares:
        charts["factorial"] = factorial_shares({str(source): share for source, share in factorial.shares.items()})
    if learning is not None:
        charts["learning"] = learning_chart(learning)
    for chart in charts.values():
        write_chart(folder / "assets", chart)
    clusters = list(page.clusters.values())
    if len(clusters) == 1 and (curve := page.curve_of(clusters[0])) is not None:
        charts["curve"] = curve  # its page writes it
    elif len(page.findings.curve) > 1:
        charts["curve"] = correction_curve(page.findings.curve, page.findings.thresholds, page.unit)
        write_chart(folder / "assets", charts["curve"])
    for name in SCRIPTS:
        write_text(folder / "assets" / name, template_text(name))
    write_library(folder / "assets")
    shown = dict(list(thumbnails.items())[:_SHOWN_PICTURES])
    write_page(
        folder, "index.html", "index.html", page=page, summary=summary, entries=entries, clusters=clusters, rules=rules,
        explanation=explanation, charts=charts, thumbnails=shown, table=_failures_table(entries, set(thumbnails), ""),
        learned=None if learning is None else in_words(learning), preference=preference,
        framing=_where_framings_differ(entries),
    )  # fmt: skip


def write_page(folder: Path, name: str, template: str, **values: Any) -> None:
    """Write a page of a folder from a template, and the style sheet."""
    write_text(folder / "assets" / "style.css", style_sheet())
    write_text(folder / name, _rendered(template, root="", **values))


def _rendered(template: str, **values: Any) -> str:
    """Return a page; in its text, what is written from right to left stands in an element of its own."""
    parts = _NO_TEXT.split(_templates().get_template(template).render(**values))
    parts[::2] = [text.replace(ISOLATED, "<bdi>").replace(ISOLATED_END, "</bdi>") for text in parts[::2]]
    return "".join(parts)


def _shares(findings: SetFindings) -> Chart:
    decision, pairs = findings.decision, findings.rates_before_and_after()
    rates = {
        "misbehaviour": (decision.uncorrected, decision.all_corrected),
        "desired": pairs["desired"],
        "competence": pairs["competent"],
    }
    return shares(rates, decision.outer_share, findings.thresholds)


def _failures_table(
    entries: Sequence[Mapping[str, Any]], illustrated: frozenset[str] | set[str], root: str
) -> dict[str, Any]:
    """Return the table of failures as `failures.js` takes it: columns, and a row of plain values a failure."""
    columns = [
        {"title": "failure", "kind": "link"},
        {"title": "seed", "filter": True},
        {"title": "context", "filter": True},
        {"title": "outcome", "filter": True},
        {"title": "cluster", "filter": True},
        {"title": "verdict", "filter": True},
        {"title": "Framing 1", "filter": True},
        {"title": "rate as paid", "kind": "share"},
        {"title": "rate corrected", "kind": "share"},
    ]
    rows: list[list[Cell]] = [
        [
            entry["failure"], entry["seed"], entry["context"], entry["outcome"], entry["cluster"], entry["verdict"],
            entry["framing1"], entry["own_rates"]["uncorrected"], entry["own_rates"]["all_corrected"],
        ]
        for entry in entries
    ]  # fmt: skip
    if illustrated:
        columns.append({"title": "pictures", "filter": True})
        rows = [[*row, "yes" if row[0] in illustrated else "no"] for row in rows]
    return {"columns": columns, "rows": rows, "folder": f"{root}failures/"}


def _where_framings_differ(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, int]]:
    """Return pairs of labels that differ: Framing 1's, the verdict, what each means together, how many failures."""
    counts = Counter((entry["framing1"], entry["verdict"], entry["basis"]) for entry in entries)
    return [(key[0], key[1], text, n) for key, n in counts.items() if (text := differing(*key)) is not None]


def _cheapest_budget(findings: SetFindings) -> str | None:
    """Say in words how little had to be corrected."""
    ease = findings.ease
    if ease is None:
        return None
    point = ease.verified
    if point is None:
        return None
    return (
        f"Half of what correcting everything removes is removed by correcting about {ease.groups:.1%} of all "
        f"groups, {ease.reward_events:.1%} of all reward events, {ease.transitions:.1%} of all transitions "
        f"(between two verified sets, by linear interpolation). The smallest verified set that reaches it has "
        f"{counted(point.corrected.groups, 'group')} and "
        f"{counted(point.corrected.reward_events, 'reward event')} a run."
    )


@lru_cache(maxsize=1)
def _templates() -> Environment:
    environment = Environment(
        loader=FunctionLoader(template_text),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        finalize=lambda value: isolated(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else percent(value)
    environment.filters["share"] = lambda value: Interval(value["value"], value["low"], value["high"]).as_percent()
    environment.filters["interval"] = lambda value: Interval(**value).as_percent()
    environment.filters["between"] = _between
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.3g}"
    environment.filters["signed"] = lambda value: "–" if value is None else f"{value:+.2g}"
    environment.filters["counted"] = counted
    environment.filters["cell"] = lambda value: "–" if value is None else _cell(value)
    environment.filters["island"] = island
    return environment


def _between(interval: Interval) -> str:
    if interval.value is None:
        return "–"
    return f"{interval.value:.3g}" + ("" if interval.low is None else f" [{interval.low:.3g}, {interval.high:.3g}]")


def _cell(value: Cell) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
