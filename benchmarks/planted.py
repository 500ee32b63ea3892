"""Does attribution find the planted cause? Estimators and baselines on settings whose cause is known.

A setting is a training in which some levels' wrong rewards cause the failure and other levels' wrong rewards do no harm
(benchmarks/planted.yaml). Recordings that are missing are made first, in OUT, and used again. Prints a table; the last
line is one JSON object. AUC: 1 ranks every causal level before every harmless one, .5 is chance. docs/influence.md.

    python -m benchmarks.planted [--out DIR] [--only NAME ...] [--quick]
    python -m benchmarks.planted --run runs/arrow-maze-outer
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

import aitia
from aitia.attribution.effects.order import area_under_curve, at_own_damping
from aitia.datasets.bank import ensemble_rates
from aitia.datasets.errors import InputError, RunFolderError
from aitia.datasets.files.store import RunFolder, read_json, read_table, write_json
from aitia.datasets.manifest import Manifest
from aitia.datasets.rewards import reward_summary, wrong_groups
from aitia.reports.measures.doubts import Direction
from aitia.reports.statistics import mean_interval
from aitia.training.agents.play import EvaluationSpec, evaluate_policy
from aitia.training.edits.edit import RewardEdit
from aitia.training.retraining.arrays import Member
from aitia.training.retraining.ppo import STACK
from aitia.training.retraining.stack import train_stack
from aitia.workflows.runs.changes import require_unchanged
from aitia.workflows.runs.run import Run, open_for_computing
from aitia.workflows.runs.task import TEST_SET, Task, make_task

SETTINGS = Path(__file__).with_suffix(".yaml")
REST: dict[str, Any] = {"seeds": 5, "evaluation": {"episodes": 24, "repeats": 4}}
PLAYS = EvaluationSpec(episodes=24, repeats=2)
ESTIMATORS = ("trak", "trak-linear", "tracin", "trak-updates", "nearest-observation", "size", "random")
COLUMNS = (
    "trak",
    "trak-linear",
    "tracin",
    "trak-updates",
    "nearest-observation",
    "nearest-per-row",
    "count",
    "size",
    "random",
)
ARMS = ("none", "all", "causal", "harmless")
FAILURES = 8  # of each seed that are attributed
DRAWS = 200  # of seeds, with replacement
ENDS = (0.025, 0.975)  # of intervals, from these draws
Floats = NDArray[np.float64]
log = logging.getLogger("aitia")
CAUSES = {"bug": "aitia.training.worlds.maze:causal_levels", "moved": "aitia.benchmarks.grids:moved_levels"}


class _Model(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class Family(_Model):
    """What the settings of a world share."""

    env: str
    outcomes: dict[str, list[str]]
    test: dict[str, Any] = Field(default_factory=dict)
    steps: int = 40_960


class Setting(_Model):
    """A training with planted wrong rewards.

    Attributes:
        name: its world's, and what is planted.
        half: what it may be used for, see the settings' file.
        train, test: arguments of the environments.
        causes: which levels cause the failure.
    """

    name: str
    half: Literal["open", "held-out", "sign", "control"]
    train: dict[str, Any]
    test: dict[str, Any] = Field(default_factory=dict)
    causes: Literal["bug", "moved"] = "bug"

    def task(self) -> Task:
        """Return its task."""
        worlds = read()["worlds"]
        family = Family.model_validate(worlds[max((name for name in worlds if self.name.startswith(name)), key=len)])
        test = {"levels": 500, "moved": 500, "level_seed": 1, **family.test, **self.test}
        values = {
            "name": self.name, "env": family.env, "outcomes": family.outcomes, "train_kwargs": self.train,
            "test_kwargs": test, "agent": {"total_timesteps": family.steps}, "causes": CAUSES[self.causes], **REST,
        }  # fmt: skip
        return make_task(values, f"setting {self.name}")


@lru_cache(maxsize=1)
def read() -> dict[str, Any]:
    """Return the settings' file."""
    values: dict[str, Any] = yaml.safe_load(SETTINGS.read_text(encoding="utf-8"))
    return values


