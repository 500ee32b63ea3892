r"""TRAK with a random projection, always through the `traker` library: the reference that others know.

`traker` divides gradients by sqrt(P) and never by n, and its projection matrix R [P, k] has unit variance; so
with `lambda_reg` = lambda n k / P (k = P without projection) its scores times n are

.. math:: s = \Phi \tilde R (\tilde R^T (\Phi^T\Phi/n) \tilde R + \lambda I)^{-1} \tilde R^T q, \quad
          \tilde R = R/\sqrt{k},

which go to the exact ones as k grows. Its traps that are handled here: float16 by default; the projection matrix
deleted before scoring, and drawn again for every batch where it has several blocks; the inverse divided by its
mean entry, which takes the unit away; a folder on disk that is resumed. Source: Park et al. 2023
(arXiv:2303.14186).
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from ...datasets.errors import InputError, NonFiniteError
from ...training.agents.memory import ACTOR, is_recurrent
from ...training.environments.actions import takes_masks
from ..actors.adapt import ModuleOutputs
from ..actors.outputs import ActionDistribution, Actor, Distribution, Observations, difference_of_log_sums
from ..actors.sb3 import Sb3Actor, incoming_states, lstm_step
from ..gradients.kernel import DEFAULT_LAMBDA
from ..gradients.rows import WindowRows
from ..targets.steps import Targets
from .base import Estimator, Prepared, ScoredWindow
from .window import Window

_BATCH = 256


@dataclass(frozen=True)
class TrakProjected(Estimator):
    """TRAK's random projection through `traker`, at the window's own checkpoint.

    Attributes:
        dimension: K, of the projected gradients.
        seed: of the projection matrix.
        damping: lambda of `influence`.
    """

    name = "trak-projected"
    summary = "TRAK with a random projection, through the traker library; corrections as finite differences"
    finite_difference = True
    dimension: int = 2048
    seed: int = 0
    damping: float = DEFAULT_LAMBDA

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise InputError(f"{self.name}: dimension {self.dimension}, expected 1 or more")

    def prepare(self, window: Window, actor: Actor, targets: Targets) -> Prepared:
        """Check the target; gradients are projected when scores at a damping are asked for.

        Raises:
            InputError: a user's own target, which is not a sum over steps, or the target `value`.
        """
        if targets.user is not None:
            raise InputError(
                "--estimator trak-projected needs a built-in target: traker scores one output a step, and "
                "your target function need not be a sum over steps. Use --estimator trak"
            )
        if "value" in targets.kinds:
            raise InputError(
                "--estimator trak-projected scores the policy alone, and target: value asks for V(s). Use "
                "--estimator trak, or another target"
            )
        return ScoredWindow(window, lambda lam: _scores(window, actor, targets, self, lam), finite=True)


class _Scored(nn.Module):
    """What traker takes gradients of, by all of its parameters: one output of the actor alone a row."""

    def said(self, observed: Observations, mask: Tensor, states: Tensor) -> Distribution:
        """Return the distribution of actions in N states, of prepared observations and further inputs."""
        raise NotImplementedError

    def forward(
        self, observed: Observations, mask: Tensor, states: Tensor, action: Tensor, plus: Tensor, minus: Tensor,
        kind: Tensor,
    ) -> Tensor:  # fmt: skip
        """Return the output of one row: a weighted sum of log pi(a|s), its log-odds and a difference of log-sums of
        probabilities.
        """
        said = self.said(observed, mask, states)
        output = kind[0, 0] * said.log_prob(action)[0] + kind[0, 1] * said.log_odds(action)[0]
        if said.discrete:
            output = output + kind[0, 2] * difference_of_log_sums(said.log_probs(), plus, minus)[0]
        return output


class _Sb3Scored(_Scored):
    """The actor of a policy of Stable-Baselines3."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.features, self.body, self.head = (
            policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net,
        )  # fmt: skip
        self.lstm = policy.lstm_actor if is_recurrent(policy) else None
        self.log_std = policy.log_std if isinstance(policy.action_space, spaces.Box) else None
        self.space, self.masked = policy.action_space, takes_masks(policy)

    def said(self, observed: Observations, mask: Tensor, states: Tensor) -> Distribution:
        """Return the distribution of actions in N states."""
        features = self.features(observed)
        if self.lstm is not None:
            lstm: Any = self.lstm
            features, _ = lstm_step(lstm, features, states)
        head = self.head(self.body(features))
        log_std = None if self.log_std is None else self.log_std.expand_as(head)
        return ActionDistribution(self.space, head, log_std, mask if self.masked else None)


