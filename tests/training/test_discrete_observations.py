"""Categories and bits are stacked, one-hot as Stable-Baselines3 has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from aitia.datasets.errors import EnvironmentError_
from aitia.training.agents.spec import AgentSpec, new_policy
from aitia.training.edits.edit import RewardEdit
from aitia.training.environments.spaces import ObservationForm, as_tensors, policy_observation_space
from aitia.training.environments.spec import EnvSpec, describe, probe
from aitia.training.retraining.arrays import Member
from aitia.training.retraining.ppo import STACK, StackedPolicy
from aitia.training.retraining.stack import initial_policy, members_at_once, train_stack

CELLS = [EnvSpec("discrete_environments:Cells", {"observe": kind}) for kind in ("cell", "cells", "bits")]
TOY_TEXT = [EnvSpec(f"gymnasium:{name}", {}) for name in ("FrozenLake-v1", "CliffWalking-v1", "Taxi-v4")]
AGENT = AgentSpec(total_timesteps=256, n_envs=4, hyperparameters={"n_steps": 32, "batch_size": 32})


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(3, start=1), spaces.Discrete(3, start=-1), spaces.MultiDiscrete([3, 5], start=[1, 0]),
        spaces.Dict({"cell": spaces.MultiDiscrete([3, 5], start=[0, 2]), "speed": spaces.Box(0, 1)}),
    ],
)  # fmt: skip
def test_categories_not_counted_from_zero_are_refused(space: spaces.Space[Any]) -> None:
    """A stack would look up other weights; Stable-Baselines3 fails at the first category beyond its number."""
    with pytest.raises(EnvironmentError_, match=r"start=.*expected categories counted from 0.*TransformObservation"):
        policy_observation_space(space, "environment `mine`")


def test_a_check_says_that_categories_are_not_counted_from_zero() -> None:
    env = EnvSpec("discrete_environments:Cells", {"observe": "from one"})
    for look in (describe, probe):
        with pytest.raises(EnvironmentError_, match=r"`discrete_environments:Cells`: its .*Multi.*from 0"):
            look(env)


@pytest.mark.parametrize("env", [*CELLS, *TOY_TEXT], ids=lambda env: f"{env.id}-{env.kwargs.get('observe', '')}")
def test_a_stack_gives_discrete_observations_the_logits_and_values_of_stable_baselines3(env: EnvSpec) -> None:
    assert members_at_once(AGENT, env) == (STACK, None)
    policies = [initial_policy(AGENT, env, seed) for seed in range(STACK)]
    stack, made = StackedPolicy(policies), env.make()
    kept = ObservationForm(made.observation_space).batch([made.observation_space.sample() for _ in range(64)])
    made.close()
    rows = torch.from_numpy(kept.astype(np.float32).reshape(len(kept), -1)).expand(STACK, -1, -1)
    with torch.no_grad():
        heads, values = stack.head(rows), stack.values(rows)
        for slot, policy in enumerate(policies):
            said: Any = policy.get_distribution(as_tensors(kept)).distribution
            log_probs = torch.log_softmax(heads[slot], -1)
            torch.testing.assert_close(log_probs, said.logits, atol=1e-6, rtol=0.0)
            torch.testing.assert_close(values[slot], policy.predict_values(as_tensors(kept))[:, 0], atol=1e-6, rtol=0.0)
    assert heads.std(dim=1).min() > 0.0, "every observation gets the same logits: the comparison is empty"


@pytest.mark.parametrize("env", CELLS, ids=["cell", "cells", "bits"])
def test_agents_of_discrete_observations_learn_and_do_not_depend_on_their_companions(env: EnvSpec) -> None:
    spec = AgentSpec(total_timesteps=2048, n_envs=4, hyperparameters={"n_steps": 64, "learning_rate": 0.01})
    members = [Member(0, None), Member(0, RewardEdit(None)), Member(1, None)]
    paid, corrected, other = train_stack(spec, env, members)
    alone = train_stack(spec, env, [Member(1, None)])[0]
    for name, value in alone.policy.state_dict().items():
        assert torch.equal(value, other.policy.state_dict()[name]), name
    assert paid.corrected == 0 < corrected.corrected
    made = env.make()
    start = as_tensors(ObservationForm(made.observation_space).batch([made.reset(seed=0)[0]]))
    made.close()
    said: list[Any] = [found.policy.get_distribution(start).distribution for found in (paid, corrected)]
    to_pit, to_goal = (categorical.probs[0] for categorical in said)
    assert to_pit[0] > 0.8 and to_goal[1] > 0.8, "the pit pays 2, the goal 1; corrected only the goal"


def test_a_multi_dimensional_observation_is_not_stacked_but_says_so() -> None:
    image = EnvSpec("toy_environments:Kinds", {"observe": "dict"})
    agent = AgentSpec(policy="MultiInputPolicy")
    at_once, reason = members_at_once(agent, image)
    assert at_once == 1 and "MultiInputPolicy" in str(reason) and new_policy(agent, image) is not None
