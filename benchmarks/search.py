"""Does the adaptive search return smaller corrections than a bisection of the attribution order, for fewer trainings?

Five settings with a planted cause among harmless wrong levels, 5 seeds each. Old: the attribution order is bisected
from its nested sets. New: the adaptive search of `verify.minimal`, from the same nested sets and the baselines'
bisections, which both take and which are not counted. Harmless: wrong levels that do not make agents misbehave.
Prints a table and, as the last line, one JSON object.

    python -m benchmarks.search [--cases NAME ...] [--out DIR]     runs that DIR has are used again
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

import aitia
from aitia.attribution.effects.order import attribution_order, nested_sizes
from aitia.datasets.rewards import wrong_groups
from aitia.datasets.schema import Order
from aitia.reports.measures.curve import suffices
from aitia.workflows.runs.run import open_for_computing
from aitia.workflows.stages.bank import BankBuilder
from aitia.workflows.stages.members import Mask
from aitia.workflows.suite.cases import choose_cases
from aitia.workflows.workers.pool import InProcess

CASES = ("coin-run-decoys", "cheese-decoys", "arrow-maze-decoys", "platform-run-outer", "cleaning-robot-outer")
LEVEL, POINTS, SEEDS = 0.1, 5, 5


class Searched(NamedTuple):
    """The smallest sufficient set of a search, and what it took."""

    groups: list[str]
    trainings: int


def bisected(build: BankBuilder, order: list[str]) -> Searched:
    """Bisect an order for the smallest first groups that suffice, from its nested sets."""
    good = {0: False, len(order): True}

    def verify(size: int) -> None:
        build.train([Mask(Order.ATTRIBUTION, tuple(order[:size]))])
        bank = build.read()
        good[size] = suffices(bank.rates(bank.members(Order.ATTRIBUTION, size), build.task.outcomes), LEVEL)

    build.train([Mask(Order.ALL, tuple(sorted(order)))])
    for size in nested_sizes(len(order), POINTS):
        verify(size)
    before = build.trained
    while True:
        high = min(size for size, enough in good.items() if enough)
        low = max(size for size in good if size < high)
        if high - low == 1:
            return Searched(order[:high], build.trained - before)
        verify((low + high) // 2)


def measure(name: str, folder: Path) -> dict[str, Any]:
    """Run a case with the adaptive search, then bisect its attribution order with agents of the same seeds."""
    values = choose_cases([name])[0].task_values()
    values["verify"] = {"seeds": SEEDS, "points": POINTS, "minimal": LEVEL, "clusters": 1}
    values["causes"] = "aitia.training.worlds.maze:causal_levels"
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    aitia.run(path, folder / name, workers=0)
    run = open_for_computing(folder / name)
    bank, evaluated = run["test"].bank, run["test"]
    assert bank is not None
    sets = {(row["order"], row["size"]): row["groups"] for row in bank.masks.to_pylist() if row["order"] != Order.NONE}
    smallest = min(
        (key for key in sets if suffices(bank.rates(bank.members(*key), run.task.outcomes), LEVEL)),
        key=lambda key: (key[1], key[0] != Order.ADAPTIVE),
    )
    tried = sum(row["order"] == Order.ADAPTIVE for row in bank.masks.to_pylist())
    new = Searched(sets[smallest], tried)
    with InProcess() as workers:
        build = BankBuilder(run, "test", workers)
        old = bisected(build, attribution_order(evaluated.effects, wrong_groups(build.rewards)))
    causal = {str(level) for level in run.task.causal_groups() or ()}
    row: dict[str, Any] = {
        "case": name,
        "wrong": len(wrong_groups(build.rewards)),
        "causal": len(causal),
        "of": smallest[0],
    }
    for text, search in (("old", old), ("new", new)):
        harmless = len(set(search.groups) - causal)
        row |= {text: len(search.groups), f"{text}_harmless": harmless, f"{text}_trainings": search.trainings}
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=CASES, help="cases of the suite")
    parser.add_argument("--out", type=Path, help="where runs are kept; not given: nowhere")
    chosen = parser.parse_args()
    print(f"{'case':22s} {'wrong':>5s} {'causal':>6s}   levels of the smallest set, harmless ones, trainings: old, new")
    with tempfile.TemporaryDirectory() as folder:
        out = chosen.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        rows = []
        for name in chosen.cases:
            rows.append(row := measure(name, out))
            old, new = ([row[text], row[f"{text}_harmless"], row[f"{text}_trainings"]] for text in ("old", "new"))
            print(f"{name:22s} {row['wrong']:5d} {row['causal']:6d}   {old} {new} (order: {row['of']})", flush=True)
    means = {f"mean_{key}": float(np.mean([row[key] for row in rows])) for key in ("old", "new")}
    totals = {f"trainings_{key}": sum(row[f"{key}_trainings"] for row in rows) for key in ("old", "new")}
    print(json.dumps({**means, **totals, "cases": rows}))


if __name__ == "__main__":
    main()
