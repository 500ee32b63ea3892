"""Other people's TRAK on the same samples: traker and dattri, each with its best settings on one core."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

Samples = tuple[Tensor, Tensor]


class Actor(nn.Module):
    """The actor alone, as libraries of supervised learning want it: prepared observations to logits."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.features, self.body, self.head = (
            policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net,
        )  # fmt: skip

    def forward(self, observations: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(self.features(observations)))
        return out


def parameter_count(actor: nn.Module) -> int:
    """Number of parameters between observation and logits."""
    return sum(parameter.numel() for parameter in actor.parameters())


def _log_prob(logits: Tensor, action: Tensor) -> Tensor:
    return (torch.log_softmax(logits, 1)[0] * (torch.arange(logits.shape[1]) == action)).sum()


def traker(actor: Actor, window: Samples, targets: Samples, dimensions: int, lam: float, batch: int) -> NDArray[Any]:
    """Score a window with traker: float32, one projection block kept in memory, lambda as METHOD means it."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput
    from trak.projectors import BasicProjector, ProjectionType

    class LogProb(AbstractModelOutput):  # type: ignore[misc]
        def __init__(self) -> None: ...

        @staticmethod
        def get_output(model: nn.Module, weights: Any, buffers: Any, observation: Tensor, action: Tensor) -> Tensor:
            return _log_prob(torch.func.functional_call(model, (weights, buffers), (observation[None],)), action)

        @staticmethod
        def get_out_to_loss_grad(model: nn.Module, weights: Any, buffers: Any, batch: tuple[Tensor, ...]) -> Tensor:
            return torch.ones(len(batch[0]), 1)

    rows, parameters = len(window[1]), parameter_count(actor)
    projector = BasicProjector(
        parameters, dimensions, 0, ProjectionType.rademacher, "cpu", block_size=dimensions
    )  # fmt: skip
    projector.free_memory = lambda: None
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scorer = TRAKer(
            actor, LogProb(), train_set_size=rows, save_dir=folder, device="cpu", projector=projector,
            proj_dim=dimensions, use_half_precision=False, logging_level=50,
            lambda_reg=lam * rows * dimensions / parameters,
        )  # fmt: skip
        scorer.load_checkpoint(actor.state_dict(), model_id=0)
        for start in range(0, rows, batch):
            part = tuple(values[start : start + batch] for values in window)
            scorer.featurize(batch=part, num_samples=len(part[0]))
        scorer.finalize_features()
        scorer.start_scoring_checkpoint("t", actor.state_dict(), model_id=0, num_targets=len(targets[1]))
        for start in range(0, len(targets[1]), batch):
            part = tuple(values[start : start + batch] for values in targets)
            scorer.score(batch=part, num_samples=len(part[0]))
        return np.array(scorer.finalize_scores("t"))


def dattri(actor: Actor, window: Samples, targets: Samples, dimensions: int, lam: float) -> NDArray[Any]:
    """Score a window with dattri's TRAK; one batch, for it draws its projection again for every batch."""
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask
    from torch.utils.data import DataLoader, TensorDataset

    def log_prob(parameters: Any, sample: Samples) -> Tensor:
        observation, action = sample
        return _log_prob(torch.func.functional_call(actor, parameters, (observation[None],)), action)

    def nothing(parameters: Any, sample: Samples) -> Tensor:
        return torch.zeros(1)  # its factor 1 - p is one

    task = AttributionTask(loss_func=log_prob, model=actor, checkpoints=actor.state_dict())
    rows, parameters = len(window[1]), parameter_count(actor)
    attributor = TRAKAttributor(
        task, nothing, {"proj_dim": dimensions, "proj_max_batch_size": 32, "device": "cpu"}, device="cpu",
        regularization=lam * rows * dimensions / parameters,
    )  # fmt: skip
    with torch.no_grad():
        attributor.cache(DataLoader(TensorDataset(*window), batch_size=rows))
        scores: Tensor = attributor.attribute(DataLoader(TensorDataset(*targets), batch_size=len(targets[1])))
    return scores.numpy()
