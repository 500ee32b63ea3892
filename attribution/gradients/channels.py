"""The channels through which a reward moves a policy: log pi(a|s) by its advantage, V(s) by its return, Q(s, a)."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..actors.outputs import Actor, Outputs
from ..targets.steps import Targets
from .factors import Factors
from .kernel import TargetSteps, WindowGradients, inner_products
from .layers import Functional, gradient_factors
from .rows import WindowRows


class Channels:
    """Inner products of the gradients of log pi and, computed when they are asked for, of `scale` V.

    Args:
        actor, rows, targets, where: see `policy_gradients`.
        vf_coef: weight of the value loss.

    Attributes:
        policy: of log pi(a|s).
        scale: the value loss is vf_coef (R - V)^2: its curvature is scale^2 grad V grad V^T.
        value_known: whether the policy has values.
    """

    def __init__(self, actor: Actor, rows: WindowRows, targets: Targets, where: str, vf_coef: float) -> None:
        self._steps = target_steps(actor, targets)
        self._actor, self._rows, self._targets, self._where = actor, rows, targets, where
        self.policy = policy_gradients(actor, rows, targets, where, self._steps)
        self.scale, self.value_known = float(np.sqrt(2.0 * vf_coef)), actor.has_values

    @cached_property
    def value(self) -> WindowGradients | None:
        """Of `scale` V(s); None: the value channel is zero, or not known."""
        if not self.value_known:
            return None
        return value_gradients(self._actor, self._rows, self._targets, self._where, self.scale, self._steps)


def target_steps(actor: Actor, targets: Targets) -> TargetSteps:
    """Return the factored gradients of the targets' steps, which both channels of a window are multiplied with."""
    actor.module.double()
    return TargetSteps.of(actor, targets)


def policy_gradients(
    actor: Actor, rows: WindowRows, targets: Targets, where: str, steps: TargetSteps | None = None
) -> WindowGradients:
    """Compute the inner products of the policy channel: gradients of log pi(a|s) of a window's distinct rows.

    Args:
        actor: the policy with the parameters that collected the window; its dtype is changed.
        rows: the window's distinct rows.
        targets: the failures' target steps.
        where: names the window in messages.
        steps: the gradients of the targets (`target_steps`); None: they are computed.

    Raises:
        NonFiniteError: a gradient is NaN or infinite; names window and row.
        InputError: the policy's gradients have no factored form.
    """
    actions = torch.as_tensor(rows.actions)
    return _gradients(actor, lambda said: said.distribution.log_prob(actions).sum(), rows, targets, where, steps)


def value_gradients(
    actor: Actor, rows: WindowRows, targets: Targets, where: str, scale: float, steps: TargetSteps | None = None
) -> WindowGradients | None:
    """Compute the inner products of the value channel: gradients of `scale` V(s) of a window's distinct rows.

    Args:
        actor, rows, targets, where, steps: see `policy_gradients`.
        scale: factor of V(s), such that the mean of the products is the Gauss-Newton matrix of the value loss.

    Returns:
        None where the value loss moves no parameter that a target depends on: all effects are zero.
    """
    steps = steps or target_steps(actor, targets)

    def functional(said: Outputs) -> Tensor:
        return scale * said.values.sum()

    window = _window_factors(actor, rows, functional)
    if not window.shares_layers(steps.factors):
        return None
    return _gradients(actor, functional, rows, targets, where, steps, window)


def q_gradients(actor: Actor, rows: WindowRows, targets: Targets, where: str) -> WindowGradients:
    """Compute the inner products of a Q-network: gradients of Q(s, a) of the distinct rows that updates drew.

    Args:
        actor: a network of `q_networks`.
        rows, targets, where: see `policy_gradients`; actions are zeros where the network gives one value a row.
    """
    actions = torch.as_tensor(rows.actions)[:, None]
    return _gradients(
        actor, lambda said: said.q_values.gather(1, actions.to(said.q_values.device)).sum(), rows, targets, where
    )


def _gradients(
    actor: Actor,
    functional: Functional,
    rows: WindowRows,
    targets: Targets,
    where: str,
    steps: TargetSteps | None = None,
    window: Factors | None = None,
) -> WindowGradients:
    """Return the inner products of the gradients of a functional of the window's rows (`window`, if they are there)."""
    return inner_products(
        window or _window_factors(actor, rows, functional), steps or target_steps(actor, targets), rows, targets, where
    )


def _window_factors(actor: Actor, rows: WindowRows, functional: Functional) -> Factors:
    """Return the factored gradients of the window's rows."""
    actor.module.double()
    return gradient_factors(actor, rows.observations, functional, rows.inputs)
