"""Estimators by name.

An estimator of one's own is a subclass of `Estimator` that an installed package names under the entry-point
group `aitia.estimators`; `aitia attribute RUN --estimator NAME` then finds it.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import NamedTuple

from ...datasets.errors import InputError, nearest
from ...datasets.words import counted
from ..actors.outputs import Actor
from ..gradients.layers import why_not_factored
from .base import Estimator, TracIn, Trak, TrakLinear
from .baselines import Advantage, NearestLatent, NearestObservation, Random, Reward, Size, TdError
from .projected import TrakProjected
from .updates import TrakUpdates

ENTRY_POINTS = "aitia.estimators"
AUTO = "auto"
LARGEST_EXACT = 8192  # rows of a window: its matrix of inner products takes 256 MiB (in float64 512)

BUILT_IN: tuple[Estimator, ...] = (
    Trak(), TrakLinear(), TrakProjected(), TrakUpdates(), TracIn(),
    Size(), Reward(), TdError(), Advantage(), NearestObservation(), NearestLatent(), Random(),
)  # fmt: skip


def estimators() -> dict[str, Estimator]:
    """Return all estimators by name, with their default parameters: built-in ones, and those of installed packages.

    Raises:
        InputError: an entry point is not an `Estimator`, or takes a built-in name.
    """
    known = {estimator.name: estimator for estimator in BUILT_IN}
    for point in entry_points(group=ENTRY_POINTS):
        loaded = point.load()
        if not (isinstance(loaded, type) and issubclass(loaded, Estimator)):
            raise InputError(
                f"the entry point `{point.name}` of {ENTRY_POINTS} is {loaded!r}, expected a subclass of Estimator"
            )
        if loaded.name in (AUTO, *known):
            raise InputError(
                f"the entry point `{point.name}` of {ENTRY_POINTS} takes the name `{loaded.name}`, which is taken"
            )
        known[loaded.name] = loaded()
    return known


class Chosen(NamedTuple):
    """The estimator that `auto` means, and why."""

    name: str
    reason: str


def choose_estimator(actor: Actor, window_rows: int) -> Chosen:
    """Return `trak` (exact) where the policy's gradients have a factored form and a window fits, else `trak-projected`.

    Args:
        actor: the policy, trained or not.
        window_rows: transitions of a window.
    """
    reason, rows = why_not_factored(actor), counted(window_rows, "transition")
    if reason is not None:
        return Chosen(TrakProjected.name, f"{reason}, so per-sample gradients have no factored form")
    if window_rows > LARGEST_EXACT:
        return Chosen(TrakProjected.name, f"a window has {rows}, the exact form takes {LARGEST_EXACT}")
    return Chosen(Trak.name, f"every layer has a factored gradient and a window of {rows} fits")


def find_estimator(estimator: str | Estimator) -> Estimator:
    """Return an estimator as it is, or the one of a name, with its default parameters.

    Raises:
        InputError: there is none of the name; names those there are.
    """
    if isinstance(estimator, Estimator):
        return estimator
    if isinstance(estimator, type) and issubclass(estimator, Estimator):
        raise InputError(
            f"the estimator is the class {estimator.__name__}, expected one made of it: {estimator.__name__}()"
        )
    known = estimators()
    if estimator not in known:
        names = ", ".join([AUTO, *known])
        raise InputError(f"--estimator {estimator} was given, expected one of {names}.{nearest(estimator, known)}")
    return known[estimator]
