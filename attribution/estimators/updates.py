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
from ..gradients.kernel import LINEAR_LAMBDA
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
        return _MeanOverUpdates(window, window.signal, actor, targets)


class _MeanOverUpdates(Prepared):
    """The mean effects over a window's updates, taken to rewards by the adjoint of GAE; of the latest damping.

    Args:
        window, actor, targets: see `Estimator.prepare`.
        signal: the window's.
    """

    def __init__(self, window: Window, signal: GaeAdvantages, actor: Actor, targets: Targets) -> None:
        self._window, self._signal, self._actor, self._targets = window, signal, actor, targets
        self._latest: tuple[float, frozenset[str]] | None = None
        self._before = _Said.of(actor, window.rows)

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping."""
        if self._latest != (lam, self.further):
            self._effects = {}  # not those of two dampings at once
            self._effects, self._latest = self._mean_effects(lam), (lam, self.further)
        scale = self._signal.reward_scale[:, None]
        tau, raw, value = (
            self._signal.adjoint(self._effects[name][:, failures]) * scale if name in self._effects else None
            for name in ("advantage", "raw", "value")
        )
        assert tau is not None
        return Influence(self._effects["scores"][:, failures], tau, raw, value)

    def _mean_effects(self, lam: float) -> dict[str, Scores]:
        """Return mean effects over updates, [N, F] each; the policy is left with the parameters of the last one.

        Returns:
            `scores`, of one unit of normalised advantage, summed over the rows of a minibatch; `advantage`, of one unit
            of raw advantage, with the adjoint of each minibatch's normalisation; and, where asked for, `raw`, without
            it, and `value`, of one unit of return.
        """
        window, signal, actor, updates = self._window, self._signal, self._actor, self._window.updates
        assert updates is not None
        shape = (len(window.reward), self._targets.failures)
        effects = {name: np.zeros(shape) for name in ("scores", "advantage", *sorted(self.further))}
        for number, update in enumerate(updates.updates):
            actor.module.load_state_dict(update.parameters)
            distinct, row = np.unique(window.rows.row[update.rows], return_inverse=True)
            rows = WindowRows(
                window.rows.observations[distinct], window.rows.actions[distinct],
                np.bincount(row).astype(np.int64), row, window.rows.inputs.rows(distinct),
            )  # fmt: skip
            advantages = _Minibatch(signal.raw[update.rows], signal.normalize)
            weight, follows = _slopes(_Said.of(actor, rows), self._before, distinct, row, advantages, updates)
            where = f"{window.name}, update {number}"
            channels = Channels(actor, rows, self._targets, where, window.vf_coef)
            scores = weight[:, None] * channels.policy.trak(lam)[row]
            effects["scores"][update.rows] += scores
            effects["advantage"][update.rows] += advantages.adjoint(scores)
            if "raw" in effects:
                effects["raw"][update.rows] += scores / (len(row) * advantages.spread)
            if "value" in effects and channels.value is not None:
                by_return = channels.scale * follows[:, None] * channels.value.trak(lam)[row]
                effects["value"][update.rows] += by_return / len(row)
        for total in effects.values():
            total /= len(updates.updates)
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
