r"""TRAK summed over the real updates of a window, instead of linearised at the parameters that collected it.

PPO reuses a window for several epochs of minibatches. At update j, with parameters theta_j and rows B_j, the
surrogate's gradient by the normalised advantage of row k is

.. math:: w_{kj} \nabla \log \pi_{\theta_j}(a_k|s_k), \quad w_{kj} = \frac{\pi_{\theta_j}}{\pi_{\theta_i}}
          \, 1[\text{not clipped}]

(Schulman et al. 2017, arXiv:1707.06347, eq. 7); where `clip_range_vf` holds V, the value loss has none. Each update is
scored as a window of its own, at theta_j and with the Fisher matrix of its rows, and carried to raw advantages by the
adjoint of its own centring and scaling; the mean over updates has the unit of the window form.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ...datasets.errors import InputError
from ...training.retraining.replay import ReplayedWindow
from ..actors.outputs import Actor
from ..adjoints.batches import spread
from ..adjoints.gae import GaeAdvantages, minibatch_adjoint
from ..adjoints.signal import Scores
from ..gradients.channels import Channels
from ..gradients.kernel import LAMBDAS, LINEAR_LAMBDA
from ..gradients.rows import WindowRows
from ..targets.steps import Targets
from .base import Estimator, Influence, Prepared
from .window import Window

Numbers = NDArray[np.float64]


@dataclass(frozen=True)
class TrakUpdates(Estimator):
    """TRAK over the real updates of a window: ratios, clipping and epochs as they happened."""

    name = "trak-updates"
    summary = "TRAK summed over PPO's real updates, with ratios and clipping"
    needs_updates = True
    damping: float = LINEAR_LAMBDA

    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Score every update of the window.

        Raises:
            InputError: the window comes without its updates (they are replayed by `aitia attribute`), its signal is no
                generalised advantage estimate, or the policy is recurrent.
        """
        if window.rows.inputs.history is not None:
            raise InputError(
                "--estimator trak-updates was given for a recurrent policy, whose minibatches are sequences with "
                "states that change at every update. Use --estimator trak"
            )
        if window.updates is None or not window.updates.updates:
            raise InputError(
                f"{window.name} comes without its updates: --estimator trak-updates replays them, run `aitia attribute`"
            )
        if not isinstance(window.signal, GaeAdvantages):
            raise InputError(
                f"{window.name}: --estimator trak-updates needs GaeAdvantages, not a {type(window.signal).__name__}"
            )
        dampings = tuple(dict.fromkeys((*LAMBDAS, self.damping)))
        return _MeanOverUpdates(window.signal, _mean_effects(window, window.signal, actor, targets, dampings))


class _Effects(NamedTuple):
    """Effects at one damping, [N, F] each, mean over a window's updates.

    Attributes:
        scores: of one unit of normalised advantage, summed over the rows of a minibatch.
        advantage, advantage_raw: of one unit of raw advantage, with and without the adjoint of each minibatch's
            normalisation.
        value: of one unit of return.
    """

    scores: Scores
    advantage: Scores
    advantage_raw: Scores
    value: Scores


