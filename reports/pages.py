"""The pages: an index and one page a failure, as plain HTML that opens from disk without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, select_autoescape

from ..datasets.store import write_text
from .findings import SetFindings
from .statistics import Interval, percent
from .words import RULES, words_for


@dataclass(frozen=True)
class FrameView:
    """One picture of a failing episode: file name in `assets/frames`, caption, and whether it is decisive."""

    asset: str
    caption: str
    decisive: bool


@dataclass(frozen=True)
class RewardView:
    """One training reward on a failure's page.

    Attributes:
        group, action: its group, and the name of the action taken.
        seed, window, env, step: where it is in the run.
        reward, intended: as paid and as intended (None: not known).
        tau: effect of one more unit of this reward on the target.
        effect: predicted effect of correcting it, dr * tau; None without an intended reward.
        asset: picture of the state, or None.
    """

    group: str
    action: str
    seed: int
    window: int
    env: int
    step: int
    reward: float
    intended: float | None
    tau: float
    effect: float | None
    asset: str | None


@dataclass(frozen=True)
class FailureView:
    """What a failure's page shows beside its entry in `verdicts.json`.

    Attributes:
        frames: pictures of the episode, one a step; empty without pictures.
        no_frames: why there are none.
        target: what the attribution's target was.
        corrections: wrong rewards whose correction is predicted to help most.
        influential: rewards of any kind with the largest influence.
    """

    frames: Sequence[FrameView]
    no_frames: str
    target: str
    corrections: Sequence[RewardView]
    influential: Sequence[RewardView]


@dataclass(frozen=True)
class PageContext:
    """What every page of an evaluation set shares.

    Attributes:
        task: the task as resolved.
        set_name: the evaluation set.
        findings: of the set.
        told: in words, what the environment does not tell and what follows.
        has_curve: whether there is a correction curve to show.
        provenance: versions, git SHA and the like.
        edits: in words, the corrected rewards that the agents were trained with; None: rewards as paid.
    """

    task: Mapping[str, Any]
    set_name: str
    findings: SetFindings
    told: Sequence[str]
    has_curve: bool
    provenance: Mapping[str, str]
    edits: str | None = None


def write_failure_page(folder: Path, page: PageContext, entry: Mapping[str, Any], view: FailureView) -> None:
    """Write `failures/ID.html`."""
    words = words_for(entry["verdict"], entry["rule"], entry["basis"])
    template = _templates().get_template("failure.html")
    text = template.render(page=page, entry=entry, view=view, words=words, root="../")
    write_text(folder / "failures" / f"{entry['failure']}.html", text)


def write_index_page(
    folder: Path,
    page: PageContext,
    summary: Mapping[str, Any],
    entries: Sequence[Mapping[str, Any]],
    groups: Sequence[Mapping[str, Any]],
    wrong_groups: int,
    thumbnails: Mapping[str, str],
) -> None:
    """Write `index.html` and the style sheet.

    Args:
        folder: the reports folder of the set.
        page: shared context.
        summary: contents of `summary.json`.
        entries: all failures' entries.
        groups: the most suspected wrong groups: group, mean effect, wrong transitions a run, error.
        wrong_groups: number of groups with wrong rewards.
        thumbnails: asset of the first frame of each illustrated failure.
    """
    thresholds = asdict(page.findings.thresholds)
    rules = [(number, verdict, text.format(**thresholds)) for number, verdict, text in RULES]
    write_page(
        folder, "index.html", "index.html", page=page, summary=summary, entries=entries, groups=groups,
        wrong_groups=wrong_groups, thumbnails=thumbnails, rules=rules,
        words=words_for(summary["verdict"], summary["rule"], summary["basis"]),
        budget=_cheapest_budget(page.findings),
    )  # fmt: skip


def write_page(folder: Path, name: str, template: str, **values: Any) -> None:
    """Write a page of a folder from a template, and the style sheet."""
    write_text(folder / name, _templates().get_template(template).render(root="", **values))
    style = files(__package__).joinpath("templates/style.css").read_text(encoding="utf-8")
    write_text(folder / "assets" / "style.css", style)


def _cheapest_budget(findings: SetFindings) -> str | None:
    """Say in words how little had to be corrected."""
    found = findings.ease
    if found is None:
        return None
    point = found.verified
    if point is None:
        return None
    return (
        f"Half of what correcting everything removes is removed by correcting about {found.groups:.1%} of all "
        f"groups, {found.reward_events:.1%} of all reward events, {found.transitions:.1%} of all transitions "
        f"(between two verified sets, by linear interpolation). The smallest verified set that reaches it has "
        f"{point.corrected.groups:.0f} groups and {point.corrected.reward_events:.0f} reward events a run."
    )


@lru_cache(maxsize=1)
def _templates() -> Environment:
    folder = files(__package__).joinpath("templates")
    environment = Environment(
        loader=FunctionLoader(lambda name: folder.joinpath(name).read_text(encoding="utf-8")),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = lambda value: "–" if value is None else percent(value)
    environment.filters["share"] = lambda found: Interval(found["value"], found["low"], found["high"]).as_percent()
    environment.filters["interval"] = lambda value: Interval(**value).as_percent()
    environment.filters["number"] = lambda value: "–" if value is None else f"{value:.3g}"
    environment.filters["signed"] = lambda value: "–" if value is None else f"{value:+.2g}"
    return environment