class _ModuleScored(_Scored):
    """A module of one's own, whatever its layers are."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def said(self, observed: Observations, mask: Tensor, states: Tensor) -> Distribution:
        """Return the distribution of actions in N states."""
        return ModuleOutputs(self.module, observed).distribution


class _Samples(NamedTuple):
    """One output each: log pi(a|s) of a transition, or one step of a target. All [N, ...].

    Attributes:
        inputs: what the policy takes (`_prepared`).
        action: the action taken.
        plus, minus: bool [N, A], actions whose summed probabilities are compared (labels).
        kind: [N, 3], weights of log pi(a|s), of its log-odds and of the labels.
    """

    inputs: tuple[Tensor, ...]
    action: Tensor
    plus: Tensor
    minus: Tensor
    kind: Tensor

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """Yield batches as traker takes them."""
        flat = (*self.inputs, self.action, self.plus, self.minus, self.kind)
        for start in range(0, len(self.action), _BATCH):
            yield tuple(values[start : start + _BATCH] for values in flat)


def _scores(
    window: Window, actor: Actor, targets: Targets, parameters: TrakProjected, lam: float
) -> NDArray[np.float64]:
    """Return scores of the window's distinct rows [U, F] at one damping."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput
    from trak.score_computers import BasicScoreComputer

    class Output(AbstractModelOutput):  # type: ignore[misc]
        """The output of `_Scored`."""

        def __init__(self) -> None:
            """Nothing is kept; traker's base class wants it said."""

        @staticmethod
        def get_output(model: nn.Module, weights: Any, buffers: Any, *sample: Tensor) -> Tensor:
            *inputs, mask, states, action, plus, minus, kind = (values[None] for values in sample)
            observed = inputs[0] if names is None else dict(zip(names, inputs, strict=True))
            rest = (mask, states, action, plus, minus, kind)
            output: Tensor = torch.func.functional_call(model, (weights, buffers), (observed, *rest))
            return output

        @staticmethod
        def get_out_to_loss_grad(model: nn.Module, weights: Any, buffers: Any, batch: tuple[Tensor, ...]) -> Tensor:
            return torch.ones(len(batch[0]), 1)

    class Scores(BasicScoreComputer):  # type: ignore[misc]
        """traker's own, without the division by the mean entry of the inverse."""

        def get_x_xtx_inv(self, grads: Tensor, xtx: Tensor) -> Tensor:
            damped = xtx.double() + self.lambda_reg * torch.eye(len(xtx), dtype=torch.float64)
            solved: Tensor = torch.linalg.solve(damped, grads.double().T)
            return solved.T.float()

    names = window.rows.observations.dtype.names
    actor.module.float().cpu()
    scored = _Sb3Scored(actor.module) if isinstance(actor, Sb3Actor) else _ModuleScored(actor.module)
    learned = {name: value.numel() for name, value in scored.named_parameters() if value.requires_grad}
    size, dimension = sum(learned.values()), parameters.dimension
    rows = len(window.reward)
    projector = _projector(size, dimension, parameters.seed)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), _unchecked_distributions():
        warnings.simplefilter("ignore")  # traker warns about its optional CUDA kernels
        traker = TRAKer(
            scored, Output(), train_set_size=rows, save_dir=folder, device="cpu",
            projector=projector, proj_dim=dimension, score_computer=Scores, use_half_precision=False, grad_wrt=learned,
            logging_level=logging.CRITICAL,
        )  # fmt: skip
        traker.load_checkpoint(scored.state_dict(), model_id=0)
        for batch in _window_samples(window, actor).batches():
            traker.featurize(batch=batch, num_samples=len(batch[0]))
        traker.score_computer.lambda_reg = lam * rows * dimension / size
        traker.finalize_features(model_ids=[0])
        name = f"lambda={lam:g}"
        traker.start_scoring_checkpoint(name, scored.state_dict(), model_id=0, num_targets=len(targets.failure))
        for batch in _target_samples(targets, actor).batches():
            traker.score(batch=batch, num_samples=len(batch[0]))
        per_step = np.array(traker.finalize_scores(name, model_ids=[0]), dtype=np.float64) * rows
    if not np.isfinite(per_step).all():
        raise NonFiniteError(f"{window.name}: a projected gradient is not finite; the training diverged")
    return _by_failure(per_step, window, targets)


