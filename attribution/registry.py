"""Estimators by name.

An estimator of one's own is a subclass of `Estimator` that an installed package names under the entry-point
group `aitia.estimators`; `aitia attribute RUN --estimator NAME` then finds it.
"""

from __future__ import annotations

from importlib.metadata import entry_points

from ..datasets.errors import InputError, nearest
from .baselines import Advantage, NearestLatent, NearestObservation, Random, Reward, Size, TdError
from .estimators import Estimator, TracIn, Trak
from .projected import TrakProjected

ENTRY_POINTS = "aitia.estimators"

BUILT_IN: tuple[type[Estimator], ...] = (
    Trak, TrakProjected, TracIn, Size, Reward, TdError, Advantage, NearestObservation, NearestLatent, Random,
)  # fmt: skip


def estimators() -> dict[str, type[Estimator]]:
    """Return all estimators by name: the built-in ones, and those of installed packages.

    Raises:
        InputError: an entry point is not an `Estimator`, or takes a built-in name.
    """
    found = {estimator.name: estimator for estimator in BUILT_IN}
    for point in entry_points(group=ENTRY_POINTS):
        loaded = point.load()
        if not (isinstance(loaded, type) and issubclass(loaded, Estimator)):
            raise InputError(
                f"the entry point `{point.name}` of {ENTRY_POINTS} is {loaded!r}, expected a subclass of Estimator"
            )
        if loaded.name in found:
            raise InputError(
                f"the entry point `{point.name}` of {ENTRY_POINTS} takes the name `{loaded.name}`, which is taken"
            )
        found[loaded.name] = loaded
    return found


def find_estimator(name: str) -> Estimator:
    """Return the estimator of a name.

    Raises:
        InputError: there is none; names those there are.
    """
    known = estimators()
    if name not in known:
        raise InputError(f"--estimator {name} was given, expected one of {', '.join(known)}.{nearest(name, known)}")
    return known[name]()
