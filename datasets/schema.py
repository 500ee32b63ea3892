r"""What every table of a run folder holds: column names, types and units (docs/run-folder.md).

Sizes used throughout the package: `W` windows, `N` transitions of a window, `P` parameters, `K`
projected dimensions, `F` failures, `S` seeds, `G` groups, `B` bank members.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import pyarrow as pa

from .errors import RunFolderError

SCHEMA_VERSION = 2  # 2: run.json knows the code that a run was made with
RANDOM_POLICY_SEED = -1
COMPONENT_PREFIX = "component_"
NO_CONTEXT = "all"
GROUP_NAMES = "2"  # how states and actions are named as groups; 0.1 did not say, and named them otherwise


class Order(StrEnum):
    """Why a set of groups is edited for agents of the counterfactual bank; a set that the task names is a plain name.

    Nested corrective sets are the first groups of an order: predicted effect (`attribution`), largest error (`size`)
    or chance (`random`, the control); `adaptive` sets were chosen from what others did. `arbitrary` edits need no
    intended reward; `placebo` is their control.
    """

    NONE = "none"
    ALL = "all"
    ATTRIBUTION = "attribution"
    RANDOM = "random"
    SIZE = "size"
    ADAPTIVE = "adaptive"
    ARBITRARY = "arbitrary"
    PLACEBO = "placebo"


REPLAY_DRAWS = pa.schema(
    [
        ("seed", pa.int32()),
        ("window", pa.int32()),  # whose updates drew the transition
        ("collected", pa.int32()),  # window that holds it; with env and step it names one row of the transitions
        ("env", pa.int32()),
        ("step", pa.int32()),
        ("n", pa.int32()),  # rewards in its target: fewer than n_steps at an episode's end or the newest transition
        ("draws", pa.int32()),
    ]
)

EPISODES = pa.schema(
    [
        ("seed", pa.int32()),  # RANDOM_POLICY_SEED: the random policy
        ("part", pa.string()),  # test | train
        ("episode", pa.int32()),
        ("repeat", pa.int32()),
        ("outcome", pa.string()),
        ("length", pa.int32()),
        ("reward", pa.float64()),  # return of the episode as paid
        ("intended_reward", pa.float64()),
        ("untampered_reward", pa.float64()),
        ("extensions", pa.map_(pa.string(), pa.float64())),  # returns by other extensions of the reward; null: unknown
        ("context", pa.string()),
    ]
)

REFERENCES = pa.schema(
    [
        ("goal", pa.string()),  # of the reference solver
        ("part", pa.string()),  # test | train
        ("episode", pa.int32()),
        ("outcome", pa.string()),
        ("length", pa.int32()),
        ("reward", pa.float64()),  # return of the episode as paid
    ]
)

GROUP_EFFECTS = pa.schema(
    [
        ("failure", pa.dictionary(pa.int32(), pa.string())),
        ("group", pa.dictionary(pa.int32(), pa.string())),
        ("seed", pa.int32()),
        ("lambda", pa.float64()),
        ("effect", pa.float64()),  # of correcting the group, windows divided by their mass; null: no intended reward
        ("effect_raw", pa.float64()),  # without the normalisation of advantages; null: not asked for
        ("effect_value", pa.float64()),  # through the value loss; null: not asked for, or the estimator has none
        ("transitions", pa.int64()),
        ("reward_events", pa.int64()),
        ("estimator", pa.string()),
    ]
)

WINDOW_EFFECTS = pa.schema(
    [
        ("failure", pa.dictionary(pa.int32(), pa.string())),
        ("seed", pa.int32()),
        ("window", pa.int32()),
        ("effect", pa.float64()),  # of all corrections of the window together, not divided by its mass
        ("estimator", pa.string()),
    ]
)

UNIT_EFFECTS = pa.schema(
    [
        ("group", pa.dictionary(pa.int32(), pa.string())),
        ("seed", pa.int32()),
        (
            "transitions",
            pa.int64(),
        ),  # that an arbitrary edit would change: reward events, or all of this state and action
        ("paid", pa.float64()),  # sum of r over them
        ("tau", pa.float64()),  # sum of tau, mean over failures
        ("reward_tau", pa.float64()),  # sum of r * tau: to pay v instead has the effect v * tau - reward_tau
        ("estimator", pa.string()),
    ]
)

NULL_EFFECTS = pa.schema(
    [
        ("group", pa.dictionary(pa.int32(), pa.string())),
        ("seed", pa.int32()),
        ("draw", pa.int32()),
        ("effect", pa.float64()),  # mean over failures, if chance had distributed the influence in each window
        ("estimator", pa.string()),
    ]
)

DIRECTION_EFFECTS = pa.schema(
    [
        ("group", pa.dictionary(pa.int32(), pa.string())),
        ("seed", pa.int32()),
        ("effect", pa.float64()),  # mean over failures, with the critic corrected too, not divided by masses
        ("estimator", pa.string()),
    ]
)

MASSES = pa.schema(
    [
        ("seed", pa.int32()),
        ("window", pa.int32()),
        ("lambda", pa.float64()),
        ("mass", pa.float64()),  # what the window's effects are divided by: sum over groups of |mean effect|
        ("estimator", pa.string()),
    ]
)

MEAN_SCORES = pa.schema(
    [
        ("seed", pa.int32()),
        ("window", pa.int32()),
        ("row", pa.int32()),  # env * n_steps + step
        ("score", pa.float32()),  # effect of one unit of normalised advantage, mean over failures
        ("estimator", pa.string()),
    ]
)

SET_EFFECTS = pa.schema(
    [
        ("member", pa.string()),  # of the bank
        ("seed", pa.int32()),
        ("cluster", pa.int32()),  # of failures; null: all of them
        ("effect", pa.float64()),  # of the set as a set, mean over failures, windows divided by their mass
        ("estimator", pa.string()),
    ]
)

TOP_TRANSITIONS = pa.schema(
    [
        ("failure", pa.string()),
        ("seed", pa.int32()),
        ("window", pa.int32()),
        ("step", pa.int32()),
        ("env", pa.int32()),
        ("tau", pa.float64()),
        ("tau_raw", pa.float64()),  # null: not asked for
        ("tau_value", pa.float64()),  # null: not asked for
        ("s", pa.float64()),
        ("reward", pa.float64()),
        ("intended_reward", pa.float64()),
        ("group", pa.string()),
        ("context", pa.string()),  # of the environment; null: it reports none
        ("action", pa.string()),  # in words, or numbers
        ("estimator", pa.string()),
    ]
)

MASKS = pa.schema(
    [
        ("member", pa.string()),
        ("seed", pa.int32()),
        ("order", pa.string()),  # an `Order`, or the name of a set of the task's
        ("size", pa.int32()),  # number of edited groups
        ("groups", pa.list_(pa.string())),
        ("values", pa.list_(pa.float64())),  # arbitrary edits: what each group pays; null: as intended
        ("edited", pa.float64()),  # of arbitrary edits: transitions of an uncorrected training that they change
        ("change", pa.float64()),  # sum of their |dr|
        ("share", pa.float64()),  # the smaller of the shares of all groups and of all such transitions
        ("variant", pa.string()),  # a bias, or `coverage`; empty: the task as it is
        ("cluster", pa.int32()),  # of attribution and adaptive: the one of several clusters that it is for; else null
        ("corrected", pa.int64()),  # transitions whose reward the edit changed while training
    ]
)

LEARNING = pa.schema(
    [
        ("seed", pa.int32()),
        ("window", pa.int32()),
        ("outcome", pa.string()),
        ("episodes", pa.int64()),  # of the training, that ended so in this window
        ("reward", pa.float64()),  # sum of their returns as paid
    ]
)

BANK_LEARNING = pa.schema(
    [
        ("member", pa.string()),
        ("window", pa.int32()),
        ("outcome", pa.string()),
        ("episodes", pa.int64()),  # of its training, that ended so in this window
    ]
)

BANK_OUTCOMES = pa.schema(
    [
        ("member", pa.string()),
        ("part", pa.string()),
        ("episode", pa.int32()),
        ("repeat", pa.int32()),
        ("outcome", pa.string()),
    ]
)


def current_top_transitions(table: pa.Table) -> pa.Table:
    """Return top transitions as they are written now; version 0.1 kept the group, of whatever kind, in `context`."""
    if "context" in table.column_names and "group" not in table.column_names:
        position = table.column_names.index("context")
        table = table.add_column(position, "group", table["context"])
    return table


def metadata_of(schema: pa.Schema) -> dict[str, str]:
    """Return a schema's metadata as text; what is no UTF-8 is replaced."""
    return {
        key.decode(errors="replace"): value.decode(errors="replace") for key, value in (schema.metadata or {}).items()
    }


def with_metadata(table: pa.Table, metadata: Mapping[str, str]) -> pa.Table:
    """Return the table with `metadata` added to its schema."""
    return table.replace_schema_metadata({**metadata_of(table.schema), **metadata})


def seed_and_episode(failure: str) -> tuple[int, int]:
    """Return what `failure_id` was made from."""
    seed, _, episode = failure.rpartition("-")
    return int(seed), int(episode)


def failure_id(seed: int, episode: int) -> str:
    """Return the stable id of a failure, `SEED-EPISODE`, of which files are named.

    Raises:
        RunFolderError: they are no numbers: the table that they are from was not written by aitia.
    """
    if not (isinstance(seed, int) and isinstance(episode, int)):
        raise RunFolderError(f"a table names the failure {seed!r}, {episode!r}, expected two whole numbers")
    return f"{seed}-{episode}"