@lru_cache(maxsize=1)
def _projector(size: int, dimension: int, seed: int) -> Any:
    """Return traker's projector of `size` parameters; its matrix is drawn once for all windows of a process."""
    from trak.projectors import BasicProjector, ProjectionType

    projector = BasicProjector(size, dimension, seed, ProjectionType.rademacher, "cpu", block_size=dimension)
    projector.free_memory = lambda: None  # else its one matrix is gone when targets are scored
    return projector


@contextmanager
def _unchecked_distributions() -> Iterator[None]:
    """Keep torch's distributions from checking their arguments, which cannot be done inside of vmap."""
    before = torch.distributions.Distribution._validate_args
    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        torch.distributions.Distribution.set_default_validate_args(before)


def _by_failure(per_step: NDArray[np.float64], window: Window, targets: Targets) -> NDArray[np.float64]:
    """Sum scores [N, T] over the steps of each failure, and keep one of each distinct row: [U, F]."""
    first = np.unique(window.rows.row, return_index=True)[1]
    starts = np.searchsorted(targets.failure, np.arange(targets.failures))
    summed: NDArray[np.float64] = np.add.reduceat(per_step[first], starts, axis=1)
    return summed


def _window_samples(window: Window, actor: Actor) -> _Samples:
    """Return log pi(a|s) of each transition."""
    row = window.rows.row
    kind = torch.tensor([[1.0, 0.0, 0.0]]).repeat(len(row), 1)
    none = torch.zeros(len(row), 1, dtype=torch.bool)
    actions = torch.as_tensor(window.rows.actions[row])
    inputs = tuple(values[row] for values in _prepared(window.rows, actor))
    return _Samples(inputs, actions, none, none, kind)


def _target_samples(targets: Targets, actor: Actor) -> _Samples:
    """Return each step of each failure's target, with its weight."""
    of_step = np.array(targets.kinds)[targets.failure]
    weight = targets.step_weights()
    kind = np.stack([weight * (of_step == name) for name in ("episode", "log-odds", "labels")], axis=1)
    labels = targets.labels if targets.labels.shape[1] else np.zeros((len(weight), 1), np.int8)
    return _Samples(
        _prepared(targets, actor), torch.as_tensor(targets.actions), torch.as_tensor(labels > 0),
        torch.as_tensor(labels < 0), torch.as_tensor(kind).float(),
    )  # fmt: skip


def _prepared(of: WindowRows | Targets, actor: Actor) -> tuple[Tensor, ...]:
    """Return what the policy takes in N states: prepared observations, one tensor a key; then bool [N, A], allowed
    actions, and [N, 2, layers, H], states that come in at the actor's LSTM ([N, 0] each where it takes none).
    """
    observed: Any = actor.prepare(of.observations)
    parts = tuple(observed.values()) if isinstance(observed, dict) else (observed,)
    mask = states = torch.zeros(len(parts[0]), 0)
    if of.inputs.mask is not None:
        mask = torch.as_tensor(of.inputs.mask)
    if isinstance(actor, Sb3Actor) and is_recurrent(policy := actor.module):
        lstm: Any = policy.lstm_actor
        with torch.no_grad():
            states = incoming_states(lstm, policy.pi_features_extractor(observed), of.inputs.history, ACTOR)
    return (*parts, mask, states)
