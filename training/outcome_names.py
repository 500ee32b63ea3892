"""Do the outcomes that a task declares occur? A name that never does is refused before agents are trained for it.

The rule (docs/task-file.md, Outcomes): an environment that lists its outcomes knows which names are wrong. Otherwise a
declared name is refused where it was not seen and an undeclared one was that reads like a slip of it. Any other name
that was not seen may be rare, or for trained agents only: that is said, and refuses nothing yet.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from stable_baselines3.common.callbacks import BaseCallback

from ..datasets.errors import TaskError, nearest
from ..datasets.outcomes import Outcomes
from ..datasets.rewards import Grouping
from .environments import Env, EnvSpec
from .hooks import HookedEnv
from .random_plays import RandomPlays, play_random
from .references import play_references

_REFERENCE_EPISODES = 8
_LETTERS_OF_A_SLIP, _LETTERS_OF_TWO = 4, 8
HOW_TO_LIST = (
    "let the environment list every outcome it has in metadata['outcomes'] (with `hooks`: an attribute `outcomes` of "
    "the hook)"
)


class SeenOutcomes(NamedTuple):
    """Outcomes before any training.

    Attributes:
        seen: names that occurred, with a random policy or a reference solver.
        listed: names that all environments list; None where one of them does not.
        plays: what a random policy met, in training and in each evaluation set.
    """

    seen: frozenset[str]
    listed: frozenset[str] | None
    plays: tuple[RandomPlays, ...]


def listed_outcomes(env: Env) -> frozenset[str] | None:
    """Return every outcome that an environment says it has; None where it does not say.

    `metadata["outcomes"]`; where a hook tells outcomes, its own attribute `outcomes` instead.
    """
    hooked = isinstance(env, HookedEnv)
    found = getattr(env.hook, "outcomes", None) if isinstance(env, HookedEnv) else None
    if found is None and not hooked:
        found = (env.metadata or {}).get("outcomes")
    return None if found is None else frozenset(map(str, found))


def see_outcomes(envs: Sequence[EnvSpec], masked: bool = False, grouping: Grouping | None = None) -> SeenOutcomes:
    """Let a random policy and reference solvers play a few episodes of each environment, and count its groups."""
    plays = tuple(play_random(env, masked, grouping) for env in envs)
    seen = {name for found in plays for name in found.outcomes}
    listed: frozenset[str] | None = frozenset()
    for env in envs:
        made = env.make()
        try:
            mine = listed_outcomes(made)
        finally:
            made.close()
        listed = None if mine is None or listed is None else listed | mine
        seen |= set(play_references(env, _REFERENCE_EPISODES, "test")["outcome"].to_pylist())
    return SeenOutcomes(frozenset(seen), listed, plays)


def require_names(declared: Outcomes, seen: Collection[str], listed: Collection[str] | None, where: str) -> None:
    """Check the names of declared outcomes.

    Args:
        declared: the task's `outcomes`.
        seen: names that occurred.
        listed: every name that may occur; None: not known.
        where: in what they occurred.

    Raises:
        TaskError: a name cannot occur, or reads like a slip of one that did.
    """
    names = [*declared.desired, *declared.misbehaved]
    others = sorted(set(seen).difference(names))
    for kind in ("desired", "misbehaved"):
        for name in getattr(declared, kind):
            if name in seen:
                continue
            if listed is not None:
                known = sorted({*listed, *seen})
                if name not in known:
                    raise TaskError(
                        f"outcomes.{kind}: `{name}` was given, expected one of the environment's outcomes: "
                        f"{', '.join(known)}.{nearest(name, known)} (Where a wrapper adds outcomes, "
                        "metadata['outcomes'] is to list them)"
                    )
            elif slips := [other for other in others if _is_slip(name, other)]:
                raise TaskError(
                    f"outcomes.{kind}: `{name}` was given and did not occur in {where}, `{slips[0]}` did and is not "
                    f"declared. Did you mean `{slips[0]}`? If both are right, {HOW_TO_LIST}"
                )


def unseen_in_words(declared: Outcomes, seen: Collection[str], listed: Collection[str] | None, where: str) -> str:
    """Say which declared names did not occur; an empty text where all did or the environment lists them."""
    names = [*declared.desired, *declared.misbehaved]
    never = [name for name in names if name not in seen and name not in (listed or ())]
    if not never:
        return ""
    others = sorted(set(seen).difference(names))
    return (
        f"outcomes: {_quoted(never)} did not occur in {where}; what occurred: {_quoted(sorted(seen)) or 'nothing'}"
        + (f" ({_quoted(others)} counted as incompetent)" if others else "")
        + ". If only trained agents come to it, all is well; if the environment has no such name, correct it now: "
        "nothing can be learnt from it"
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


class FirstWindow(BaseCallback):
    """Compares declared outcomes with those of a training's first window, before anything further is trained.

    Args:
        declared: the task's `outcomes`.
        seen: names that occurred before the training.
        listed: every name that may occur; None: not known.

    Raises:
        TaskError: see `require_names`.
    """

    def __init__(self, declared: Outcomes, seen: Collection[str], listed: Collection[str] | None) -> None:
        super().__init__()
        self._declared, self._listed = declared, listed
        self._seen, self._over = set(seen), False

    def _on_step(self) -> bool:
        if not self._over:
            self._seen |= {str(info["outcome"]) for info in self.locals["infos"] if info.get("outcome") is not None}
        return True

    def _on_rollout_end(self) -> None:
        if not self._over:
            require_names(self._declared, self._seen, self._listed, "the first window of training")
        self._over = True


def _is_slip(given: str, seen: str) -> bool:
    """Return whether one name reads like a mistyped other: `cornr` and `corner`; not `left` and `right`, `a1` and `a2`.

    Case and the signs between words do not count. Words of at least 4 letters may differ by one letter (8: by two) or
    by two neighbours that changed places; shorter words and numbers must agree.
    """
    one, other = (re.findall(r"[^\W\d_]+|\d+", name.casefold()) for name in (given, seen))
    if "".join(one) == "".join(other):
        return True
    return len(one) == len(other) and all(map(_same_word, one, other))


def _same_word(one: str, other: str) -> bool:
    shorter = min(len(one), len(other))
    if one == other or shorter < _LETTERS_OF_A_SLIP or one.isdigit() or other.isdigit():
        return one == other
    return _distance(one, other) <= (2 if shorter >= _LETTERS_OF_TWO else 1)


def _distance(one: str, other: str) -> int:
    """Return how many letters to add, leave out, replace or swap with their neighbour (optimal string alignment)."""
    rows = [list(range(len(other) + 1))]
    for i, letter in enumerate(one, 1):
        row = [i]
        for j, against in enumerate(other, 1):
            best = min(rows[-1][j] + 1, row[j - 1] + 1, rows[-1][j - 1] + (letter != against))
            if i > 1 and j > 1 and letter == other[j - 2] and one[i - 2] == against:
                best = min(best, rows[-2][j - 2] + 1)
            row.append(best)
        rows.append(row)
    return rows[-1][-1]
