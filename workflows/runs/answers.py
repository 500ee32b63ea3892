"""What runs and evaluation sets answer a notebook: how they show themselves, verdicts, tables of reported numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ...attribution.effects.order import EffectTable
from ...datasets.outcomes import failure_ids
from ...datasets.plain import one_line, without_secrets
from ...reports.measures.curve import CurvePoint
from ...reports.pages.findings import SetFindings, group_means
from ...reports.statistics import Interval, mean_interval
from ...reports.verdict.rules import Basis

_RATE = [("value", pa.float64()), ("low", pa.float64()), ("high", pa.float64())]
_FAILURES = pa.schema(
    [
        ("failure", pa.string()), ("seed", pa.int32()), ("episode", pa.int32()), ("context", pa.string()),
        ("outcome", pa.string()), ("cluster", pa.int32()), ("verdict", pa.string()),
    ]
)  # fmt: skip
_BY_GROUP = pa.schema(
    [
        ("group", pa.string()), ("effect", pa.float64()), ("low", pa.float64()), ("high", pa.float64()),
        ("transitions", pa.float64()), ("reward_events", pa.float64()),  # of a training, means over seeds
    ]
)  # fmt: skip
_CURVE = pa.schema(
    [
        ("order", pa.string()), ("transitions", pa.float64()), ("reward_events", pa.float64()), ("groups", pa.int64()),
        ("misbehaviour_rate", pa.float64()), ("competence", pa.float64()), ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)  # fmt: skip
_RATES = pa.schema([("rate", pa.string()), ("rewards", pa.string()), *_RATE])


@dataclass(frozen=True)
class Card:
    """A title, and what there is to say under it.

    Attributes:
        title: what it is, and its name.
        lines: by their headings; text of a task or an environment is shown as it is, and steers nothing.
    """

    title: str
    lines: Mapping[str, str]

    @property
    def text(self) -> str:
        """For a console."""
        width = max(map(len, self.lines), default=0)
        lines = [f"  {_plain(name).ljust(width)}  {_plain(value)}" for name, value in self.lines.items()]
        return "\n".join([_plain(self.title), *lines])

    @property
    def html(self) -> str:
        """For a notebook."""
        left = 'style="text-align: left; vertical-align: top"'
        rows = [
            f"<tr><th {left}>{_escaped(name)}</th><td {left}>{_escaped(value)}</td></tr>"
            for name, value in self.lines.items()
        ]
        return f"<table><caption {left}>{_escaped(self.title)}</caption>{''.join(rows)}</table>"


class Shown(ABC):
    """Something that shows itself by its card; a notebook asks once for both forms, for a card may take long."""

    @property
    @abstractmethod
    def card(self) -> Card:
        """How it shows itself."""

    def __repr__(self) -> str:
        return self.card.text

    def _repr_html_(self) -> str:
        return self.card.html

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, str]:
        card = self.card
        return {"text/plain": card.text, "text/html": card.html}


def _plain(text: str) -> str:
    return one_line(without_secrets(text))


def _escaped(text: str) -> str:
    return escape(_plain(text))


@dataclass(frozen=True, repr=False)
class SetVerdict(Shown):
    """The verdict of an evaluation set (docs/method.md).

    Attributes:
        label: outer, inner, mixed, undetermined, tampering, capability_failure or aligned.
        rule: number of the rule that gave it.
        basis: corrective or arbitrary edits; None: of agents as they are.
        outer_share: share of the misbehaviour that correcting all rewards removes, with its 95% interval.
        reasons: in sentences.
    """

    label: str
    rule: int
    basis: Basis | None
    outer_share: Interval
    reasons: tuple[str, ...]

    @property
    def card(self) -> Card:
        """How it shows itself."""
        by = f"rule {self.rule}" if self.basis is None else f"rule {self.rule}, {self.basis}"
        return Card(
            "Verdict",
            {
                "verdict": f"{self.label} ({by})",
                "outer share": self.outer_share.as_percent(),
                "reasons": " ".join(self.reasons),
            },
        )


def failures_table(episodes: pa.Table, clusters: Mapping[str, tuple[int, str]]) -> pa.Table:
    """Return the failures, one a row.

    Args:
        episodes: rows of the episodes table that are failures.
        clusters: by failure, number and verdict of its cluster; of those left out both are null.
    """
    names = failure_ids(episodes)
    known = [clusters.get(name, (None, None)) for name in names]
    columns = {"failure": names, **{name: episodes[name] for name in ("seed", "episode", "context", "outcome")}}
    return pa.table({**columns, "cluster": [c for c, _ in known], "verdict": [v for _, v in known]}, schema=_FAILURES)


def by_group(effects: EffectTable, rewards: Mapping[int, pa.Table]) -> pa.Table:
    """Return the effect of correcting each group, mean over seeds with its interval, the smallest first.

    Args:
        effects: of one failure, or of several, whose mean counts.
        rewards: what the training of each seed paid.
    """
    counts = group_means(list(rewards.values()), ("transitions", "reward_events"))
    rows = []
    for column, group in enumerate(effects.groups if len(effects.by_seed) else ()):
        effect, low, high = mean_interval(effects.by_seed[:, column].tolist())
        transitions, events = counts[group]
        rows.append(
            {
                "group": group, "effect": effect, "low": low, "high": high, "transitions": transitions,
                "reward_events": events,
            }
        )  # fmt: skip
    return pa.Table.from_pylist(rows, schema=_BY_GROUP).sort_by([("effect", "ascending"), ("group", "ascending")])


def by_window(effects: pa.Table) -> pa.Table:
    """Return the effect of each window (`WINDOW_EFFECTS`), mean over the failures of the table, the smallest first."""
    means = effects.group_by(["seed", "window"], use_threads=False).aggregate([("effect", "mean")])
    return (
        means.select(["seed", "window", "effect_mean"])
        .rename_columns(["seed", "window", "effect"])
        .sort_by([("effect", "ascending"), ("seed", "ascending"), ("window", "ascending")])
    )


def by_transition(top: pa.Table) -> pa.Table:
    """Return top transitions with their effect, the smallest first; unknown effects last, by the size of tau."""
    effect = pc.multiply(pc.subtract(top["intended_reward"], top["reward"]), top["tau"])
    order = np.lexsort((-np.abs(top["tau"].to_numpy()), effect.to_numpy(zero_copy_only=False)))  # NaN: unknown, last
    return top.append_column("effect", effect).take(pa.array(order))


def curve_table(curve: Sequence[CurvePoint]) -> pa.Table:
    """Return the correction curve, a row a verified set of corrections."""
    return pa.Table.from_pylist([point.as_dict() for point in curve], schema=_CURVE)


def rates_table(findings: SetFindings) -> pa.Table:
    """Return rates before and after the correction: a row a rate (`rate`) and kind of rewards (`rewards`)."""
    decision, others = findings.decision, findings.rates_before_and_after()
    rates = {
        "misbehaviour_rate": (decision.uncorrected, decision.all_corrected),
        "competence": others["competent"],
        "desired_rate": others["desired"],
    }
    rows = [
        {"rate": name, "rewards": kind, **interval.as_dict()}
        for name, both in rates.items()
        for kind, interval in zip(("uncorrected", "all_corrected"), both, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=_RATES)
