"""Does attribution find the planted cause? Estimators and baselines on a run of the arrow maze.

The causal groups are the bug levels, the decoys the harmless ones (larger errors). Prints a table and, as the last
line, one JSON object. AUC: 1 ranks every causal level before every decoy, .5 is chance.

    python -m benchmarks.planted --run runs/arrow-maze-outer
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import aitia
from aitia.attribution.order import area_under_curve, attribution_order, effect_table, random_order
from aitia.attribution.trak import LAMBDAS
from aitia.datasets.errors import InputError
from aitia.datasets.rewards import reward_summary
from aitia.datasets.store import read_table
from aitia.training.arrow_maze import ArrowMazeEnv
from aitia.training.levels import make_level
from aitia.workflows.runs import Run, open_run
from aitia.workflows.verify import wrong_groups


def causal_levels(run: Run) -> set[str]:
    """Return the bug levels of a run of the arrow maze."""
    env = run.task.training_env.make().unwrapped
    if not isinstance(env, ArrowMazeEnv):
        raise InputError(f"{run.folder.root} is a run of {run.task.env}, expected the arrow maze: its cause is known")
    return {str(n) for n in range(env.level_set.levels) if make_level(env.level_set, n).bug}


def measure(run: Run) -> dict[str, float | int]:
    """Return AUCs by estimator, and how many of the first k groups are causal, k the number of causal ones."""
    causal, rewards = causal_levels(run), [reward_summary(run.folder, seed) for seed in run.task.seeds]
    wrong = wrong_groups(rewards)
    sums = read_table(run.folder.influence_path("test", "groups"))
    orders: dict[str, list[str]] = {}
    singles: dict[str, list[float]] = {}
    for estimator in ("trak", "tracin"):
        mine = sums.filter(pc.field("estimator") == estimator)
        raw = mine.drop_columns(["effect"]).append_column("effect", mine["effect_raw"])
        for name, table, lam in [
            *((f"{estimator}_lambda_{lam:g}", mine, lam) for lam in LAMBDAS),
            (f"{estimator}_raw", raw, LAMBDAS[0]),
        ]:
            orders[name] = attribution_order(effect_table(table, lam), wrong)
            by_seed = [table.filter(pc.field("seed") == seed) for seed in run.task.seeds]
            singles[name] = [area_under_curve(attribution_order(effect_table(t, lam), wrong), causal) for t in by_seed]
    error = (
        pa.concat_tables(rewards).group_by("group").aggregate([("error", "sum")]).sort_by([("error_sum", "descending")])
    )
    orders["size"] = [group for group in error["group"].to_pylist() if group in wrong]
    orders["random"] = random_order(wrong)
    found: dict[str, float | int] = {"causal": len(causal), "wrong": len(wrong), "seeds": len(run.task.seeds)}
    print(f"{'order by':24s} {'AUC':>6s} {'single seeds':>24s} {'causal in top ' + str(len(causal)):>18s}")
    for name, order in orders.items():
        auc, top = area_under_curve(order, causal), sum(group in causal for group in order[: len(causal)])
        found[f"auc_{name}"], found[f"top_{name}"] = round(auc, 4), top
        single = ""
        if name in singles:
            found[f"auc_single_{name}"] = round(float(np.mean(singles[name])), 4)
            single = f"{np.mean(singles[name]):.3f} ({min(singles[name]):.3f}-{max(singles[name]):.3f})"
        print(f"{name:24s} {auc:6.3f} {single:>24s} {top:18d}")
    return found


def main() -> None:
    """Measure a finished run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--run", type=Path, default=Path("runs/arrow-maze-outer"), help="a run of `make demo`")
    folder = parser.parse_args().run
    aitia.attribute(folder, estimator="tracin")  # the baseline beside the demo's own attribution
    print(json.dumps(measure(open_run(folder))))


if __name__ == "__main__":
    main()