def settings(names: Sequence[str] = ()) -> list[Setting]:
    """Return settings by name; all of them where none is named."""
    known = {row["name"]: Setting.model_validate(row) for row in read()["settings"]}
    for name in names:
        if name not in known:
            raise InputError(f"--only {name} was given, expected one of {', '.join(known)}")
    return [setting for name, setting in known.items() if not names or name in names]


def record(setting: Setting, out: Path) -> Run:
    """Return the run of a setting, trained and played; one of another task, or of code that changed, is made again."""
    task, folder = setting.task(), RunFolder.at(out / setting.name)
    if folder.manifest_path.exists():
        manifest = Manifest.read(folder)
        try:
            stale = bool(task.differences(manifest.task)) or require_unchanged(task, manifest)
        except RunFolderError:
            stale = True
        if stale:
            log.info("%s was recorded of another task, or with other code: it is made again", folder.root)
            shutil.rmtree(folder.root)
    aitia.train(task, folder.root, workers=0)
    aitia.evaluate(folder.root, workers=0)
    return open_for_computing(folder.root)


class Ranking(NamedTuple):
    """How an estimator or a baseline orders the wrong groups of a run: by effect, the smallest first.

    Attributes:
        auc: of causal over harmless groups, effects being means over seeds; NaN where there are not both.
        share: sum of the effects of all wrong groups over that of their sizes: -1 where all point to less misbehaviour.
        claimed: what pages claim of all corrections together, from the shares of single seeds and their interval.
        single: `auc` of each seed alone, [S].
        draws: `auc` and `share` for seeds drawn with replacement, [B, 2].
    """

    auc: float
    share: float
    claimed: str | None
    single: Floats
    draws: Floats

    @staticmethod
    def of(by_seed: Floats, is_causal: NDArray[np.bool_]) -> Ranking:
        """Make one of the effects of G wrong groups in S seeds, [S, G], groups in the order of their names."""
        names = np.arange(len(is_causal)).astype(str)
        causal, both = set(names[is_causal].tolist()), bool(is_causal.any() and not is_causal.all())

        def auc(effect: Floats) -> float:
            return area_under_curve(names[np.argsort(effect, kind="stable")].tolist(), causal) if both else float("nan")

        def share(effect: Floats) -> float:
            size = float(np.abs(effect).sum())
            return float(effect.sum()) / size if size else 0.0

        seeds, mean = len(by_seed), by_seed.mean(axis=0)
        drawn = [by_seed[rows].mean(axis=0) for rows in np.random.default_rng(0).integers(seeds, size=(DRAWS, seeds))]
        draws = np.array([(auc(effect), share(effect)) for effect in drawn])
        direction = Direction.of(by_seed)
        claimed = None if direction is None else direction.claimed
        return Ranking(auc(mean), share(mean), claimed, np.array([auc(effect) for effect in by_seed]), draws)


def rankings(run: Run, names: Sequence[str] = ESTIMATORS) -> dict[str, Ranking]:
    """Return rankings by estimator, of two baselines that are counted (`count`, `nearest-per-row`), and `direction`.

    `direction` is that of `trak` with the critic corrected too: its share is the sign of the total, its order nothing.
    """
    causal, rewards = causal_groups(run), [reward_summary(run.folder, seed) for seed in run.task.seeds]
    groups = sorted(wrong_groups(rewards))
    is_causal = np.array([group in causal for group in groups])
    position = {group: number for number, group in enumerate(groups)}

    def by_seed(table: pa.Table, column: str) -> Floats:
        """Return sums of a column by seed and wrong group, [S, G]."""
        total = np.zeros((len(run.task.seeds), len(groups)))
        rows = table.filter(pc.is_in(table["group"].cast(pa.string()), pa.array(groups)))
        group = [position[name] for name in rows["group"].to_pylist()]
        seed = [run.task.seeds.index(number) for number in rows["seed"].to_pylist()]
        np.add.at(total, (seed, group), rows[column].to_numpy().astype(np.float64))
        return total

    sums = read_table(run.folder.influence_path(TEST_SET, "groups"), ["estimator", "lambda", "seed", "group", "effect"])
    effects = {name: by_seed(_of(sums, name), "effect") for name in names}
    wrong_rows = by_seed(pa.concat_tables(rewards), "wrong_transitions")
    effects["count"] = -wrong_rows
    if "nearest-observation" in effects:
        effects["nearest-per-row"] = effects["nearest-observation"] / np.maximum(wrong_rows, 1.0)
    if "trak" in effects:
        direction = read_table(run.folder.influence_path(TEST_SET, "direction"))
        effects["direction"] = by_seed(_of(direction, "trak"), "effect")
    return {name: Ranking.of(effect, is_causal) for name, effect in effects.items()}


