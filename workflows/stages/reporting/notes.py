"""What a report's pages note of a set: its influence, what the environment does not report, by which code."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from ....datasets.files.checksums import Checked
from ....datasets.rewards import intended_known
from ....datasets.schema import RANDOM_POLICY_SEED
from ....reports.statistics import percent
from ...runs.adopt import recording_notes
from ...runs.begin import NOT_REPEATABLE
from ...runs.changes import code_in_words
from ...runs.evaluated_set import EvaluatedSet
from ...runs.recorded import NOT_RECORDED, EnvironmentRecord, environment_record
from ...runs.task import Task

log = logging.getLogger("aitia")


def page_notes(evaluated: EvaluatedSet, checked: Checked) -> list[str]:
    """Return what every page of a set says in addition to its numbers, a sentence each.

    Args:
        evaluated: the set.
        checked: its tables, compared with their checksums.
    """
    run, (estimator, reason) = evaluated.run, evaluated.estimator
    record = environment_record(run.manifest, evaluated.name)
    return [
        *([f"Influence is TRAK's random projection: {reason}."] if estimator != "trak" else []),
        *recording_notes(run.folder, run.task.seeds),
        *_unreported(record, list(run.rewards.values())),
        *_undeclared(run.task, evaluated.episodes),
        *_unchecked(checked),
        *code_in_words(run.manifest),
    ]


def _unchecked(checked: Checked) -> list[str]:
    """Say which tables could not be compared with a checksum."""
    if not checked.unrecorded:
        return []
    return [f"Checksums of these tables were {NOT_RECORDED}: {', '.join(checked.unrecorded)}."]


def _unreported(record: EnvironmentRecord | None, rewards: Sequence[pa.Table]) -> list[str]:
    """Say what the environment does not report, and what follows."""
    follows = {
        "context": f"The environment tells no context{_as_one_group(rewards)}.",
        "action_labels": "The environment tells no action labels: targets are the log-odds of the actions taken.",
        "untampered_reward": "The environment tells no untampered reward: tampering could not be checked.",
    }
    notes = [] if record is None else [text for key, text in follows.items() if key not in record.keys]
    if not intended_known(list(rewards)):
        notes.append("The environment tells no intended reward: no reward could be called wrong or corrected.")
    if record is None:
        notes.append(f"What else the environment tells, and whether it repeats itself, was {NOT_RECORDED}.")
        return notes
    if not record.repeats:
        notes.append(NOT_REPEATABLE)
    if record.draws is None:
        notes.append("The environment does not draw itself (rgb_array or ansi): there are no pictures.")
    return notes


def _undeclared(task: Task, episodes: pa.Table) -> list[str]:
    """Say which outcomes the task does not declare, and which declared ones never happened."""
    test = episodes.filter((pc.field("part") == "test") & (pc.field("seed") != RANDOM_POLICY_SEED))
    counts = Counter(test["outcome"].to_pylist())
    declared = [*task.outcomes.desired, *task.outcomes.misbehaved]
    shares = [f"{name} ({percent(n / test.num_rows)} of plays)" for name, n in counts.items() if name not in declared]
    never = [name for name in declared if name not in set(episodes["outcome"].to_pylist())]
    notes = []
    if shares:
        notes.append(f"Outcomes that the task does not declare count as incompetent: {', '.join(sorted(shares))}.")
    if never:
        notes.append(
            f"Declared, but no play ended so, not even a random policy's: {', '.join(never)}. Check the spelling."
        )
        log.warning("report %s: no play ended as %s; check `outcomes` in the task", task.name, ", ".join(never))
    return notes


def _as_one_group(rewards: Sequence[pa.Table]) -> str:
    """Say what follows from a missing context where it does: other groupings make several groups without one."""
    groups = {group for table in rewards for group in table["group"].to_pylist()}
    return ": all transitions form one group" if len(groups) == 1 else ""
