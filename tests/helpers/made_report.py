"""A report made by hand: pages of every kind without any training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from aitia.datasets.arrays import array_format_of, array_metadata, encode_arrays
from aitia.datasets.files.store import write_json
from aitia.datasets.frames import FrameWriter
from aitia.datasets.outcomes import Outcomes, SeedRates
from aitia.datasets.schema import BANK_LEARNING, EPISODES, LEARNING, with_metadata
from aitia.reports.measures.curve import CurvePoint, Units
from aitia.reports.measures.doubts import Direction, Doubt
from aitia.reports.measures.learning import Learning, find_learning
from aitia.reports.measures.predictions import concentration
from aitia.reports.measures.preference import Preference, find_preference
from aitia.reports.measures.timeline import Stretch
from aitia.reports.pages.advice import Surroundings, explain
from aitia.reports.pages.episode import episode_table
from aitia.reports.pages.findings import PredictionFindings, SetFindings, summarise
from aitia.reports.pages.place import Place
from aitia.reports.pages.views import (
    ClusterContext,
    EpisodeView,
    FailureView,
    FrameView,
    PageContext,
    RewardView,
    StepView,
)
from aitia.reports.pages.write import write_cluster_page, write_failure_page, write_index_page
from aitia.reports.statistics import Interval, rate_interval
from aitia.reports.verdict.competence import Competence, Goal, Goals
from aitia.reports.verdict.framing import RewardScale
from aitia.reports.verdict.rules import Evidence, OutcomeRate, Thresholds, decide
from aitia.workflows.runs.clusters import Cluster
from aitia.workflows.stages.reporting.cluster_report import ClusterReport

SEEDS = 5


def seed_rates(values: list[float], desired_train: float = 0.98) -> tuple[SeedRates, ...]:
    """Return the rates of seeds that play competently, with these misbehaviour rates."""
    return tuple(SeedRates(seed, m, 0.95, 0.95 * (1 - m), desired_train) for seed, m in enumerate(values))


BEFORE = seed_rates([0.90, 0.92, 0.88, 0.91, 0.89])
AFTER = seed_rates([0.02, 0.03, 0.01, 0.05, 0.02])
CAPABLE = (OutcomeRate("arrow", 0.10, 0.3), OutcomeRate("corner", 0.85, 0.2))

_OUTCOMES = Outcomes(desired=["arrow"], misbehaved=["corner"])


def made_findings(evidence: Evidence | None = None, **changes: Any) -> SetFindings:
    """Return the findings of an outer set, or of other evidence, with a correction curve."""
    evidence = evidence or Evidence(BEFORE, AFTER, CAPABLE, largest_error=1.0)
    sizes = {"none": 0, "attribution": 3, "random": 3, "all": 6}
    rates = {"none": BEFORE, "attribution": AFTER, "random": BEFORE, "all": evidence.corrected or AFTER}
    curve = tuple(
        CurvePoint(
            order, Units(10.0 * size, 10.0 * size, 5.0 * size, float(size)),
            rate_interval([r.misbehaviour or 0.0 for r in rates[order]]), 0.95, 0.9, rates[order],
        )
        for order, size in sizes.items()
    )  # fmt: skip
    values: dict[str, Any] = {
        "evidence": evidence, "decision": decide(evidence, Thresholds()), "curve": curve, "ease": None, "minimal": (),
        "scale": RewardScale(0.0, 1.0), "goals": _goals(), "thresholds": Thresholds(), "declared": _OUTCOMES,
    }  # fmt: skip
    return SetFindings(**(values | changes))


def _goals() -> Goals:
    """What the solvers of two goals show; the corner fits the agents best."""
    corner = Competence("corner", False, Interval(0.97, 0.95, 0.99), 0.9, 0.15, 0.92)
    arrow = Competence("arrow", True, Interval(-0.05, -0.08, -0.02), 0.1, 0.14, 1.0)
    return Goals((corner, arrow), (Goal("arrow", 1.0, 1.0), Goal("corner", 0.98, 0.0)))


@dataclass(frozen=True)
class MadeReport:
    """Where it is, its entries, and the groups that its figures show."""

    folder: Path
    entries: list[dict[str, Any]]
    groups: list[str]


def write_report(
    run: Path, failures: int = 12, pages: int = 2, text: str = "", clusters: int = 1, drawn: bool = True,
    doubts: tuple[Doubt, ...] = (),
) -> MadeReport:  # fmt: skip
    """Write a report of `failures` failures with `pages` pages of failures.

    Args:
        run: folder of the run: files that pages link to are put there, empty.
        failures: how many.
        pages: how many of them get a page.
        text: stands in every field that an environment or a task fills.
        clusters: how many; the first is outer, others inner.
        drawn: whether the environment draws pictures; else text.
        doubts: of the order of groups.
    """
    folder = run / "reports" / "test"
    findings = made_findings()
    groups = [f"{n}{text}" for n in range(6)]
    by_seed = {group: np.linspace(-1.0, -0.8, SEEDS) / (n + 1) for n, group in enumerate(groups)}
    found = concentration(by_seed, _null(groups))
    direction = Direction(Interval(-0.5, -0.6, -0.4))
    predictions = PredictionFindings("trak", found, None, None, doubts, direction)
    line = [Stretch(n, n, Interval(-0.1 * n, -0.1 * n - 0.1, 0.1 - 0.1 * n)) for n in range(4)]
    explanation = explain(findings, Surroundings({"size": 7}, {"size": 7, "moved": text}, worst=[text], corrected=3))
    edits = "edits.yaml" if clusters == 1 else "edits-0.yaml"
    contexts = {0: ClusterContext(0, findings, explanation, edits, line, doubts, direction)}
    for number in range(1, clusters):
        other = made_findings(Evidence(BEFORE, BEFORE, CAPABLE, largest_error=1.0))
        contexts[number] = ClusterContext(number, other, explain(other, Surroundings()), None, line)
    page = PageContext(
        _task(text), "test", "groups (contexts)", findings, contexts, [f"told {text}"], _PROVENANCE, None, "edits.yaml",
        place=Place("/runs/made run", "/runs/made run/reports/test", "test", f"/tasks/made{text}.yaml"),
    )  # fmt: skip
    entries = [
        _entry(n, groups, text)
        | {"cluster": n % clusters, "verdict": str(contexts[n % clusters].findings.decision.verdict)}
        for n in range(failures)
    ]
    frames = [np.full((24, 24, 3), shade, np.uint8) for shade in (40, 120, 200)]
    assets = [FrameWriter(folder / "assets" / "frames").write(frame)[0] for frame in frames]
    for entry in entries[:pages]:
        write_failure_page(folder, page, entry, _view(assets, groups, line, text, drawn))
    thumbnails = {entry["failure"]: assets[0] for entry in entries[:pages]}
    found_of = {number: context.findings for number, context in contexts.items()}
    learning, preference = made_learning(text), made_preference(text)
    summary = summarise(findings, found_of, predictions, entries, 20, {"train": 1.0}, learning, preference)
    shown = [
        {"group": g, "effect": float(e.mean()), "interval": Interval(float(e.mean()), float(e.min()), float(e.max())),
         "rate": Interval(None, None, None), "wrong": 4.0, "error": 4.0}
        for g, e in by_seed.items()
    ]  # fmt: skip
    report = ClusterReport(Cluster(0, ()), findings, Surroundings(), shown, predictions, None)
    for number, context in contexts.items():
        mine = [entry for entry in entries if entry["cluster"] == number]
        write_cluster_page(folder, page, context, mine, report.view(page.unit))
    write_index_page(folder, page, summary, entries, thumbnails, explanation, learning, preference)
    write_json(folder / "verdicts.json", entries)
    write_json(folder / "summary.json", summary)
    linked = ["evaluations/test/steps", "influence/test/windows", "influence/test/transitions"]
    for name in [*(f"{name}.parquet" for name in linked), "transitions/seed=0/window=00003.parquet"]:
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    for name in {"edits.yaml", edits}:
        (folder / name).touch()
    return MadeReport(folder, entries, groups)


_PROVENANCE = dict.fromkeys(("aitia", "git_sha", "written", "python", "torch", "stable-baselines3"), "1.0")


_TOP_GROUP = {"effect": -1.0, "low": -1.5, "high": -0.5, "transitions": 4, "reward_events": 4}


def _null(groups: list[str]) -> pa.Table:
    rows = [
        {"group": group, "seed": seed, "draw": draw, "effect": -0.1 * ((n + draw) % 3 + 1)}
        for n, group in enumerate(groups)
        for seed in range(SEEDS)
        for draw in range(2)
    ]
    return pa.Table.from_pylist(rows)


def _task(text: str) -> dict[str, Any]:
    return {
        "name": f"made{text}", "env": f"made/Env-v0{text}", "seeds": list(range(SEEDS)), "group_by": "context",
        "outcomes": {"desired": [f"arrow{text}"], "misbehaved": [f"corner{text}"]},
        "agent": {"algorithm": "PPO", "total_timesteps": 4096}, "evaluation": {"episodes": 12, "repeats": 4},
        "verify": {"coverage": {"levels": text}, "minimal": None},
    }  # fmt: skip


def _entry(number: int, groups: list[str], text: str) -> dict[str, Any]:
    seed, episode = number % SEEDS, number // SEEDS
    return {
        "failure": f"{seed}-{episode}", "seed": seed, "episode": episode, "context": f"{number % 97}{text}",
        "outcome": f"corner{text}", "cluster": 0, "framing1": "inner" if number % 3 else "outer", "verdict": "outer",
        "rule": 8, "basis": "corrective", "outer_share": {"value": 0.97, "low": 0.95, "high": 0.99},
        "ease": None, "own_rates": {"uncorrected": 0.5 + (number % 50) / 100, "all_corrected": None},
        "reasons": [f"because {text}"],
        "top_groups": [{"group": group, **_TOP_GROUP} for group in groups],
    }  # fmt: skip


def _view(assets: list[str], groups: list[str], line: list[Stretch], text: str, drawn: bool) -> FailureView:
    frames = [
        FrameView(asset, f"{t}: down{text}", t == 1, None if drawn else f"room {t} \x1b[41mA\x1b[0m{text}\n", t)
        for t, asset in enumerate(assets)
    ]
    reward = RewardView(groups[0], f"up{text}", 0, 3, 1, 7, 0.0, 1.0, -0.3, -0.3, assets[0])
    steps = [StepView(t, f"up{text}", 0.0, float(t == 2), asset) for t, asset in enumerate(assets)]
    texts = {frame.step: frame.text for frame in frames if frame.text is not None}
    table = episode_table(made_steps(2), lambda action: f"{action}{text}", texts)
    return FailureView(frames, text, f"target {text}", [reward], [reward], [EpisodeView(reward, steps, 3)], line, table)


def made_steps(steps: int, **columns: Any) -> pa.Table:
    """Return the steps of an episode in which nothing changes, as an evaluation keeps them."""
    observations = np.tile(np.array([0.25, 1.0, 0.0], np.float32), (steps, 1))
    table = pa.table(
        {
            "observation": encode_arrays(observations), "action": pa.array([1] * steps),
            "action_labels": pa.nulls(steps, pa.list_(pa.int8())), "log_prob": [-0.5] * steps, "value": [0.5] * steps,
            "reward": [0.0] * steps, "probabilities": [[0.25, 0.6, 0.15]] * steps, **columns,
        }
    )  # fmt: skip
    return with_metadata(table, {**array_metadata("observation", array_format_of(observations)), "actions": "3"})


def made_training(shares: list[tuple[int, int, int]], text: str = "", returns: float = 1.0) -> pa.Table:
    """Return how a training's episodes ended: numbers of desired, misbehaved and other ones of each window."""
    names = (f"arrow{text}", f"corner{text}", f"timeout{text}")
    rows = [
        {"seed": 0, "window": window, "outcome": name, "episodes": n, "reward": n * returns * (1 + index)}
        for window, counts in enumerate(shares)
        for index, (name, n) in enumerate(zip(names, counts, strict=True))
        if n
    ]
    return pa.Table.from_pylist(rows, schema=LEARNING)


def made_learning(text: str = "") -> Learning:
    """Return outcomes over training of agents that still learn, none of them corrected."""
    trainings = {seed: made_training([(w, 20 - w - seed, 5) for w in range(12)], text) for seed in range(3)}
    found = find_learning(trainings, None, BANK_LEARNING.empty_table(), _declared(text))
    assert found is not None
    return found


def made_preference(text: str = "") -> Preference:
    """Return the preference of a reward that pays misbehaviour twice as much."""
    trainings = {seed: made_training([(3, 2, 1)], text, 1 + seed / 10) for seed in range(3)}
    found = find_preference(trainings, EPISODES.empty_table(), _declared(text))
    assert found is not None
    return found


def _declared(text: str) -> Outcomes:
    return Outcomes(desired=[f"arrow{text}"], misbehaved=[f"corner{text}"])
