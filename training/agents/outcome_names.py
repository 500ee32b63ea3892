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

from ...datasets.errors import EnvironmentError_, TaskError, nearest
from ...datasets.groups import Grouping
from ...datasets.outcomes import Outcomes
from ..environments.hooks import HookedEnv
from ..environments.random_play import RandomPlays, play_random
from ..environments.spec import Env, EnvSpec
from .play import play_references

_REFERENCE_EPISODES = 8
_LETTERS_OF_A_SLIP = 4
_PARTS = re.compile(r"(?<!\w)[+-]\d+|\d+|[^\W\d_]+|(?<!\w)-|-(?!\w)|[^\w\s-]")  # of a name: words, numbers, signs
HOW_TO_LIST = (
    "let the environment list every outcome it has in metadata['outcomes'] (with `hooks`: an attribute `outcomes` of "
    "the hook; of an environment that you cannot change: in a function of yours that makes it, `env: module:function`, "
    "docs/task-file.md, Outcomes)"
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

    Raises:
        EnvironmentError_: what it lists is no list of names.
    """
    if isinstance(env, HookedEnv):
        where, names = "the attribute `outcomes` of the hook", getattr(env.hook, "outcomes", None)
    else:
        where, names = "metadata['outcomes'] of the environment", (env.metadata or {}).get("outcomes")
    if names is None:
        return None
    if not isinstance(names, list | tuple | set | frozenset) or not all(isinstance(name, str) for name in names):
        raise EnvironmentError_(f"{where} is {names!r}, expected a list of names, such as ['goal', 'timeout']")
    return frozenset(names)


def see_outcomes(envs: Sequence[EnvSpec], masked: bool = False, grouping: Grouping | None = None) -> SeenOutcomes:
    """Let a random policy and reference solvers play a few episodes of each environment, and count its groups."""
    plays = tuple(play_random(env, masked, grouping) for env in envs)
    seen = {name for each in plays for name in each.outcomes}
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


def _is_slip(declared: str, seen: str) -> bool:
    """Return whether one name reads like a mistyped other: `cornr` and `corner`; not `finished` and `unfinished`.

    Case and what joins words (spaces, `_`, `-`) do not count; other signs and numbers do (`1` and `-1`). Words begin
    alike, have at least 4 letters, and differ by two neighbours that changed places or by a letter too few (of 4
    letters: a doubled one, as in `arow`). A letter in place of another makes too many other words: `goal`, `goat`.
    """
    one, other = (_PARTS.findall(name.casefold()) for name in (declared, seen))
    if not one or not other:
        return False
    if _joined(one) == _joined(other):
        return True
    return len(one) == len(other) and all(map(_same_word, one, other))


def _joined(parts: Sequence[str]) -> str:
    """Return a name without what joins its words; numbers stay apart."""
    return "".join(f" {part} " if part[-1].isdigit() else part for part in parts)


def _same_word(one: str, other: str) -> bool:
    if one == other:
        return True
    shorter, longer = sorted((one, other), key=len)
    if one[0] != other[0] or len(shorter) < _LETTERS_OF_A_SLIP or not (one + other).isalpha():
        return False
    if len(one) == len(other):
        return any(one[:i] + one[i + 1] + one[i] + one[i + 2 :] == other for i in range(1, len(one) - 1))
    dropped = [i for i in range(1, len(longer)) if longer[:i] + longer[i + 1 :] == shorter]
    doubled = [i for i in dropped if longer[i] == longer[i - 1]]
    return bool(doubled if len(shorter) == _LETTERS_OF_A_SLIP else dropped)
