"""Does attribution find the planted cause? Estimators and baselines on a run of the arrow maze.

The causal groups are the bug levels, the decoys the harmless ones (larger errors). Prints a table and, as the last
line, one JSON object. AUC: 1 ranks every causal level before every decoy, .5 is chance.

    python -m benchmarks.planted --run runs/arrow-maze-outer
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import aitia
from aitia.attribution.effects.order import area_under_curve, attribution_order, effect_table
from aitia.attribution.estimators.registry import estimators
from aitia.attribution.gradients.kernel import DEFAULT_LAMBDA, LAMBDAS
from aitia.datasets.errors import InputError
from aitia.datasets.files.store import read_table
from aitia.datasets.rewards import reward_summary, wrong_groups
from aitia.workflows.runs.run import Run, open_for_computing


def causal_groups(run: Run) -> frozenset[str]:
    """Return the groups that the run's task declares as the cause."""
    causal = run.task.causal_groups()
    if causal is None:
        raise InputError(f"the task of {run.folder.root} declares no `causes`: its cause has to be known")
    return causal


def measure(run: Run, names: Sequence[str]) -> dict[str, float | int]:
    """Return AUCs by estimator, and how many of the first k groups are causal, k the number of causal ones."""
    causal, rewards = causal_groups(run), [reward_summary(run.folder, seed) for seed in run.task.seeds]
    wrong = wrong_groups(rewards)
    sums = read_table(run.folder.influence_path("test", "groups"))
    found: dict[str, float | int] = {"causal": len(causal), "wrong": len(wrong), "seeds": len(run.task.seeds)}
    print(f"{'order by':24s} {'AUC':>6s} {'single seeds':>24s} {'causal in top ' + str(len(causal)):>18s}")
    for label, table, lam in _rankings(sums, names):
        order = attribution_order(effect_table(table, lam), wrong)
        auc, top = area_under_curve(order, causal), sum(group in causal for group in order[: len(causal)])
        by_seed = [table.filter(pc.field("seed") == seed) for seed in run.task.seeds]
        single = [area_under_curve(attribution_order(effect_table(t, lam), wrong), causal) for t in by_seed]
        key = label.replace(" ", "_")
        found |= {f"auc_{key}": round(auc, 4), f"auc_single_{key}": round(float(np.mean(single)), 4), f"top_{key}": top}
        spread = f"{np.mean(single):.3f} ({min(single):.3f}-{max(single):.3f})"
        print(f"{label:24s} {auc:6.3f} {spread:>24s} {top:18d}")
    return found


def _rankings(sums: pa.Table, names: Sequence[str]) -> Iterator[tuple[str, pa.Table, float]]:
    """Yield label, group sums and damping of each ranking; `trak` at every damping, and without normalisation."""
    for name in names:
        mine = sums.filter(pc.field("estimator") == name)
        if name != "trak":
            yield name, mine, DEFAULT_LAMBDA
            continue
        for lam in LAMBDAS:
            yield f"trak lambda {lam:g}", mine, lam
        yield "trak raw", mine.drop_columns(["effect"]).append_column("effect", mine["effect_raw"]), DEFAULT_LAMBDA


def main() -> None:
    """Measure a finished run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, default=Path("runs/arrow-maze-outer"), help="a run of `make demo`")
    folder = parser.parse_args().run
    names = ["trak", *(name for name in estimators() if name not in ("trak", "trak-projected"))]
    for name in names:
        aitia.attribute(folder, estimator=name)  # next to the demo's own; what is done is not done again
    print(json.dumps(measure(open_for_computing(folder), names)))


if __name__ == "__main__":
    main()
