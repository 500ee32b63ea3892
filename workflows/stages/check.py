"""`aitia check`: what a task will do, said in seconds, before anything is trained."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

from ...datasets.errors import TaskError
from ...datasets.groups import BY_CONTEXT, ByComponent, Grouping
from ...datasets.words import counted
from ...training.agents.outcome_names import SeenOutcomes, require_names, see_outcomes, unseen_in_words
from ...training.edits.groups import ByTransition
from ...training.environments.contract import STEP_KEYS
from ...training.environments.spec import EnvProfile, can_render, describe
from ...training.retraining.stack import members_at_once
from ...training.retraining.timing import measure_speed, undisturbed
from ..runs.begin import require_environments
from ..runs.recorded import TRAINING
from ..runs.task import TEST_SET, Task
from ..workers.pool import Workers
from ..workers.start import start_workers

log = logging.getLogger("aitia")
_MEASURED_FROM = 200_000  # steps of all trainings: fewer are over before an estimate would help
_LOOK = "a short look (a random policy, and reference solvers where there are)"
WITHOUT = {
    "intended_reward": "no reward can be called wrong: no corrections, and a verdict only by arbitrary edits",
    "context": "with group_by: context all transitions are one group",
    "action_labels": "the target is log-odds instead of labelled actions",
    "reward_components": "no group_by: component",
    "untampered_reward": "tampering cannot be told",
    "reward_extensions": "Framing 1 is not checked against other extensions of the reward",
}


@dataclass(frozen=True)
class Trainings:
    """How many agents are trained.

    Attributes:
        ensemble: seeds.
        bank: agents of the bank, for one cluster of failures a set; fewer, or none, where the verdict needs none.
        bank_at_most: for as many clusters of failures as the task allows.
    """

    ensemble: int
    bank: int
    bank_at_most: int


def check_task(task: Task, workers: int | None = None) -> dict[str, Any]:
    """Return what a task will do, with what is missing and what it takes.

    Args:
        task: the task.
        workers: processes that would work; None: one a core.

    Raises:
        InputError: an environment breaks the contract, or a declared outcome cannot occur.
    """
    with undisturbed():
        training = require_environments(task)[TRAINING]
        facts, seen = _look(task, training)
        facts["estimate"] = _estimate(task, seen, start_workers(workers).count)
    return facts


def before_training(task: Task, workers: Workers) -> SeenOutcomes:
    """Say in a few lines what a task will do, and refuse outcomes that cannot occur; workers import meanwhile.

    The environments have been probed.

    Raises:
        TaskError: a declared outcome cannot occur.
    """
    with undisturbed():
        facts, seen = _look(task, None)
    for line in check_in_words(facts):
        log.info("check %s: %s", task.name, line)
    for line in facts["warnings"]:
        log.warning("check %s: %s", task.name, line)
    trainings = facts["trainings"]["ensemble"] + facts["trainings"]["bank"]
    if trainings * facts["steps"]["trained"] >= _MEASURED_FROM:
        workers.begin_importing()
        log.info("check %s: %s", task.name, estimate_in_words(_estimate(task, seen, workers.count)))
    return seen


def _look(task: Task, training: EnvProfile | None) -> tuple[dict[str, Any], SeenOutcomes]:
    """Return facts, without an estimate, and the outcomes that a short look shows."""
    sets = {"train": task.training_env, **{name: task.evaluation_env(name) for name in (TEST_SET, *task.sets)}}
    grouping, env = _grouping(task), describe(task.training_env)
    seen = see_outcomes(list(sets.values()), task.agent.masked, grouping)
    require_names(task.outcomes, seen.seen, seen.listed, _LOOK)
    met = None if grouping is None else seen.plays[0]
    keys = {key for key in STEP_KEYS if all(key in plays.keys for plays in seen.plays)}
    at_once, reason = members_at_once(task.agent, task.training_env)
    trainings = count_trainings(task, "intended_reward" in keys)
    steps, declared = _steps(task), task.outcomes
    warnings = [
        _too_few_seeds(task),
        f"{counted(steps['given'], 'step')} given; agents make {steps['trained']}, whole windows of {steps['window']} "
        f"(n_steps * n_envs)" if steps["given"] != steps["trained"] else "",
        unseen_in_words(declared, seen.seen, seen.listed, _LOOK),
        f"info['intended_reward'] is missing: {WITHOUT['intended_reward']}" if "intended_reward" not in keys else "",
    ]  # fmt: skip
    facts = {
        "task": task.name,
        "env": task.env,
        "observations": str(env.observation_space),
        "actions": str(env.action_space),
        "renders": can_render(task.training_env) if training is None else training.renders,
        "keys": {key: {"told": key in keys, "without": WITHOUT[key]} for key in STEP_KEYS},
        "outcomes": {
            "desired": list(declared.desired),
            "misbehaved": list(declared.misbehaved),
            "seen": sorted(seen.seen),
            "listed": None if seen.listed is None else sorted(seen.listed),
            "random": {name: dict(plays.outcomes) for name, plays in zip(sets, seen.plays, strict=True)},
        },
        "seeds": {
            "given": len(task.seeds),
            "needed": task.verdict.thresholds.seeds,
            "trained_again": len(task.paired_seeds),
        },
        "steps": steps,
        "groups": {
            "by": task.group_by,
            "met": None if met is None else len(met.groups),
            "steps": 0 if met is None else met.steps,
        },
        "stacked": {"at_once": at_once, "why_not": reason},
        "trainings": asdict(trainings),
        "warnings": [warning for warning in warnings if warning],
    }  # fmt: skip
    return facts, seen


def _too_few_seeds(task: Task) -> str:
    needed = task.verdict.thresholds.seeds
    if len(task.seeds) < needed:
        return f"{counted(len(task.seeds), 'seed')} given, a verdict needs {needed}: it will be undetermined"
    if len(task.paired_seeds) < needed:
        return f"verify.seeds is {len(task.paired_seeds)}, a verdict needs {needed}: more are trained again one by one"
    return ""


def _grouping(task: Task) -> Grouping | None:
    """Return the grouping of a task before anything is trained; None: clusters are found in what training recorded."""
    if task.group_by == "component":
        return ByComponent()
    if task.group_by == "transition":
        return ByTransition(task.training_env)
    return BY_CONTEXT if task.group_by == "context" else None


def _steps(task: Task) -> dict[str, int]:
    """Return the steps of an agent, as given and as whole windows.

    Raises:
        TaskError: `n_steps` is no number.
    """
    steps = task.agent.hyperparameter("n_steps")
    if not isinstance(steps, int) or steps < 1:
        raise TaskError(f"agent.hyperparameters.n_steps: {steps!r} was given, expected a whole number from 1")
    window = steps * task.agent.n_envs
    windows = math.ceil(task.agent.total_timesteps / window)
    return {"given": task.agent.total_timesteps, "trained": windows * window, "window": window, "windows": windows}


def count_trainings(task: Task, intended: bool) -> Trainings:
    """Return how many agents are trained, those of a bisection (`minimal`) left out.

    Args:
        task: the task.
        intended: whether the environment tells the intended reward.
    """
    spec, paired, sets = task.verify, len(task.paired_seeds), 1 + len(task.sets)
    masks = len(spec.sets) + spec.points * (1 + sets) if intended else 0  # random order: one for all sets
    of_clusters = spec.points * sets * spec.clusters if intended and spec.clusters > 1 else 0  # next to the whole set's
    seeds = max(len(task.seeds), paired) if intended else 0  # everything corrected, with seeds added
    if not intended or spec.arbitrary:
        masks += 2 * (spec.points + 1) * sets  # edits, and a placebo of each
    masks += spec.coverage is not None
    masks += len(task.biases) * 2 if intended else 0
    most = math.inf if spec.budget is None else spec.budget * sets
    bank, at_most = (int(min(seeds + count * paired, most)) for count in (masks, masks + of_clusters))
    return Trainings(len(task.seeds), bank, at_most)


def _estimate(task: Task, seen: SeenOutcomes, workers: int) -> dict[str, Any]:
    """Return minutes and bytes, from a short training that is measured here."""
    test = seen.plays[1]
    length = test.steps / max(test.episodes, 1)
    speed = measure_speed(task.agent, task.training_env, task.evaluation_env(TEST_SET), length)
    told = all("intended_reward" in plays.keys for plays in seen.plays)
    trainings, steps = count_trainings(task, told), _steps(task)
    plays = task.evaluation.episodes * task.evaluation.repeats

    def minutes(pieces: int, seconds: float) -> float:
        return math.ceil(pieces / workers) * seconds / 60

    at_once = min(speed.at_once, max(trainings.bank, 1))
    stacks = math.ceil(trainings.bank / speed.at_once)
    bank = minutes(stacks, steps["trained"] * speed.bank_step * speed.at_once)
    ensemble_played = minutes(trainings.ensemble + 1, plays * (2 + len(task.sets)) * speed.play)
    bank_played = minutes(trainings.bank, plays * (2 + len(task.sets)) * speed.play)
    recorded = steps["trained"] * speed.row_bytes + (steps["windows"] + 1) * speed.policy_bytes
    return {
        "workers": workers,
        "minutes": {
            "train": minutes(trainings.ensemble, steps["trained"] * speed.step),
            "evaluate": ensemble_played,
            "verify": bank + bank_played,
        },
        "bytes": {
            "recorded": int(trainings.ensemble * recorded),
            "bank": trainings.bank * speed.policy_bytes,
        },
        "measured": {
            "steps": speed.steps,
            "steps_a_second": 1 / speed.step,
            "bank_steps_a_second": 1 / speed.bank_step,
            "trained_together": at_once,
            "plays_a_second": 1 / speed.play,
            "bytes_a_transition": speed.row_bytes,
            "bytes_of_parameters": speed.policy_bytes,
        },
        "not_counted": "attribution, pages, and the start of workers",
    }


def check_in_words(facts: dict[str, Any]) -> list[str]:
    """Return the facts of a check, a line each, as `run` logs them."""
    told = [key for key, found in facts["keys"].items() if found["told"]]
    steps, groups, stacked, trainings = (facts[key] for key in ("steps", "groups", "stacked", "trainings"))
    met = (
        "clusters are found after training"
        if groups["met"] is None
        else f"{groups['met']} met in {groups['steps']} random steps"
    )
    together = (
        f"{stacked['at_once']} at once" if stacked["why_not"] is None else f"one by one, because {stacked['why_not']}"
    )
    return [
        f"observations {facts['observations']}, actions {facts['actions']}; told: {', '.join(told) or 'nothing'}; "
        f"groups ({groups['by']}): {met}",
        f"{counted(trainings['ensemble'], 'training')} of {counted(steps['trained'], 'step')} in "
        f"{counted(steps['windows'], 'window')}; then up to {trainings['bank']} with corrected rewards if "
        f"all failures are alike, {trainings['bank_at_most']} if not, {together}",
    ]


def estimate_in_words(estimate: dict[str, Any]) -> str:
    """Say minutes and disk, and how they were found."""
    minutes, size, measured = estimate["minutes"], estimate["bytes"], estimate["measured"]
    return (
        f"about {minutes['train']:.1f} min to train, {minutes['evaluate']:.1f} to evaluate, up to "
        f"{minutes['verify']:.1f} to verify failures that are alike, with {estimate['workers']} processes; "
        f"{sum(size.values()) / 1e6:,.0f} MB (from a training of {counted(measured['steps'], 'step')}: "
        f"{measured['steps_a_second']:,.0f} steps/s, bank {measured['bank_steps_a_second']:,.0f}; not counted: "
        f"{estimate['not_counted']})"
    )
