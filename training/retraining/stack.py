"""Training a stack of agents from scratch: the counterfactual bank by the hundred."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import set_random_seed
from torch import Tensor

from ..agents.advantages import generalised_advantages
from ..agents.spec import AgentSpec, new_policy
from ..edits.edit import Endings, RewardEdit
from ..environments.spec import EnvSpec
from .arrays import ArrayEnv, Member, make_array_env
from .live import ONE_AT_A_TIME, train_agent
from .ppo import STACK, PPOSettings, Rollout, StackedPolicy, StackedPPO, require_stackable, why_not_stackable

_DRAWS = 1  # the second word of an agent's generator's seed: actions and minibatches


class Trained(NamedTuple):
    """One agent after training.

    Attributes:
        policy: its policy.
        corrected: how many of its transitions the edit changed.
        outcomes: by outcome, the number of episodes that ended so in each window (rollout) of the training.
    """

    policy: ActorCriticPolicy
    corrected: int
    outcomes: dict[str, list[int]]


def members_at_once(agent: AgentSpec, env: EnvSpec) -> tuple[int, str | None]:
    """Return how many agents of a task are trained together, and why they are not stacked; None where they are."""
    reason = why_not_stackable(agent, new_policy(agent, env))
    return (STACK, None) if reason is None else (1, reason)


def train_members(agent: AgentSpec, env: EnvSpec, members: Sequence[Member]) -> list[Trained]:
    """Train agents with edited rewards, as a stack where the task allows it, else by Stable-Baselines3."""
    if members_at_once(agent, env)[1] is None:
        return train_stack(agent, env, members)
    trained = []
    for member in members:
        edit, initial = member.edit or RewardEdit(frozenset()), None
        if _initial_seed(member) != member.seed:
            initial = initial_policy(agent, env, _initial_seed(member))
        model = train_agent(agent, env, member.seed, edit=edit, initial=initial)
        policy, vec_env = model.policy, model.get_env()
        assert vec_env is not None
        policy.set_training_mode(False)
        endings: Endings = sum(vec_env.get_attr("endings"), Counter())
        trained.append(Trained(policy, sum(vec_env.get_attr("corrected")), _by_window(agent, endings)))
    return trained


def _by_window(agent: AgentSpec, endings: Endings) -> dict[str, list[int]]:
    """Return numbers of episodes by outcome, one a window of the training."""
    windows = -(-agent.total_timesteps // (agent.hyperparameter("n_steps") * agent.n_envs))
    names = sorted({outcome for _, outcome in endings})
    return {name: [endings[window, name] for window in range(windows)] for name in names}


def train_stack(agent: AgentSpec, env: EnvSpec, members: Sequence[Member]) -> list[Trained]:
    """Train up to `STACK` agents as one program; each as if it were alone, bit for bit.

    Initial weights and environments are those that Stable-Baselines3 has with the same seed; action draws and
    minibatches come from a generator of the agent's own.

    Args:
        agent: algorithm and hyperparameters.
        env: the training environment.
        members: seeds and edits, at most `STACK`.

    Raises:
        InputError: agents of this task cannot be trained as a stack.
    """
    assert 0 < len(members) <= STACK
    padded = [*members, *[members[0]] * (STACK - len(members))]
    policies = [initial_policy(agent, env, _initial_seed(member)) for member in padded]
    require_stackable(agent, policies[0])
    made = make_array_env(agent, env, padded)
    try:
        stack = _Stack(agent, padded, StackedPolicy(policies), made)
        stack.learn()
    finally:
        made.close()
    for slot, policy in enumerate(policies):
        policy.load_state_dict(stack.policy.state_dict(slot))
        policy.set_training_mode(False)
    return [
        Trained(policies[slot], int(stack.corrected[slot]), _by_window(agent, stack.endings[slot]))
        for slot in range(len(members))
    ]


def _initial_seed(member: Member) -> int:
    return member.seed if member.initial is None else member.initial


def initial_policy(agent: AgentSpec, env: EnvSpec, seed: int) -> ActorCriticPolicy:
    """Return the policy that Stable-Baselines3 begins with at this seed."""
    with ONE_AT_A_TIME:
        set_random_seed(seed)
        return new_policy(agent, env)


class _Stack:
    """Agents in training."""

    def __init__(self, agent: AgentSpec, members: Sequence[Member], policy: StackedPolicy, env: ArrayEnv) -> None:
        self.policy, self._env, self._envs = policy, env, agent.n_envs
        self._settings = PPOSettings.of(agent)
        self._total = agent.total_timesteps
        self._ppo = StackedPPO(policy, self._settings)
        self._generators = [np.random.default_rng([member.seed, _DRAWS]) for member in members]
        self.corrected = np.zeros(len(members), dtype=np.int64)
        self.endings: list[Endings] = [Counter() for _ in members]
        self._windows = 0

    def learn(self) -> None:
        """Collect and update until every agent has made its steps."""
        observations, done = torch.from_numpy(self._env.reset()), 0
        while done < self._total:
            observations, rollout = self._collect(observations)
            rows = rollout.values.shape[1]
            done += rows
            order = np.stack([[g.permutation(rows) for g in self._generators] for _ in range(self._settings.n_epochs)])
            self._ppo.update(rollout, torch.from_numpy(order), 1.0 - done / self._total)

    @torch.no_grad()
    def _collect(self, observations: Tensor) -> tuple[Tensor, Rollout]:
        """Return what is observed next [K, E, D], and a rollout."""
        steps, gamma = self._settings.n_steps, self._settings.gamma
        width = self._numbers
        draws = torch.from_numpy(np.stack([g.random((steps, self._envs, width)) for g in self._generators], axis=1))
        kept: list[tuple[Tensor, ...]] = []
        for draw in draws:
            head, values = self.policy.head(observations), self.policy.values(observations)
            actions = self._act(head, draw)
            log_prob, _ = self.policy.log_prob_and_entropy(head, actions)
            step = self._env.step(actions.numpy())
            self.corrected += step.corrected.sum(axis=1)
            for member, env in zip(*np.nonzero(step.terminated | step.truncated), strict=True):
                self.endings[member][self._windows, step.outcomes[member, env]] += 1
            rewards = torch.from_numpy(step.rewards)
            if step.truncated.any():
                bootstrap = self.policy.values(torch.from_numpy(step.final))
                rewards = rewards + gamma * bootstrap * torch.from_numpy(step.truncated)
            ended = torch.from_numpy(step.terminated | step.truncated)
            kept.append((observations, actions, values, log_prob, rewards, ended))
            observations = torch.from_numpy(step.observations)
        self._windows += 1
        seen, actions, values, log_probs, rewards, ended = (torch.stack(x, dim=2) for x in zip(*kept, strict=True))
        advantages = self._advantages(rewards, values, ended, self.policy.values(observations))
        whole = (seen, actions, values, log_probs, advantages, advantages + values)
        return observations, Rollout(*(x.flatten(1, 2).contiguous() for x in whole))

    @property
    def _numbers(self) -> int:
        return 1 if isinstance(self.policy.space, spaces.Discrete) else int(np.prod(self.policy.space.shape or ()))

    def _act(self, head: Tensor, draw: Tensor) -> Tensor:
        """Return actions [K, E] or [K, E, A], the inverse CDF at the draws [K, E, numbers]."""
        if isinstance(self.policy.space, spaces.Discrete):
            cumulative = torch.softmax(head.double(), dim=-1).cumsum(-1)
            below = (cumulative <= draw * cumulative[..., -1:]).sum(-1)
            return below.clamp(max=head.shape[-1] - 1)
        spread = torch.exp(self.policy.parameters["log_std"])
        drawn: Tensor = head + spread * torch.special.ndtri(draw.clamp(min=1e-12)).float()
        return drawn

    def _advantages(self, rewards: Tensor, values: Tensor, ended: Tensor, last: Tensor) -> Tensor:
        """Return GAE advantages [K, E, T]."""
        paid, value, ends = (part.permute(2, 0, 1).numpy() for part in (rewards, values, ended))
        gamma, gae_lambda = self._settings.gamma, self._settings.gae_lambda
        advantages = generalised_advantages(paid, value, ends, last.numpy(), gamma, gae_lambda)
        return torch.from_numpy(advantages).permute(1, 2, 0)
