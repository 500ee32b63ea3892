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

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy

from ...datasets.arrays import Array
from ...datasets.errors import InputError
from ...training.agents.memory import is_recurrent
from ...training.environments.spaces import as_tensors
from ...training.retraining.replay import ReplayedWindow
from ..adjoints.gae import Scores, gae_adjoint, minibatch_adjoint, spread
from ..gradients.kernel import LAMBDAS, WindowRows, policy_gradients, value_gradients
from ..targets.outputs import Outputs
from ..targets.steps import TargetSteps
from .base import Estimator, Influence, Prepared
from .window import Window


class TrakUpdates(Estimator):
    """TRAK over the real updates of a window: ratios, clipping and epochs as they happened."""

    name = "trak-updates"
    summary = "TRAK summed over PPO's real updates, with ratios and clipping"
    needs_updates = True

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Score every update of the window.

        Raises:
            InputError: the window comes without its updates (they are replayed by `aitia attribute`), or the policy
                is recurrent.
        """
        if is_recurrent(policy):
            raise InputError(
                "--estimator trak-updates was given for a recurrent policy, whose minibatches are sequences with "
                "states that change at every update. Use --estimator trak"
            )
        if window.updates is None or not window.updates.updates:
            raise InputError(
                f"{window.name} comes without its updates: --estimator trak-updates replays them, run `aitia attribute`"
            )
        return _SummedUpdates(window, window.updates, policy, targets)


class _SummedUpdates(Prepared):
    """Effects of one unit of raw advantage at each damping, [N, F] each, mean over updates."""

    def __init__(
        self, window: Window, replayed: ReplayedWindow, policy: ActorCriticPolicy, targets: TargetSteps
    ) -> None:
        self._window = window
        shape = (len(window.reward), targets.failures)
        self._scores, self._tau, self._raw, self._value = (
            {lam: np.zeros(shape) for lam in LAMBDAS} for _ in range(4)
        )  # fmt: skip
        before, values = _log_probs(policy, window.rows), _values(policy, window.rows)
        scale = float(np.sqrt(2.0 * window.vf_coef))
        for number, update in enumerate(replayed.updates):
            where = f"{window.name}, update {number}"
            policy.load_state_dict(update.parameters)
            distinct, row = np.unique(window.rows.row[update.rows], return_inverse=True)
            rows = WindowRows(
                window.rows.observations[distinct], window.rows.actions[distinct],
                np.bincount(row).astype(np.int64), row, window.rows.given.rows(distinct),
            )  # fmt: skip
            ratio = np.exp(_log_probs(policy, rows) - before[distinct])[row]
            weight = ratio * ~_clipped(ratio, self._normalised(update.rows), replayed.clip_range)
            moved = (_values(policy, rows) - values[distinct])[row]
            follows = np.abs(moved) <= (np.inf if replayed.clip_range_vf is None else replayed.clip_range_vf)
            gradients = policy_gradients(policy, rows, targets, where)
            value = value_gradients(policy, rows, targets, where, scale)
            for lam in LAMBDAS:
                scores = weight[:, None] * gradients.trak(lam)[row]
                self._scores[lam][update.rows] += scores
                self._tau[lam][update.rows] += self._by_advantage(scores, update.rows)
                self._raw[lam][update.rows] += scores / (len(row) * self._spread(update.rows))
                if value is not None:
                    by_return = scale * follows[:, None] * value.trak(lam)[row]
                    self._value[lam][update.rows] += by_return / len(row)
        for kept in (self._scores, self._tau, self._raw, self._value):
            for total in kept.values():
                total /= len(replayed.updates)

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping."""
        advantages = self._window.advantages
        scale = advantages.reward_scale[:, None]
        tau, raw, value = (
            gae_adjoint(kept[lam][:, failures], advantages) * scale for kept in (self._tau, self._raw, self._value)
        )
        return Influence(self._scores[lam][:, failures], tau, raw, value)

    def _spread(self, rows: NDArray[np.int64]) -> float:
        raw = self._window.advantages.raw[rows]
        normalises = self._window.advantages.normalize and len(rows) > 1
        return (spread(raw) or np.inf) if normalises else 1.0

    def _normalised(self, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        raw = self._window.advantages.raw[rows]
        return (raw - raw.mean()) / self._spread(rows) if self._window.advantages.normalize else raw

    def _by_advantage(self, scores: Scores, rows: NDArray[np.int64]) -> Scores:
        if not self._window.advantages.normalize:
            return scores / len(rows)
        return minibatch_adjoint(scores, self._window.advantages.raw[rows], np.zeros((len(rows), 1), np.int32))


def _log_probs(policy: ActorCriticPolicy, rows: WindowRows) -> NDArray[np.float64]:
    actions: Array = rows.actions
    with torch.no_grad():
        said = Outputs(policy, as_tensors(rows.observations), rows.given).distribution
        found = said.log_prob(torch.as_tensor(actions))
    return found.double().numpy()


def _values(policy: ActorCriticPolicy, rows: WindowRows) -> NDArray[np.float64]:
    with torch.no_grad():
        found = Outputs(policy, as_tensors(rows.observations), rows.given).values
    return found.double().numpy()


def _clipped(ratio: NDArray[np.float64], advantage: NDArray[np.float64], clip_range: float | None) -> NDArray[np.bool_]:
    """Return where PPO's surrogate is flat: the ratio has left the clip range on the side the advantage pulls to."""
    if clip_range is None:
        return np.zeros(len(ratio), dtype=bool)
    return ((advantage > 0.0) & (ratio > 1.0 + clip_range)) | ((advantage < 0.0) & (ratio < 1.0 - clip_range))