def _of(table: pa.Table, estimator: str) -> pa.Table:
    """Return the rows of one estimator, of its own damping where there are several."""
    mine = table.filter(pc.field("estimator") == estimator)
    return at_own_damping(mine) if "lambda" in mine.column_names else mine


def causal_groups(run: Run) -> frozenset[str]:
    """Return the groups that the run's task declares as the cause."""
    causal = run.task.causal_groups()
    if causal is None:
        raise InputError(f"the task of {run.folder.root} declares no `causes`: its cause has to be known")
    return causal


def attribute(run: Run, names: Sequence[str]) -> None:
    """Attribute the first failures of each seed by estimators; what is done is not done again."""
    failures = [failure for seed in run.task.seeds for failure in _of_seed(run[TEST_SET].failure_ids, seed)[:FAILURES]]
    for name in names:
        aitia.attribute(run.folder.root, failure=failures, estimator=name, workers=0)


def _of_seed(failures: Sequence[str], seed: int) -> list[str]:
    return [failure for failure in failures if failure.partition("-")[0] == str(seed)]


def measure(run: Run, names: Sequence[str] = ESTIMATORS) -> dict[str, float | int]:
    """Print a table of one attributed run and return what it holds: AUCs by estimator, ensemble and mean of seeds."""
    found: dict[str, float | int] = {"seeds": len(run.task.seeds)}
    print(f"{'order by':24s} {'AUC':>6s} {'single seeds':>24s} {'share':>8s}")
    for name, ranking in rankings(run, names).items():
        single = ranking.single
        spread = f"{single.mean():.3f} ({single.min():.3f}-{single.max():.3f})"
        print(f"{name:24s} {ranking.auc:6.3f} {spread:>24s} {ranking.share:8.3f}")
        key = name.replace("-", "_")
        found |= {f"auc_{key}": round(ranking.auc, 4), f"auc_single_{key}": round(float(single.mean()), 4)}
        found[f"share_{key}"] = round(ranking.share, 4)
    return found


def cures(run: Run) -> dict[str, float]:
    """Return misbehaviour rates by what is corrected in training: `none`, `all`, the `causal` levels, the `harmless`.

    Kept next to the run's other files: agents are not trained again.
    """
    path = run.folder.parts_folder("planted") / "cures.json"
    if path.exists():
        kept: dict[str, float] = read_json(path)
        return kept
    task, causal = run.task, causal_groups(run)
    harmless = frozenset(wrong_groups([reward_summary(run.folder, seed) for seed in task.seeds])) - causal
    edits = {"all": RewardEdit(None), "causal": RewardEdit(causal), "harmless": RewardEdit(harmless)}
    arms = [
        (name, Member(seed, edit)) for name, edit in edits.items() if edit.groups != frozenset() for seed in task.seeds
    ]
    plays: dict[str, list[pa.Table]] = {"none": [read_table(run.folder.evaluation_path(TEST_SET, "episodes"))]}
    for first in range(0, len(arms), STACK):
        stack = arms[first : first + STACK]
        trained = train_stack(task.agent, task.training_env, [member for _, member in stack])
        for (name, member), agent in zip(stack, trained, strict=True):
            env = task.evaluation_env(TEST_SET)
            plays.setdefault(name, []).append(evaluate_policy(agent.policy, env, PLAYS, member.seed, "test")[0])
    rates = {name: ensemble_rates(pa.concat_tables(tables), task.outcomes) for name, tables in plays.items()}
    found = {name: round(float(np.mean([one.misbehaviour for one in of])), 3) for name, of in rates.items()}
    write_json(path, found)
    return found