class _MeanOverUpdates(Prepared):
    """The mean effects over a window's updates, taken to rewards by the adjoint of GAE."""

    def __init__(self, signal: GaeAdvantages, effects: dict[float, _Effects]) -> None:
        self._signal, self._effects = signal, effects

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping."""
        scale = self._signal.reward_scale[:, None]
        scores, *effects = self._effects[lam]
        tau, raw, value = (self._signal.adjoint(effect[:, failures]) * scale for effect in effects)
        return Influence(scores[:, failures], tau, raw, value)


def _mean_effects(
    window: Window, signal: GaeAdvantages, actor: Actor, targets: Targets, dampings: tuple[float, ...]
) -> dict[float, _Effects]:
    """Return the effects at each damping; the policy is left with the parameters of the last update."""
    assert window.updates is not None
    shape = (len(window.reward), targets.failures)
    effects = {lam: _Effects(*(np.zeros(shape) for _ in _Effects._fields)) for lam in dampings}
    before = _Said.of(actor, window.rows)
    for number, update in enumerate(window.updates.updates):
        actor.module.load_state_dict(update.parameters)
        distinct, row = np.unique(window.rows.row[update.rows], return_inverse=True)
        rows = WindowRows(
            window.rows.observations[distinct], window.rows.actions[distinct],
            np.bincount(row).astype(np.int64), row, window.rows.inputs.rows(distinct),
        )  # fmt: skip
        advantages = _Minibatch(signal.raw[update.rows], signal.normalize)
        weight, follows = _slopes(_Said.of(actor, rows), before, distinct, row, advantages, window.updates)
        channels = Channels(actor, rows, targets, f"{window.name}, update {number}", window.vf_coef)
        policy, value, scale = channels.policy, channels.value, channels.scale
        for lam, total in effects.items():
            scores = weight[:, None] * policy.trak(lam)[row]
            total.scores[update.rows] += scores
            total.advantage[update.rows] += advantages.adjoint(scores)
            total.advantage_raw[update.rows] += scores / (len(row) * advantages.spread)
            if value is not None:
                by_return = scale * follows[:, None] * value.trak(lam)[row]
                total.value[update.rows] += by_return / len(row)
    for mean in effects.values():
        for total_effect in mean:
            total_effect /= len(window.updates.updates)
    return effects


class _Said(NamedTuple):
    """log pi(a|s) and V(s) of the distinct rows, [U] each; V is zero where the policy has none."""

    log_prob: Numbers
    value: Numbers

    @staticmethod
    def of(actor: Actor, rows: WindowRows) -> _Said:
        """Return what the policy says with its present parameters."""
        with torch.no_grad():
            outputs = actor.outputs(rows.observations, rows.inputs)
            log_prob = outputs.distribution.log_prob(torch.as_tensor(rows.actions)).double().cpu().numpy()
            value = outputs.values.double().cpu().numpy() if actor.has_values else np.zeros(len(log_prob))
        return _Said(log_prob, value)


class _Minibatch(NamedTuple):
    """The raw advantages [n] of one minibatch, and whether they are normalised in it."""

    raw: Numbers
    normalize: bool

    @property
    def spread(self) -> float:
        """What they are divided by; infinite where all are equal."""
        return (spread(self.raw) or np.inf) if self.normalize and len(self.raw) > 1 else 1.0

    @property
    def normalised(self) -> Numbers:
        """What the surrogate is weighted with, [n]."""
        return (self.raw - self.raw.mean()) / self.spread if self.normalize else self.raw

    def adjoint(self, scores: Scores) -> Scores:
        """Return the effect of one unit of raw advantage from that of one unit of normalised advantage, [n, F]."""
        if not self.normalize:
            return scores / len(self.raw)
        return minibatch_adjoint(scores, self.raw, np.zeros((len(self.raw), 1), np.int32))


def _slopes(
    now: _Said, before: _Said, distinct: NDArray[np.int64], row: NDArray[np.int64], advantages: _Minibatch,
    replayed: ReplayedWindow,
) -> tuple[Numbers, NDArray[np.bool_]]:  # fmt: skip
    """Return by how much each row's losses follow a change of log pi and of V in one update, [n] each.

    Args:
        now: of the update's distinct rows, with its parameters.
        before: of the window's distinct rows, with those that collected it.
        distinct, row: which of the window's distinct rows are the update's, and which of these each row is, [n].
        advantages: of the update's rows.
        replayed: the clip ranges.

    Returns:
        w_kj of the surrogate, and whether the value loss is not clipped.
    """
    most, most_of_value = (np.inf if x is None else x for x in (replayed.clip_range, replayed.clip_range_vf))
    ratio, pull = np.exp(now.log_prob - before.log_prob[distinct])[row], advantages.normalised
    flat = ((pull > 0.0) & (ratio > 1.0 + most)) | ((pull < 0.0) & (ratio < 1.0 - most))  # clipped on the side of pull
    moved = (now.value - before.value[distinct])[row]
    return ratio * ~flat, np.abs(moved) <= most_of_value
