"""Baselines: rankings that every estimator is compared with, in the form of an influence."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from ...datasets.arrays import Array, flat_numbers
from ...datasets.errors import InputError
from ..actors.outputs import Actor
from ..adjoints.gae import GaeAdvantages
from ..adjoints.signal import Scores
from ..targets.steps import Targets
from .base import Estimator, Influence, Prepared
from .window import Window

_RANDOM_SEED = 0


class BlamedWindow(Prepared):
    """A baseline's ranking in the form of an influence: correcting a wrong transition has effect -blame.

    Args:
        window: the window.
        blame: at least 0, [N, F]; or [N, 1], the same for all failures.
        failures: F.
    """

    def __init__(self, window: Window, blame: Scores, failures: int) -> None:
        change = np.zeros(len(blame)) if window.correction is None else window.correction
        wrong = (change != 0.0)[:, None]
        self._blame = np.broadcast_to(blame, (len(blame), failures))
        self._tau = np.where(wrong, -self._blame / np.where(wrong, change[:, None], 1.0), self._blame)

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the ranking for some failures; it does not depend on the damping."""
        tau = self._tau[:, failures]
        return Influence(self._blame[:, failures], tau, tau, None)


class Baseline(Estimator):
    """A ranking that does not look at the failure: the larger `blame`, the more suspected."""

    @abstractmethod
    def blame(self, window: Window) -> NDArray[np.float64]:
        """Return how suspected each transition is, at least 0, [N]."""

    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Rank the window's transitions."""
        return BlamedWindow(window, self.blame(window)[:, None], targets.failures)


class Size(Baseline):
    """The size of the error, |intended - paid|."""

    name = "size"
    summary = "baseline: size of the error, |intended - paid|"

    def blame(self, window: Window) -> NDArray[np.float64]:
        """Return |dr|; 0 without intended rewards."""
        return np.zeros(len(window.reward)) if window.correction is None else np.abs(window.correction)


class Reward(Baseline):
    """The size of the reward as paid."""

    name = "reward"
    summary = "baseline: size of the reward as paid"

    def blame(self, window: Window) -> NDArray[np.float64]:
        """Return |r|."""
        return np.abs(window.reward)


class Advantage(Baseline):
    """The size of the advantage."""

    name = "advantage"
    summary = "baseline: size of the advantage"

    def blame(self, window: Window) -> NDArray[np.float64]:
        """Return |A|."""
        return np.abs(window.signal.raw)


class TdError(Baseline):
    """The size of the TD error, recovered from the advantages."""

    name = "td-error"
    summary = "baseline: size of the TD error"

    def blame(self, window: Window) -> NDArray[np.float64]:
        """Return |delta|, delta_t = A_t - gamma lambda A_{t+1} in the same episode and window.

        Raises:
            InputError: the window's signal is no generalised advantage estimate.
        """
        advantages = window.signal
        if not isinstance(advantages, GaeAdvantages):
            raise InputError(
                f"{window.name}: --estimator td-error needs GaeAdvantages, the signal is a {type(advantages).__name__}"
            )
        raw = advantages.raw.reshape(advantages.n_envs, window.steps)
        following = np.concatenate([raw[:, 1:], np.zeros((advantages.n_envs, 1))], axis=1)
        goes_on = ~advantages.ended.reshape(raw.shape)
        delta: NDArray[np.float64] = raw - advantages.gamma * advantages.gae_lambda * goes_on * following
        return np.abs(delta).reshape(-1)


class Random(Baseline):
    """Chance, the same at every call."""

    name = "random"
    summary = "baseline: chance"

    def blame(self, window: Window) -> NDArray[np.float64]:
        """Return uniform numbers, a function of seed and window."""
        return np.random.default_rng([_RANDOM_SEED, window.seed, window.number]).random(len(window.reward))


class NearestObservation(Estimator):
    """Closeness of a transition's observation to the nearest state of the failure."""

    name = "nearest-observation"
    summary = "baseline: closeness to the failure's states, in observations"

    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Measure distances between the window's distinct rows and the failures' states."""
        return _nearest(window, window.rows.observations, targets.observations, targets)


class NearestLatent(Estimator):
    """Closeness in the policy's latent features, the input of its last layer."""

    name = "nearest-latent"
    summary = "baseline: closeness to the failure's states, in the policy's latent features"

    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Measure distances between latent features."""
        with torch.no_grad():
            rows, steps = (
                actor.outputs(part.observations, part.inputs).latent.double().cpu().numpy()
                for part in (window.rows, targets)
            )
        return _nearest(window, rows, steps, targets)


def _nearest(window: Window, rows: Array, steps: Array, targets: Targets) -> BlamedWindow:
    """Blame by 1 / (1 + distance to the nearest step of the failure), in units of the window's spread."""
    x, y = (flat_numbers(values) for values in (rows, steps))
    spread = np.sqrt(np.average((x - x.mean(axis=0)) ** 2, axis=0, weights=window.rows.counts))
    unit = np.where(spread > 0.0, spread, 1.0)
    distance = cdist(x / unit, y / unit)
    starts = np.searchsorted(targets.failure, np.arange(targets.failures))
    closest = np.minimum.reduceat(distance, starts, axis=1)
    return BlamedWindow(window, 1.0 / (1.0 + closest[window.rows.row]), targets.failures)