def summary(found: dict[str, dict[str, Ranking]], chosen: Sequence[Setting]) -> dict[str, Any]:
    """Return what the last line says of all settings."""
    of = {half: [found[s.name] for s in chosen if s.half == half] for half in ("open", "held-out", "sign", "control")}

    def of_half(half: str) -> dict[str, Any]:
        mine = of[half]
        values: dict[str, Any] = {}
        for name in mine[0]:
            short = {"trak": "", "trak-linear": "-linear", "nearest-observation": "-nearest"}.get(name, f"-{name}")
            key = short.replace("-", "_")
            values[f"auc{key}"] = round(float(np.mean([one[name].auc for one in mine])), 4)
            values[f"auc_single{key}"] = round(float(np.mean([one[name].single for one in mine])), 4)
        ours, theirs = ([round(one[name].auc, 3) for one in mine] for name in ("trak", "nearest-observation"))
        low, high = np.quantile(np.mean([one["trak"].draws[:, 0] for one in mine], axis=0), ENDS)
        single = np.mean([one["trak"].single for one in mine], axis=0)
        interval = mean_interval(single.tolist())
        return values | {
            "auc_interval": [round(float(low), 4), round(float(high), 4)],
            "auc_single_interval": [round(end, 4) for end in (interval.low, interval.high) if end is not None],
            "better_than_nearest": sum(a > b for a, b in zip(ours, theirs, strict=True)),
            "worse_than_nearest": sum(a < b for a, b in zip(ours, theirs, strict=True)),
        }

    curable = [one["direction"] for half in ("open", "held-out", "sign") for one in of[half]]
    controls = [one["direction"] for one in of["control"]]
    return {
        "settings": len(of["open"]) + len(of["held-out"]),
        **{half.replace("-", "_"): of_half(half) for half in ("open", "held-out") if of[half]},
        "signs": len(curable), "signs_right": sum(one.share < 0.0 for one in curable),
        "signs_claimed": sum(one.claimed == "less" for one in curable),
        "controls": round(max((abs(one.share) for one in controls), default=0.0), 4),
        "controls_claimed": sum(one.claimed is not None for one in controls),
    }  # fmt: skip


def row(setting: Setting, found: dict[str, Ranking], rates: dict[str, float]) -> str:
    """Return a row of the table (Markdown): AUCs, the total's share, and rates as in `cures`."""
    aucs = [found[name].auc if name in found else float("nan") for name in COLUMNS]
    aucs.insert(1, float(found["trak"].single.mean()))
    cells = [f"{auc:.3f}" if np.isfinite(auc) else "-" for auc in aucs]
    low, high = np.quantile(found["trak"].draws[:, 0], ENDS)
    cells[0] += f" [{low:.2f}, {high:.2f}]" if np.isfinite(low) else ""
    low, high = np.quantile(found["direction"].draws[:, 1], ENDS)
    cells.append(f"{found['direction'].share:+.2f} [{low:+.2f}, {high:+.2f}]")
    cells.append(" ".join(f"{rates[arm]:.2f}" if arm in rates else "-" for arm in ARMS))
    return f"| {setting.name} | {setting.half} | " + " | ".join(cells) + " |"


def main() -> None:
    """Record, attribute, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/planted"), help="where recordings are kept")
    parser.add_argument("--only", nargs="*", default=(), help="settings; none: all")
    parser.add_argument("--run", type=Path, help="one run whose task declares `causes`, instead of the settings")
    parser.add_argument("--quick", action="store_true", help="no trak-updates, and no retraining to see what cures")
    given = parser.parse_args()
    names = [name for name in ESTIMATORS if not (given.quick and name == "trak-updates")]
    if given.run is not None:
        run = open_for_computing(given.run)
        attribute(run, names)
        print(json.dumps(measure(run, names)))
        return
    chosen = settings(given.only)
    heading = ["setting", "half", COLUMNS[0], "its single seeds", *COLUMNS[1:], "share", "rate: " + " ".join(ARMS)]
    print("| " + " | ".join(heading) + " |\n|" + "---|" * len(heading), flush=True)
    found: dict[str, dict[str, Ranking]] = {}
    for setting in chosen:
        run = record(setting, given.out)
        attribute(run, names)
        found[setting.name] = rankings(run, names)
        print(row(setting, found[setting.name], {} if given.quick else cures(run)), flush=True)
    print(json.dumps(summary(found, chosen)))


if __name__ == "__main__":
    main()
