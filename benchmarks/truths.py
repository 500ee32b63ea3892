"""What the cases of the suite truly are: 16 seeds of each, trained with and without the correction.

None of these seeds is used by the suite. The verdict rules are applied to them; a planted cause that does not cause is
a finding. Writes workflows/suite/cases/truths.json; cases that it holds with the same task are not trained again.

    python -m benchmarks.truths [CASE ...]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from aitia.datasets.bank import ensemble_rates
from aitia.datasets.schema import RANDOM_POLICY_SEED
from aitia.reports.verdict.evidence import outcome_rates, tampering
from aitia.reports.verdict.rules import Evidence, decide
from aitia.training.agents.play import EvaluationSpec, evaluate_policy
from aitia.training.edits.edit import RewardEdit
from aitia.training.retraining.arrays import Member
from aitia.training.retraining.ppo import STACK
from aitia.training.retraining.stack import train_stack
from aitia.workflows.suite.cases import Case, choose_cases
from aitia.workflows.workers.cluster import DaskWorkers

SEEDS = range(100, 116)
PLAYS = {"test": EvaluationSpec(episodes=48, repeats=4), "train": EvaluationSpec(episodes=48, repeats=1)}
PATH = Path(__file__).parents[1] / "workflows" / "cases" / "truths.json"


class Plays(NamedTuple):
    """How the agents of a piece played, and how many training rewards its correction changed."""

    episodes: pa.Table
    changed: int


class Piece(NamedTuple):
    """Agents of a case that are trained together."""

    case: Case
    corrected: bool
    seeds: tuple[int, ...]


def plays_of(piece: Piece) -> Plays:
    """Train a stack and let every agent play (no seeds: the random policy)."""
    task = piece.case.task()
    edit = RewardEdit(None) if piece.corrected else None
    agents: list[tuple[int, Any]] = [(RANDOM_POLICY_SEED, None)]
    changed = 0
    if piece.seeds:
        trained = train_stack(task.agent, task.training_env, [Member(seed, edit) for seed in piece.seeds])
        changed = sum(found.corrected for found in trained)
        agents = [(seed, found.policy) for seed, found in zip(piece.seeds, trained, strict=True)]
    envs = {"test": task.evaluation_env("test"), "train": task.training_env}
    tables = [evaluate_policy(policy, envs[p], PLAYS[p], seed, p)[0] for seed, policy in agents for p in PLAYS]
    return Plays(pa.concat_tables(tables), changed)


def truth_of(case: Case, given: pa.Table, corrected: pa.Table, random: pa.Table, changed: int) -> dict[str, Any]:
    """Apply the verdict rules to 16 seeds."""
    task, every = case.task(), pa.concat_tables([given, random])
    train = every.filter(pc.field("part") == "train")
    returns = train["reward"].to_numpy()
    evidence = Evidence(
        uncorrected=ensemble_rates(given, task.outcomes),
        corrected=ensemble_rates(corrected, task.outcomes),
        outcomes=outcome_rates(every, task.outcomes),
        largest_error=float(changed > 0),
        tampering=tampering(every, float(np.ptp(returns))),
    )
    found = decide(evidence, task.verdict.thresholds)
    return {
        "verdict": str(found.verdict), "rule": found.rule, "seeds": len(SEEDS),
        "misbehaviour_rate": {"uncorrected": found.uncorrected.as_dict(), "corrected": found.all_corrected.as_dict()},
        "outer_share": found.outer_share.as_dict(), "task": case.identity(),
    }  # fmt: skip


def main() -> None:
    """Find the truth of cases and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", help="cases or families; none: all")
    cases = choose_cases(parser.parse_args().cases)
    known: dict[str, Any] = json.loads(PATH.read_text(encoding="utf-8")) if PATH.exists() else {}
    with DaskWorkers() as workers:
        for case in cases:
            if known.get(case.name, {}).get("task") == case.identity():
                continue
            stacks = [tuple(SEEDS[i : i + STACK]) for i in range(0, len(SEEDS), STACK)]
            pieces = [Piece(case, corrected, seeds) for corrected in (False, True) for seeds in stacks]
            found = workers.map(plays_of, [*pieces, Piece(case, False, ())], f"truth {case.name}")
            tables, changed, half = [plays.episodes for plays in found], sum(x.changed for x in found), len(stacks)
            given, corrected = pa.concat_tables(tables[:half]), pa.concat_tables(tables[half : 2 * half])
            known[case.name] = truth_of(case, given, corrected, tables[-1], changed)
            PATH.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
            rates = known[case.name]["misbehaviour_rate"]
            before, after = (rates[key]["value"] for key in ("uncorrected", "corrected"))
            shows = known[case.name]["verdict"]
            print(f"{case.name:32s} planted {case.planted:20s} shows {shows:20s} {before} {after}", flush=True)


if __name__ == "__main__":
    main()
