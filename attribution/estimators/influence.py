"""Influence of the rewards of a window held in memory: the engine without a run folder."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ...datasets.errors import InputError, NonFiniteError
from ...datasets.words import counted
from ..actors.adapt import ModuleActor, as_actor, on_device
from ..actors.outputs import Actor
from ..adjoints.signal import Scores
from ..targets.steps import Targets
from .base import Estimator, Prepared, chunks
from .registry import AUTO, choose_estimator, find_estimator
from .window import Window

_CHECKED_ROWS = 8
_SHOWN = 5  # names of failures


@dataclass(frozen=True)
class InfluenceMatrix:
    """Influence of N transitions on F failures; row = env * n_steps + step.

    Attributes:
        scores: float64 [N, F], effect on each failure's target of one unit of (normalised) advantage.
        tau: float64 [N, F], effect of one unit of reward, with the adjoint of advantage normalisation.
        tau_raw: float64 [N, F], without it; None: not computed.
        tau_value: float64 [N, F], effect of one unit of reward through the value loss; None: not computed.
        env, step: int64 [N], where each transition is in the window.
        group: text [N], what each transition is corrected with.
        failures: names of the F failures.
    """

    scores: Scores
    tau: Scores
    tau_raw: Scores | None
    tau_value: Scores | None
    env: NDArray[np.int64]
    step: NDArray[np.int64]
    group: NDArray[np.str_]
    failures: tuple[str, ...]

    def __repr__(self) -> str:
        names = [*self.failures[:_SHOWN], *(["..."] if len(self.failures) > _SHOWN else [])]
        count = counted(len(self.failures), "failure")
        return f"InfluenceMatrix({counted(len(self.tau), 'transition')}, {count}: {', '.join(names)})"


def influence(
    window: Window,
    actor: nn.Module | Actor,
    targets: Targets,
    estimator: str | Estimator = "trak",
    device: str = "cpu",
) -> InfluenceMatrix:
    """Return the influence of every reward of one window on every failure.

    Args:
        window: its transitions (`Window.from_arrays`).
        actor: the policy with the parameters that collected them, which is copied: a policy of Stable-Baselines3, or a
            torch module of linear, convolution and embedding layers with the methods of `ModuleActor`.
        targets: of F failures (`Targets.from_arrays`).
        estimator: an estimator with its parameters, `Trak(damping=1e-2)`, or a name; `auto`: exact TRAK, or TRAK
            projected where the policy or the window leaves no choice.
        device: where gradients are computed: `cpu`, or with a CUDA build of torch `cuda`.

    Raises:
        InputError: there is no such device, the policy's gradients have no factored form, or something does not fit, or
            the damping is not positive.
        NonFiniteError: a gradient is not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():  # whatever the caller has set
        chosen, prepared = _prepared(window, actor, targets, estimator, device)
        parts = [prepared.influence(chosen.damping, part) for part in chunks(targets.failures)]
    scores, tau, raw, value = (
        None if kind[0] is None else np.concatenate(kind, axis=1) for kind in zip(*parts, strict=True)
    )
    env, step = np.divmod(np.arange(len(window.reward)), window.steps)
    assert scores is not None and tau is not None
    return InfluenceMatrix(scores, tau, raw, value, env, step, window.group, targets.ids)


def group_effects(
    window: Window,
    actor: nn.Module | Actor,
    targets: Targets,
    change: NDArray[np.floating],
    estimator: str | Estimator = "trak",
    device: str = "cpu",
) -> Scores:
    """Return the effect of changing the rewards of one window on every failure, [G, F]; negative: less misbehaviour.

    Of `trak` the exact finite difference of the advantages as they were normalised, so the effect of several groups
    together is that of the sum of their changes, as one more column, and not the sum of their effects; of linear
    estimators the sum of `change` times tau. Effects of several windows are no unit of each other: `aitia attribute`
    divides those of each window by their sum of absolute values over groups.

    Args:
        window, actor, targets, estimator, device: see `influence`.
        change: of each reward as paid, in each of G changes, [N, G]; row = env * n_steps + step.
            `window.corrections_by_group()` makes one.

    Raises:
        InputError: see `influence`; or `change` is of another length.
        NonFiniteError: see `influence`; or a change is not finite.
    """
    changes = np.asarray(change, dtype=np.float64)
    if changes.ndim != 2 or len(changes) != len(window.reward):
        raise InputError(f"change of shape {changes.shape}, expected [N, G], N = {len(window.reward)}")
    if not np.isfinite(changes).all():
        row, column = np.argwhere(~np.isfinite(changes))[0]
        raise NonFiniteError(f"change, row {row}, column {column}: {changes[row, column]}, expected a finite number")
    with torch.inference_mode(False), torch.enable_grad():
        chosen, prepared = _prepared(window, actor, targets, estimator, device)
        prepared.further = frozenset()
        return prepared.effects(chosen.damping, changes, targets.failures).effect


def _prepared(
    window: Window, actor: nn.Module | Actor, targets: Targets, estimator: str | Estimator, device: str
) -> tuple[Estimator, Prepared]:
    """Return the estimator that is meant, and what it made of the window and a copy of the policy."""
    policy = as_actor(actor)
    if estimator == AUTO:
        estimator = choose_estimator(policy, len(window.reward)).name
    chosen = find_estimator(estimator)
    if not 0.0 < chosen.damping < np.inf:
        raise InputError(f"{chosen.label}: expected a damping above 0")
    if targets.failures == 0:
        raise InputError("targets: no failure, expected one or more")
    copied = on_device(copy.deepcopy(policy), device)
    copied.module.train(False)
    _require_rows_apart(copied, window)
    return chosen, chosen.prepare(window, copied, targets)


def _require_rows_apart(actor: Actor, window: Window) -> None:
    """Check that a module of one's own says the same of a state in any batch, and whenever it is asked.

    Raises:
        InputError: it does not: its gradients would be no per-sample gradients.
    """
    if not isinstance(actor, ModuleActor):
        return
    rows, some = window.rows, np.arange(min(len(window.rows.counts), _CHECKED_ROWS))

    def said(chosen: NDArray[np.int64]) -> Scores:
        outputs = actor.outputs(rows.observations[chosen])
        with torch.no_grad():
            return outputs.distribution.log_prob(torch.as_tensor(rows.actions[chosen])).double().cpu().numpy()

    together, in_pairs = said(some), np.array([said(np.array([row, 0]))[0] for row in some])
    if not np.allclose(together, in_pairs, rtol=1e-3, atol=1e-4, equal_nan=True):
        worst = int(np.abs(together - in_pairs).argmax())
        raise InputError(
            f"{window.name}: log_prob of the same state and action is {together[worst]:.4g} in one batch and "
            f"{in_pairs[worst]:.4g} in another, expected the same: the module uses statistics of a batch (BatchNorm "
            "without running ones, a mean over rows), or dropout that eval() does not end"
        )
