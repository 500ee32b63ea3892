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
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from ..datasets.errors import InputError
from .estimators import Estimator, Prepared, ScoredWindow
from .factors import require_factored
from .targets import TargetSteps
from .trak import LAMBDAS
from .window import Window

PROJECTED_DIMENSIONS = 2048
_BATCH = 256
_SEED = 0


class TrakProjected(Estimator):
    """TRAK's random projection through `traker`, at the window's own checkpoint."""

    name = "trak-projected"
    summary = "TRAK with a random projection, through the traker library"

    def __init__(self, dimensions: int = PROJECTED_DIMENSIONS) -> None:
        self.dimensions = dimensions

    def prepare(self, window: Window, policy: ActorCriticPolicy, targets: TargetSteps) -> Prepared:
        """Project the gradients of the window and of the failures' steps once; each damping is a solve.

        Raises:
            InputError: a user's own target, which is not a sum over steps.
        """
        if targets.user is not None:
            raise InputError(
                "--estimator trak-projected needs a built-in target: traker scores one output a step, and "
                "your target function need not be a sum over steps. Use --estimator trak"
            )
        scores = _scores(window, policy, targets, self.dimensions)
        return ScoredWindow(window, lambda lam: scores[lam])


class _Actor(nn.Module):
    """The actor alone: traker takes gradients by all parameters of a module."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.features, self.body, self.head = (
            policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net,
        )  # fmt: skip

    def forward(self, observations: Tensor) -> Tensor:
        """Return log pi(.|s), [N, A]."""
        return torch.log_softmax(self.head(self.body(self.features(observations))), dim=1)


def _scores(
    window: Window, policy: ActorCriticPolicy, targets: TargetSteps, dimensions: int
) -> dict[float, NDArray[np.float64]]:
    """Return scores of the window's distinct rows [U, F] by damping."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput
    from trak.projectors import BasicProjector, ProjectionType
    from trak.score_computers import BasicScoreComputer

    class Output(AbstractModelOutput):  # type: ignore[misc]
        """A weighted sum of log-sums of probabilities: log pi(a|s), and one step of every built-in target."""

        def __init__(self) -> None:
            """Nothing is kept; traker's base class wants it said."""

        @staticmethod
        def get_output(
            model: nn.Module,
            weights: Any,
            buffers: Any,
            observation: Tensor,
            plus: Tensor,
            minus: Tensor,
            weight: Tensor,
        ) -> Tensor:
            log_probs = torch.func.functional_call(model, (weights, buffers), (observation[None],))[0]
            return weight * (_log_sum(log_probs, plus) - _log_sum(log_probs, minus))

        @staticmethod
        def get_out_to_loss_grad(model: nn.Module, weights: Any, buffers: Any, batch: tuple[Tensor, ...]) -> Tensor:
            return torch.ones(len(batch[0]), 1)

    class Scores(BasicScoreComputer):  # type: ignore[misc]
        """traker's own, without the division by the mean entry of the inverse."""

        def get_x_xtx_inv(self, grads: Tensor, xtx: Tensor) -> Tensor:
            damped = xtx.double() + self.lambda_reg * torch.eye(len(xtx), dtype=torch.float64)
            solved: Tensor = torch.linalg.solve(damped, grads.double().T)
            return solved.T.float()

    require_factored(policy)
    policy.float()
    actor = _Actor(policy)
    parameters = sum(parameter.numel() for parameter in actor.parameters())
    rows = len(window.reward)
    projector = BasicProjector(
        parameters, dimensions, _SEED, ProjectionType.rademacher, "cpu", block_size=dimensions
    )  # fmt: skip
    projector.free_memory = lambda: None  # else its one matrix is gone when targets are scored
    found: dict[float, NDArray[np.float64]] = {}
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # traker warns about its optional CUDA kernels
        traker = TRAKer(
            actor, Output(), train_set_size=rows, save_dir=folder, device="cpu",
            projector=projector, proj_dim=dimensions, score_computer=Scores, use_half_precision=False,
            logging_level=logging.CRITICAL,
        )  # fmt: skip
        traker.load_checkpoint(actor.state_dict(), model_id=0)
        _each_batch(_window_batch(window, policy), traker.featurize)
        for lam in LAMBDAS:
            traker.score_computer.lambda_reg = lam * rows * dimensions / parameters
            traker.saver.model_ids[0]["is_finalized"] = 0
            traker.finalize_features(model_ids=[0])
            name = f"lambda={lam:g}"
            traker.start_scoring_checkpoint(name, actor.state_dict(), model_id=0, num_targets=len(targets.failure))
            _each_batch(_target_batch(targets, policy), traker.score)
            per_step = np.array(traker.finalize_scores(name, model_ids=[0]), dtype=np.float64) * rows
            found[lam] = _by_failure(per_step, window, targets)
    return found


def _by_failure(per_step: NDArray[np.float64], window: Window, targets: TargetSteps) -> NDArray[np.float64]:
    """Sum scores [N, T] over the steps of each failure, and keep one of each distinct row: [U, F]."""
    first = np.unique(window.rows.row, return_index=True)[1]
    starts = np.searchsorted(targets.failure, np.arange(targets.failures))
    summed: NDArray[np.float64] = np.add.reduceat(per_step[first], starts, axis=1)
    return summed


def _each_batch(batch: tuple[Tensor, ...], function: Any) -> None:
    for start in range(0, len(batch[0]), _BATCH):
        part = tuple(values[start : start + _BATCH] for values in batch)
        function(batch=part, num_samples=len(part[0]))


def _log_sum(log_probs: Tensor, chosen: Tensor) -> Tensor:
    """Return log of the summed probability of the chosen actions; 0 where all or none are."""
    none = ~chosen.any()
    return torch.logsumexp(torch.where(chosen | none, log_probs, torch.full_like(log_probs, -1e9)), dim=0)


def _window_batch(window: Window, policy: ActorCriticPolicy) -> tuple[Tensor, ...]:
    """Return observation, plus, minus and weight of log pi(a|s) for each transition."""
    row = window.rows.row
    observations = torch.as_tensor(window.rows.observations[row]).float()
    actions = torch.as_tensor(window.rows.actions[row])
    count = int(policy.action_net.out_features)  # type: ignore[arg-type]
    plus = torch.arange(count)[None, :] == actions[:, None]
    return observations, plus, torch.zeros_like(plus), torch.ones(len(row))


def _target_batch(targets: TargetSteps, policy: ActorCriticPolicy) -> tuple[Tensor, ...]:
    """Return observation, plus, minus and weight of each step of each failure's target."""
    labelled = np.array([kind == "labels" for kind in targets.kinds])[targets.failure]
    count = int(policy.action_net.out_features)  # type: ignore[arg-type]
    taken = np.arange(count)[None, :] == targets.actions[:, None]
    plus = np.where(labelled[:, None], targets.labels > 0, taken)
    minus = np.where(labelled[:, None], targets.labels < 0, ~taken)
    weight = targets.step_weights()
    observations = torch.as_tensor(targets.observations).float()
    return observations, torch.as_tensor(plus), torch.as_tensor(minus), torch.as_tensor(weight).float()
