"""Counts agree with their nouns, wherever they stand; and one group is said to be one only where it is."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest

from aitia.datasets.words import counted
from aitia.workflows.stages.reporting.notes import _as_one_group

ROOT = Path(__file__).parents[2]
NOUNS = (
    "group", "failure", "play", "seed", "episode", "repeat", "cluster", "agent", "training", "transition", "reward",
    "row", "run", "edit", "step", "window",
)  # fmt: skip
# a count in braces, directly before the plural of a noun
PLURAL = "(?:paired |first |reward |test )?(?:" + "|".join(NOUNS) + r")s\b(?!/)"
BARE = re.compile(r"\{(?!_?[A-Z_]+(?::,)?\})[^{}]*\} " + PLURAL)
BARE_JINJA = re.compile(r"\}\} " + PLURAL)
# whatever these count is more than one, or may be a fraction
MORE_THAN_ONE = (
    "The failures have {{ clusters|length }} kinds",
    "reward_events:.1%} of all reward events",
    '"few" if summary.ease.kind',
    "fewer than {seeds} paired seeds",
    "have {lengths} windows",  # a list
    "if count > 1 %}Of {{ count }} failures",
    'plays = f"{wanted} episodes of seeds {seeds}"',  # metadata, which no one reads
)


def test_one_is_not_many() -> None:
    assert [counted(n, "group") for n in (0, 1, 2, 1234)] == ["0 groups", "1 group", "2 groups", "1,234 groups"]
    assert counted(1.2, "reward event") == "1 reward event" and counted(0.6, "run") == "1 run"


@pytest.mark.parametrize("floor", ["datasets", "training", "attribution", "reports", "workflows"])
def test_no_count_stands_before_a_plural_by_itself(floor: str) -> None:
    found = []
    for path in sorted((ROOT / floor).rglob("*")):
        if path.suffix not in (".py", ".html"):
            continue
        pattern = BARE if path.suffix == ".py" else BARE_JINJA
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            if pattern.search(line) and not any(known in line for known in MORE_THAN_ONE):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:120]}")
    assert not found, "use counted(number, noun):\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ([["all"], ["all"]], ": all transitions form one group"),
        ([["obs 1 / left", "obs 1 / right"]], ""),
        ([["cluster 00"], ["cluster 01"]], ""),
    ],
    ids=["context", "transition", "cluster"],
)
def test_one_group_is_said_only_where_it_is_so(groups: list[list[str]], said: str) -> None:
    assert _as_one_group([pa.table({"group": names}) for names in groups]) == said
