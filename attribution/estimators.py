"""Estimators of reward influence behind one small interface, chosen by name, and the baselines beside them.

An estimator of one's own is a subclass of `Estimator` that an installed package names under the entry-point
group `aitia.estimators`; `aitia attribute RUN --estimator NAME` then finds it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from stable_baselines3.common.policies import ActorCriticPolicy

from ..datasets.errors import InputError, nearest
from .adjoint import Scores, reward_influence
from .factors import features
from .targets import TargetSteps
from .trak import window_gradients
from .window import Window

ENTRY_POINTS = "aitia.estimators"
_RANDOM_SEED = 0


class Influence(NamedTuple):
    """What an estimator says of the N transitions of a window and F failures; each [N, F].

    Attributes:
        scores: s, effect of one unit of (normalised) advantage; of a baseline, its blame.
        tau: effect of one unit of reward, with the adjoint of advantage normalisation.
        tau_raw: without it.
    """

    scores: Scores
    tau: Scores
    tau_raw: Scores


class Prepared(Protocol):
    """A window that an estimator has looked at once, for all failures and every damping."""

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping, so that [N, F] is never held whole."""
        ...


class Estimator(ABC):
    """A way to estimate how much each training reward drove each failure.

    Attributes:
        name: by which it is chosen.
        summary: one line for a list of estimators.
    """

    name: ClassVar[str]
    summary: ClassVar[str]

    @abstractmethod
    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Look at a window once.

        Args:
            window: its transitions.
            policy: the policy with the parameters that collected it.
            targets: the targets of F failures.
        """


class ScoredWindow:
    """Influence by scores of advantages, taken to rewards by the adjoint of GAE.

    Args:
        window: the window.
        solve: maps a damping to scores of the window's distinct rows, [U, F].
    """

    def __init__(self, window: Window, solve: Callable[[float], Scores]) -> None:
        self._window, self._solve = window, solve
        self._solved: tuple[float, Scores] | None = None

    def influence(self, lam: float, failures: slice) -> Influence:
        """Return the influence on some failures at one damping."""
        if self._solved is None or self._solved[0] != lam:
            self._solved = (lam, self._solve(lam))
        scores = self._solved[1][:, failures][self._window.rows.row]
        return Influence(scores, *reward_influence(scores, self._window.advantages))


class BlamedWindow:
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
        return Influence(self._blame[:, failures], self._tau[:, failures], self._tau[:, failures])


class Trak(Estimator):
    """TRAK at the window's own checkpoint, exact (dual form)."""

    name = "trak"
    summary = "TRAK at every window's own checkpoint, exact, without projection"

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Compute the Gram matrix of the window once; each damping is a solve."""
        return ScoredWindow(window, window_gradients(policy, window.rows, targets, window.name).trak)


class TracIn(Estimator):
    """Gradient products, after TracIn (Pruthi et al. 2020, arXiv:2002.08484), each window at its own checkpoint."""

    name = "tracin"
    summary = "gradient products, nothing preconditioned"

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Compute the products once; they know no damping."""
        products = window_gradients(policy, window.rows, targets, window.name).gradient_product()
        return ScoredWindow(window, lambda _: products)


class Baseline(Estimator):
    """A ranking that does not look at the failure: the larger `blame`, the more suspected."""

    @abstractmethod
    def blame(self, window: Window) -> NDArray[np.float64]:
        """Return how suspected each transition is, at least 0, [N]."""

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
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
        return np.abs(window.advantages.raw)


class TdError(Baseline):
    """The size of the TD error, recovered from the advantages."""

    name = "td-error"
    summary = "baseline: size of the TD error"

    def blame(self, window: Window) -> NDArray[np.float64]:
        """Return |delta|, delta_t = A_t - gamma lambda A_{t+1} in the same episode and window."""
        advantages = window.advantages
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

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Measure distances between the window's distinct rows and the failures' states."""
        return _nearest(window, window.rows.observations, targets.observations, targets)


class NearestLatent(Estimator):
    """Closeness in the policy's latent features, the input of its last layer."""

    name = "nearest-latent"
    summary = "baseline: closeness to the failure's states, in the policy's latent features"

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Measure distances between latent features."""
        with torch.no_grad():
            rows, steps = (
                features(policy, torch.as_tensor(x)).double().numpy()
                for x in (window.rows.observations, targets.observations)
            )
        return _nearest(window, rows, steps, targets)


def _nearest(
    window: Window, rows: NDArray[np.generic], steps: NDArray[np.generic], targets: TargetSteps
) -> BlamedWindow:
    """Blame by 1 / (1 + distance to the nearest step of the failure), in units of the window's spread."""
    x, y = (np.asarray(values, dtype=np.float64).reshape(len(values), -1) for values in (rows, steps))
    spread = np.sqrt(np.average((x - x.mean(axis=0)) ** 2, axis=0, weights=window.rows.counts))
    unit = np.where(spread > 0.0, spread, 1.0)
    distance = cdist(x / unit, y / unit)
    starts = np.searchsorted(targets.failure, np.arange(targets.failures))
    closest = np.minimum.reduceat(distance, starts, axis=1)
    return BlamedWindow(window, 1.0 / (1.0 + closest[window.rows.row]), targets.failures)


BUILT_IN: tuple[type[Estimator], ...] = (
    Trak, TracIn, Size, Reward, TdError, Advantage, NearestObservation, NearestLatent, Random,
)  # fmt: skip


def estimators() -> dict[str, type[Estimator]]:
    """Return all estimators by name: the built-in ones, and those of installed packages.

    Raises:
        InputError: an entry point is not an `Estimator`, or takes a built-in name.
    """
    from .projected import TrakProjected  # it is made of what stands here

    built_in: tuple[type[Estimator], ...] = (*BUILT_IN, TrakProjected)
    found = {estimator.name: estimator for estimator in built_in}
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
