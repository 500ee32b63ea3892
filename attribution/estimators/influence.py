"""Influence of the rewards of a window held in memory: the engine without a run folder."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..actors.adapt import as_actor
from ..actors.outputs import Actor
from ..adjoints.signal import Scores
from ..targets.steps import Targets
from .base import Estimator, chunks
from .registry import find_estimator
from .window import Window


@dataclass(frozen=True)
class InfluenceMatrix:
    """Influence of N transitions on F failures; row = env * n_steps + step.

    Attributes:
        scores: float64 [N, F], effect on each failure's target of one unit of (normalised) advantage.
        tau: float64 [N, F], effect of one unit of reward, with the adjoint of advantage normalisation.
        tau_raw: float64 [N, F], without it.
        tau_value: float64 [N, F], effect of one unit of reward through the value loss; None: not computed.
        env, step: int64 [N], where each transition is in the window.
        group: text [N], what each transition is corrected with.
        failures: names of the F failures.
    """

    scores: Scores
    tau: Scores
    tau_raw: Scores
    tau_value: Scores | None
    env: NDArray[np.int64]
    step: NDArray[np.int64]
    group: NDArray[np.str_]
    failures: tuple[str, ...]

    def __repr__(self) -> str:
        return f"InfluenceMatrix(transitions={len(self.tau)}, failures={', '.join(self.failures)})"


def influence(
    window: Window, actor: nn.Module | Actor, targets: Targets, estimator: str | Estimator = "trak"
) -> InfluenceMatrix:
    """Return the influence of every reward of one window on every failure.

    Args:
        window: its transitions (`Window.from_arrays`).
        actor: the policy with the parameters that collected them, which is copied: a policy of Stable-Baselines3, or a
            torch module of linear, convolution and embedding layers with the methods of `ModuleActor`.
        targets: of F failures (`Targets.from_arrays`).
        estimator: an estimator with its parameters, `Trak(damping=1e-2)`, or a name.

    Raises:
        InputError: the policy's gradients have no factored form, or something does not fit.
        NonFiniteError: a gradient is not finite.
    """
    chosen = find_estimator(estimator)
    copied = as_actor(copy.deepcopy(actor))
    copied.module.train(False)
    prepared = chosen.prepare(window, copied, targets)
    parts = [prepared.influence(chosen.damping, part) for part in chunks(targets.failures)]
    scores, tau, raw, value = (
        None if kind[0] is None else np.concatenate(kind, axis=1) for kind in zip(*parts, strict=True)
    )
    env, step = np.divmod(np.arange(len(window.reward)), window.steps)
    assert scores is not None and tau is not None and raw is not None
    return InfluenceMatrix(scores, tau, raw, value, env, step, window.group, targets.ids)
