r"""The coin line solved exactly: expected return, its gradient, the gradient flow, and what each reward does.

Nothing is sampled. Return and gradient come from dynamic programming over sites and steps; training is the
flow :math:`dw/dt = \nabla J(w)` from :math:`w = 0`, solved to a given time. The numbers are known answers for
every estimator of the package (Sneiderman 2026, `coin-line-policy-gradient`; requirements, "The coin line: an
exact test bed").

They are answers about *expected* gradients. PPO on sampled episodes only approximates them, so bands for it
must be calibrated separately.

Legend: `L` length, `K` kinds of episodes (`CoinLine.kinds`), `D` features, `T` flow time (in units where the
learning rate is 1, so that a reward scale is a scale of time).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.optimize import LinearConstraint, brentq, minimize

from ...datasets.errors import AitiaError, EnvironmentError_, NonFiniteError
from .coin_line import CoinLine

Array = NDArray[np.float64]
_RTOL, _ATOL = 1e-9, 1e-11
_REWARD_STEP = 1e-3


class Return(NamedTuple):
    r"""Expected return of each kind of episodes, and its gradient, per unit of the kind's reward.

    The return of the model is :math:`J = \sum_k s_k r_k v_k`, with share :math:`s_k` and reward :math:`r_k`.

    Attributes:
        values: float64 [K], probability that an episode of the kind reaches its goal.
        gradients: float64 [K, D], their gradients in w.
    """

    values: Array
    gradients: Array


class Flow(NamedTuple):
    """Where a gradient flow ended.

    Attributes:
        time: T, when it ended: the time asked for, or that of the event.
        weights: float64 [D], w at that time.
        stopped: whether the event ended it.
    """

    time: float
    weights: Array
    stopped: bool


class _Tables:
    """What of a model does not depend on w, computed once a flow.

    Attributes:
        states: float64 [K, L + 1, D], features of each kind's states by site.
        goals: float64 [K, L + 1], 1 at the goal.
        rights, lefts: float64 [K, L + 1, L + 1], where each action leads from each site; the ends of the line
            hold the agent, and so does the goal.
        shares: float64 [K].
        starts: float64 [L + 1].
        probe: float64 [D].
    """

    def __init__(self, model: CoinLine) -> None:
        kinds, sites = model.kinds(), np.arange(model.length + 1)
        self.horizon = model.horizon
        self.states = np.array([[model.encode(int(site), kind.coin) for site in sites] for kind in kinds])
        self.goals = np.array([sites == kind.goal for kind in kinds], dtype=np.float64)
        stays, held = np.eye(len(sites)), self.goals[:, :, None] > 0.0
        self.rights = np.where(held, stays, stays[np.minimum(sites + 1, model.length)])
        self.lefts = np.where(held, stays, stays[np.maximum(sites - 1, 0)])
        self.shares = np.array([kind.share for kind in kinds])
        self.starts = model.starts()
        self.probe = model.encode(*model.probe)

    def compute(self, weights: Array) -> Return:
        r"""Solve all kinds by dynamic programming, then apply the policy-gradient theorem.

        With :math:`V_h(p)` the probability to reach the goal within `h` steps and :math:`d_t(p)` that of standing
        at `p` after `t` steps, of `H`,
        :math:`\partial v / \partial z(p) = \sum_t d_t(p) \sigma'(z) [V_{H-t-1}(right) - V_{H-t-1}(left)]`
        (Sutton et al. 2000, theorem 1), where z is the logit; at the goal both actions lead to the same.
        """
        logits = self.states @ weights
        right = 0.5 * (1.0 + np.tanh(0.5 * logits))
        left = 0.5 * (1.0 - np.tanh(0.5 * logits))  # not 1 - right, which loses digits at large logits
        moves = right[:, :, None] * self.rights + left[:, :, None] * self.lefts
        moves_back = moves.transpose(0, 2, 1)
        values, occupancies = [self.goals[:, :, None]], [np.broadcast_to(self.starts[:, None], (*right.shape, 1))]
        for _ in range(self.horizon):
            values.append(moves @ values[-1])
            occupancies.append(moves_back @ occupancies[-1])
        after = np.concatenate(values[-2::-1], axis=2)  # [K, L + 1, 2L], V with 2L - 1, ..., 0 steps to go
        before = np.concatenate(occupancies[:-1], axis=2)
        slopes = (before * ((self.rights - self.lefts) @ after)).sum(axis=2) * right * left
        return Return(values[-1][:, :, 0] @ self.starts, (slopes[:, None, :] @ self.states)[:, 0, :])


def compute_returns(model: CoinLine, weights: Array) -> Return:
    """Return the exact expected return and gradient of every kind of episodes, per unit of reward.

    Args:
        model: the coin line.
        weights: w, float64 [D].

    Raises:
        EnvironmentError_: `weights` has another shape.
        NonFiniteError: `weights` is not finite.
    """
    return _Tables(model).compute(_checked(model, weights))


def expected_return(model: CoinLine, weights: Array) -> float:
    """Return the exact expected paid return J(w), in units of reward.

    Args:
        model: the coin line.
        weights: w, float64 [D].

    Raises:
        EnvironmentError_: `weights` has another shape.
        NonFiniteError: `weights` is not finite.
    """
    shares = np.array([kind.share for kind in model.kinds()])
    return float(shares @ compute_returns(model, weights).values * model.reward_scale)


def return_gradient(model: CoinLine, weights: Array) -> Array:
    """Return the exact gradient of `expected_return` in w, float64 [D]; arguments and errors are its."""
    shares = np.array([kind.share for kind in model.kinds()])
    gradient: Array = shares @ compute_returns(model, weights).gradients * model.reward_scale
    return gradient


def probe_logit(model: CoinLine, weights: Array) -> float:
    """Return the logit of going right at the probe (p = ⌈L/2⌉, coin at 0): positive is the proxy, misbehaving.

    Args:
        model: the coin line.
        weights: w, float64 [D].

    Raises:
        EnvironmentError_: `weights` has another shape.
        NonFiniteError: `weights` is not finite.
    """
    return float(model.encode(*model.probe) @ _checked(model, weights))


def gradient_flow(model: CoinLine, time: float, rewards: Array | None = None) -> Flow:
    r"""Solve :math:`dw/dt = \nabla J(w)`, :math:`w(0) = 0`, to a time.

    Args:
        model: the coin line.
        time: T, positive.
        rewards: float64 [K], what each kind of episodes pays at its goal; None: `reward_scale` for each.

    Returns:
        The weights at T.

    Raises:
        EnvironmentError_: `time` is not positive and finite, or `rewards` has another shape.
        NonFiniteError: `rewards` is not finite.
        AitiaError: the solver failed.
    """
    return _solve(model, time, rewards, None)


def first_correction_time(model: CoinLine, limit: float = 1e5) -> float:
    """Return the flow time at which the probe logit first falls below 0, infinite if not within `limit`.

    At w = 0 the logit is 0, so a flow that falls from the start (`relative`) has time 0.

    Args:
        model: the coin line.
        limit: the time to stop looking.

    Raises:
        EnvironmentError_: `limit` is not positive and finite.
        AitiaError: the solver failed.
    """
    tables = _Tables(model)
    probe = tables.probe
    beginning = float(probe @ return_gradient(model, np.zeros(model.features)))
    if beginning < 0.0:
        return 0.0
    if not probe @ np.abs(tables.states).sum(axis=(0, 1)):
        return math.inf  # no training state shares a feature with the probe, whose logit thus stays exactly 0
    flow = _solve(model, limit, None, lambda weights, _: float(probe @ weights))
    return flow.time if flow.stopped else math.inf


def probe_at_return(model: CoinLine, level: float, limit: float = 1e5) -> float:
    """Return the probe logit when training stops as soon as J ≥ `level`, NaN if that is not within `limit`.

    Args:
        model: the coin line.
        level: the return at which training stops, in units of reward.
        limit: the time to stop looking.

    Raises:
        EnvironmentError_: `limit` is not positive and finite.
        AitiaError: the solver failed.
    """
    flow = _solve(model, limit, None, lambda _, value: level - value)
    return probe_logit(model, flow.weights) if flow.stopped else math.nan


def flip_share(model: CoinLine, time: float, low: float = 0.0, high: float = 1.0) -> float:
    r"""Return :math:`\varphi^*`, the share of end-paid episodes at which the probe logit at a time changes sign.

    Args:
        model: the coin line; its own `wrong_share` is not used.
        time: T, positive.
        low, high: shares between which the sign changes.

    Raises:
        EnvironmentError_: the sign does not change between `low` and `high`, or `time` is not positive.
        AitiaError: the solver failed.
    """

    def logit(share: float) -> float:
        changed = replace(model, wrong_share=share)
        return probe_logit(changed, gradient_flow(changed, time).weights)

    at_low, at_high = logit(low), logit(high)
    if not at_low * at_high < 0.0:
        raise EnvironmentError_(
            f"coin line: the probe logit at T={time:g} is {at_low:.3g} at wrong_share={low} and {at_high:.3g} at "
            f"{high}: expected opposite signs. Widen the interval; at epsilon=0 the wrong rewards change nothing"
        )
    return float(brentq(logit, low, high, xtol=1e-5))


def compute_reward_attribution(model: CoinLine, time: float) -> Array:
    r"""Return how the probe logit at T changes with the reward of each kind of episodes, by central differences.

    :math:`\partial\, (w(T) \cdot x_{probe}) / \partial r_k`, logits per unit of reward, with every episode of
    kind k changed alike; accurate to about 1e-4 of the largest. With tabular features it is exactly 0 for
    every kind, at every T and epsilon: the probe state never occurs in training and shares no parameter
    with a state that does (tabular proposition, MAIS-A8). A scale of all rewards is a scale of time, hence
    :math:`\sum_k r_k\, \partial / \partial r_k = T \, d / dT`.

    Args:
        model: the coin line.
        time: T, positive.

    Returns:
        float64 [K], in the order of `CoinLine.kinds`.

    Raises:
        EnvironmentError_: `time` is not positive and finite.
        AitiaError: the solver failed.
    """
    probe = model.encode(*model.probe)
    paid = np.full(len(model.kinds()), float(model.reward_scale))
    step = _REWARD_STEP * model.reward_scale
    found = np.zeros(len(paid))
    for kind in range(len(paid)):
        change = np.zeros(len(paid))
        change[kind] = step
        above, below = (gradient_flow(model, time, paid + sign * change).weights for sign in (1.0, -1.0))
        found[kind] = probe @ (above - below) / (2.0 * step)
    return found


def cloning_limit(model: CoinLine) -> Array:
    """Return where behaviour cloning of the shortest way to the coin goes: the max-margin direction, unit length.

    The training states on which the agent is not at the coin, each labelled with the action towards it, are separated
    by as wide a margin as can be; gradient descent on the logistic loss goes there (Soudry et al. 2018, theorem 3).

    Args:
        model: the coin line; wrong rewards are no part of cloning.

    Returns:
        float64 [D].

    Raises:
        AitiaError: the states cannot be separated.
    """
    coins = sorted({kind.coin for kind in model.kinds()})
    states = [(p, c) for c in coins for p in range(model.length + 1) if p != c]
    signed = np.array([model.encode(p, c) * (1.0 if p < c else -1.0) for p, c in states])
    margins = LinearConstraint(signed, lb=1.0)
    begin = np.linalg.lstsq(signed, np.ones(len(signed)), rcond=None)[0]

    def half_square(weights: Array) -> float:
        return 0.5 * float(weights @ weights)

    found = minimize(half_square, begin, method="SLSQP", constraints=[margins], tol=1e-12)
    if not found.success:
        raise AitiaError(f"coin line: no direction separates the training states of {model}: {found.message}")
    direction: Array = found.x / np.linalg.norm(found.x)
    return direction


def _solve(model: CoinLine, time: float, rewards: Array | None, stop: Callable[[Array, float], float] | None) -> Flow:
    """Solve the flow until `time`, or until `stop(weights, J)` falls through 0."""
    if not 0.0 < time < math.inf:
        raise EnvironmentError_(f"coin line: flow time {time!r} was given, expected a positive finite number")
    tables = _Tables(model)
    paid = tables.shares * _checked_rewards(model, rewards)

    def slope(_: float, weights: Array) -> Array:
        gradient: Array = paid @ tables.compute(weights).gradients
        return gradient

    event: Any = None
    if stop is not None:

        def event(at: float, weights: Array) -> float:
            # The probe logit starts at exactly 0: a positive start keeps the solver from taking it for the event.
            return 1.0 if at == 0.0 else stop(weights, float(paid @ tables.compute(weights).values))

        event.terminal, event.direction = True, -1.0

    # LSODA turns to a stiff method by itself, as late in the flow.
    done = solve_ivp(slope, (0.0, time), np.zeros(model.features), method="LSODA", events=event, rtol=_RTOL, atol=_ATOL)
    if done.status < 0 or not np.isfinite(done.y[:, -1]).all():
        raise AitiaError(f"coin line: the gradient flow to T={time:g} of {model} failed: {done.message}")
    return Flow(float(done.t[-1]), done.y[:, -1], done.status == 1)


def _checked(model: CoinLine, weights: Array) -> Array:
    weights = np.asarray(weights, dtype=np.float64)
    if weights.shape != (model.features,):
        raise EnvironmentError_(
            f"coin line: weights of shape {weights.shape} were given, expected ({model.features},) for the encoding "
            f"{model.encoding!r} at length {model.length}"
        )
    if not np.isfinite(weights).all():
        raise NonFiniteError(f"coin line: weights {weights} were given, expected finite numbers")
    return weights


def _checked_rewards(model: CoinLine, rewards: Array | None) -> Array:
    kinds = len(model.kinds())
    if rewards is None:
        return np.full(kinds, float(model.reward_scale))
    rewards = np.asarray(rewards, dtype=np.float64)
    if rewards.shape != (kinds,):
        raise EnvironmentError_(
            f"coin line: rewards of shape {rewards.shape} were given, expected ({kinds},), one a kind of episodes"
        )
    if not np.isfinite(rewards).all():
        raise NonFiniteError(f"coin line: rewards {rewards} were given, expected finite numbers")
    return rewards
