"""Small policies and windows for tests of the attribution."""

from __future__ import annotations

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.actors.outputs import ActionDistribution, Outputs
from aitia.attribution.adjoints.gae import GaeAdvantages
from aitia.attribution.estimators.window import Window
from aitia.attribution.gradients.rows import WindowRows
from aitia.attribution.targets.steps import Targets, UserSteps

ACTIONS = 3


def said(log_probs: Tensor) -> Outputs:
    """What a policy with these log pi(.|s) [T, A] says: for tests of targets."""
    outputs = Outputs()
    outputs.__dict__["distribution"] = ActionDistribution(spaces.Discrete(log_probs.shape[1]), log_probs)
    return outputs


SHAPE = (5,)


def make_policy(seed: int = 0, hidden: tuple[int, ...] = (6, 4)) -> ActorCriticPolicy:
    torch.manual_seed(seed)
    policy = ActorCriticPolicy(
        spaces.Box(-1, 1, SHAPE), spaces.Discrete(ACTIONS), lambda _: 0.0,
        net_arch={"pi": list(hidden), "vf": [3]}, activation_fn=nn.Tanh,
    )  # fmt: skip
    with torch.no_grad():  # far from SB3's nearly uniform start, so that gradients differ
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    policy.set_training_mode(False)
    return policy


def shared_policy() -> ActorCriticPolicy:
    """A policy whose actor and critic share a layer."""
    torch.manual_seed(1)
    return ActorCriticPolicy(
        spaces.Box(-1, 1, SHAPE), spaces.Discrete(ACTIONS), lambda _: 0.0,
        features_extractor_class=_OneLayer, net_arch=[4], ortho_init=False,
    )  # fmt: skip


class _OneLayer(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Box) -> None:
        super().__init__(observation_space, 6)
        self.layer = nn.Linear(*SHAPE, 6)

    def forward(self, observations: Tensor) -> Tensor:
        return torch.tanh(self.layer(observations))


def make_rows(rows: int = 40, distinct: int = 25, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Observations [N, 5] and actions [N] of a window in which some transitions repeat."""
    generator = np.random.default_rng(seed)
    observations = generator.uniform(-1, 1, (distinct, *SHAPE)).astype(np.float32)
    actions = generator.integers(0, ACTIONS, distinct)
    chosen = np.concatenate([np.arange(distinct), generator.integers(0, distinct, rows - distinct)])
    return observations[chosen], actions[chosen]


def make_targets(failures: int = 4, seed: int = 5) -> Targets:
    """Targets of both kinds with several steps each."""
    generator = np.random.default_rng(seed)
    failure = np.repeat(np.arange(failures), generator.integers(1, 4, failures))
    steps = len(failure)
    labels = np.tile(np.array([1, -1, 0], dtype=np.int8), (steps, 1))
    kinds = tuple("labels" if i % 2 == 0 else "log-odds" for i in range(failures))
    actions = np.zeros(steps, dtype=np.int64)
    return Targets(
        tuple(f"0-{i}" for i in range(failures)), kinds, failure,
        generator.uniform(-1, 1, (steps, *SHAPE)).astype(np.float32), actions, labels, np.ones(steps, bool),
    )  # fmt: skip


def log_prob_target(rows: int, seed: int = 9) -> Targets:
    """One failure a row, whose target is log pi of the action taken: what `traker` can score as it is."""
    observations, actions = make_rows(rows, rows, seed)

    def target(log_probs: Tensor, steps: UserSteps) -> Tensor:
        return log_probs[torch.arange(len(steps.actions)), torch.as_tensor(steps.actions)].sum()

    return Targets(
        tuple(f"0-{i}" for i in range(rows)), ("user",) * rows, np.arange(rows), observations, actions,
        np.zeros((rows, ACTIONS), np.int8), np.zeros(rows, bool), target,
    )  # fmt: skip


def actor_parameters(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    """Parameters on the way to the action probabilities, in the order of the layers."""
    modules = (policy.pi_features_extractor, policy.mlp_extractor.policy_net, policy.action_net)
    return [parameter for module in modules for parameter in module.parameters()]


def flat_gradient(policy: ActorCriticPolicy, value: Tensor) -> Tensor:
    gradients = torch.autograd.grad(value, actor_parameters(policy), retain_graph=True)
    return torch.cat([gradient.reshape(-1) for gradient in gradients])


def primal_scores(
    policy: ActorCriticPolicy, observations: NDArray[np.float32], actions: NDArray[np.int64],
    targets: Targets, lam: float,
) -> NDArray[np.float64]:  # fmt: skip
    """TRAK scores by the definition: one gradient a transition, the Fisher matrix formed and inverted."""
    policy.to(torch.float64)
    log_probs = as_actor(policy).outputs(observations).distribution.log_probs()
    phi = torch.stack([flat_gradient(policy, log_probs[t, a]) for t, a in enumerate(actions)])
    values = targets.values(as_actor(policy).outputs(targets.observations))
    q = torch.stack([flat_gradient(policy, value) for value in values], dim=1)
    fisher = phi.T @ phi / len(phi)
    scores: NDArray[np.float64] = (
        phi @ torch.linalg.solve(fisher + lam * torch.eye(len(fisher), dtype=fisher.dtype), q)
    ).numpy()
    return scores


def distinct(observations: NDArray[np.float32], actions: NDArray[np.int64]) -> WindowRows:
    return WindowRows.of(observations, actions)


def gae(window: Window) -> GaeAdvantages:
    assert isinstance(window.signal, GaeAdvantages)
    return window.signal


def make_window(intended: bool = True) -> Window:
    generator = np.random.default_rng(2)
    observations, actions = make_rows(40, 30)
    reward = generator.choice([0.0, 1.0], 40)
    right = reward + generator.choice([0.0, 0.0, 1.5, -1.0], 40)
    advantages = GaeAdvantages(generator.normal(size=40), generator.random(40) < 0.2, 4, 0.97, 0.95, True, np.ones(40))
    group = generator.choice(["a", "b", "c"], 40)
    return Window(
        "w",
        0,
        0,
        distinct(observations, actions),
        advantages,
        reward,
        right if intended else None,
        group,
        actions,
    )


def flat_gradient_of(policy: ActorCriticPolicy, value: Tensor) -> Tensor:
    """Gradient by all parameters of a policy, zero where the value does not depend on one."""
    parameters = list(policy.parameters())
    found = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(parameters, found, strict=True)]
    )
