"""Influence of training rewards on a failure: targets, TRAK in exact dual form, the reward adjoint.

::

    from aitia.attribution import Targets, Trak, Window, influence

    window = Window.from_arrays(observations, actions, rewards, values, dones, intended=intended)
    targets = Targets.from_arrays(failing_observations, failing_actions)
    influence(window, policy, targets, Trak(damping=1e-2)).tau  # [N, F]: effect of a unit of each reward
    group_effects(window, policy, targets, change)  # [G, F]: effect of changing the rewards by change [N, G]
"""

from __future__ import annotations

from .actors.outputs import Actor
from .adjoints.signal import Signal
from .estimators.base import Estimator, TracIn, Trak, TrakLinear
from .estimators.influence import group_effects, influence
from .estimators.projected import TrakProjected
from .estimators.updates import TrakUpdates
from .estimators.window import Window
from .targets.steps import Targets

__all__ = [
    "Actor", "Estimator", "Signal", "Targets", "TracIn", "Trak", "TrakLinear", "TrakProjected", "TrakUpdates", "Window",
    "group_effects", "influence",
]  # fmt: skip
