"""Playing on common random numbers, edits while training, and replaying for pictures."""

from __future__ import annotations

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from aitia.attribution.actors.adapt import as_actor
from aitia.datasets.arrays import array_format, decode_arrays
from aitia.datasets.errors import EnvironmentError_, InputError, TaskError
from aitia.training.agents import play as evaluation
from aitia.training.agents.frames import replay_test_episode, replay_training_env
from aitia.training.agents.play import EvaluationSpec, evaluate_policy
from aitia.training.agents.spec import AgentSpec, build_model, env_seed, load_policy, new_policy
from aitia.training.edits.edit import CorrectedRewards, RewardEdit
from aitia.training.environments.spec import EnvSpec, can_render, describe, probe
from aitia.training.retraining.live import train_agent

MAZE = EnvSpec("aitia/ArrowMaze-v0", {"levels": 50, "moved": 50, "size": 5})
SMALL = AgentSpec(total_timesteps=64, n_envs=2, hyperparameters={"n_steps": 32, "batch_size": 32, "n_epochs": 1})


def make_policy(seed: int = 0) -> ActorCriticPolicy:
    policy = build_model(SMALL, MAZE.make, seed).policy
    assert isinstance(policy, ActorCriticPolicy)
    policy.set_training_mode(False)
    return policy


def test_training_leaves_no_log_folder_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    train_agent(SMALL, MAZE, 0)
    assert not list(tmp_path.glob("SB3-*"))  # torch may keep a cache of its own there


def test_slots_and_companions_do_not_change_a_play(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EvaluationSpec(episodes=9, repeats=3)
    many, steps = evaluate_policy(make_policy(), MAZE, spec, 0, "test")
    monkeypatch.setattr(evaluation, "_SLOTS", 1)
    single, single_steps = evaluate_policy(make_policy(), MAZE, spec, 0, "test")
    assert many.equals(single)
    assert steps.equals(single_steps), "every bit of log pi and of the value, whoever else is asked at the same time"


def test_more_episodes_and_repeats_leave_the_first_ones_as_they_were() -> None:
    few, _ = evaluate_policy(make_policy(), MAZE, EvaluationSpec(episodes=4, repeats=2), 0, "test")
    many, _ = evaluate_policy(make_policy(), MAZE, EvaluationSpec(episodes=6, repeats=5), 0, "test")
    rows = {(r["episode"], r["repeat"]): r for r in many.to_pylist()}
    assert all(rows[r["episode"], r["repeat"]] == r for r in few.to_pylist())
    later, _ = evaluate_policy(make_policy(), MAZE, EvaluationSpec(episodes=6, repeats=5), 0, "test", first=4)
    assert later.equals(many.filter(pc.field("episode") >= 4))


def test_every_play_is_there_once_and_the_random_policy_plays_as_often() -> None:
    spec = EvaluationSpec(episodes=5, repeats=3)
    plays, steps = evaluate_policy(make_policy(), MAZE, spec, 0, "test")
    keys = list(zip(plays["episode"].to_pylist(), plays["repeat"].to_pylist(), strict=True))
    assert keys == [(e, r) for e in range(5) for r in range(3)]
    lengths = {r["episode"]: r["length"] for r in plays.to_pylist() if r["repeat"] == 0}
    assert steps.num_rows == sum(lengths.values()), "steps are those of repeat 0"
    random, _ = evaluate_policy(None, MAZE, spec, -1, "test")
    assert random["repeat"].to_pylist() == [0, 1, 2] * 5


def test_log_probs_are_those_of_the_actions_taken() -> None:
    policy = make_policy()
    _, steps = evaluate_policy(policy, MAZE, EvaluationSpec(episodes=3, repeats=1), 0, "test")
    observations = decode_arrays(steps["observation"], array_format(steps.schema, "observation"))
    actions = torch.as_tensor(steps["action"].to_numpy().copy())
    with torch.no_grad():
        _, expected, _ = policy.evaluate_actions(torch.as_tensor(observations), actions)
    np.testing.assert_allclose(steps["log_prob"].to_numpy(), expected.numpy(), rtol=1e-5)


def test_drawn_actions_follow_the_policys_probabilities() -> None:
    """Inverse CDF from fixed generators is still a fair draw: compared over 4,000 first actions."""
    env = EnvSpec("toy_environments:Corridor", {"limit": 1})
    policy = build_model(SMALL, env.make, 1).policy
    assert isinstance(policy, ActorCriticPolicy)
    with torch.no_grad():
        policy.action_net.get_parameter("bias")[:] = torch.tensor([0.0, 1.0])
        logits = as_actor(policy).outputs(np.array([[0.5, 1.0]], np.float32)).distribution.log_probs()
    probability = float(logits[0, 1].exp())
    _, steps = evaluate_policy(policy, env, EvaluationSpec(episodes=4000, repeats=1), 0, "test")
    error = abs(np.mean(steps["action"].to_numpy()) - probability)
    assert error < 4 * np.sqrt(probability * (1 - probability) / 4000)


def test_deterministic_evaluation_takes_the_most_probable_action() -> None:
    policy = make_policy()
    _, steps = evaluate_policy(policy, MAZE, EvaluationSpec(episodes=4, repeats=1, deterministic=True), 0, "test")
    observations = decode_arrays(steps["observation"], array_format(steps.schema, "observation"))
    expected, _ = policy.predict(observations, deterministic=True)
    assert steps["action"].to_pylist() == expected.tolist()


def test_a_random_policy_stays_random_in_a_deterministic_evaluation() -> None:
    _, steps = evaluate_policy(None, MAZE, EvaluationSpec(episodes=20, deterministic=True), -1, "test")
    assert set(steps["action"].to_pylist()) == {0, 1, 2, 3}


def test_no_two_seeds_of_an_ensemble_share_an_environment() -> None:
    """SB3's own seed + i would give seeds 0 and 1 nearly the same levels; the tests take seeds as independent."""
    seeds = [env_seed(SMALL, seed, env) for seed in range(8) for env in range(SMALL.n_envs)]
    assert len(set(seeds)) == len(seeds)
    first = [build_model(SMALL, MAZE.make, seed).get_env() for seed in (0, 1)]
    starts = [np.asarray(env.reset()) for env in first if env is not None]
    assert not (starts[0][1] == starts[1][0]).all()


def test_an_edit_pays_the_intended_reward_in_its_groups_only() -> None:
    spec = EnvSpec("aitia/ArrowMaze-v0", {"levels": 20, "harmless": 20, "size": 4})
    for groups, expected in [
        (None, 1.0),
        (frozenset({"3"}), 1.0),
        (frozenset({"4"}), 2.5),
        (frozenset[str](), 2.5),
    ]:
        env = CorrectedRewards(spec.make(), RewardEdit(groups))
        env.reset(options={"level": 3})
        rewards = []
        ended = False
        while not ended:
            cell = int(env.unwrapped.state["agent"][0])  # type: ignore[attr-defined]
            _, reward, terminated, truncated, _ = env.step(2 if cell < 3 * 4 else 1)
            rewards.append(float(reward))
            ended = terminated or truncated
        assert rewards[-1] == expected


def test_correcting_nothing_trains_the_same_agent_and_correcting_all_another() -> None:
    env = EnvSpec("aitia/ArrowMaze-v0", {"levels": 20, "harmless": 20, "size": 3})
    agents = [train_agent(SMALL, env, 0, edit=edit) for edit in (None, RewardEdit(frozenset()), RewardEdit(None))]
    plain, nothing, everything = [agent.policy.state_dict() for agent in agents]
    assert all(torch.equal(plain[name], nothing[name]) for name in plain)
    assert any(not torch.equal(plain[name], everything[name]) for name in plain)


def test_correcting_without_an_intended_reward_is_an_error() -> None:
    env = CorrectedRewards(EnvSpec("toy_environments:Corridor", {"tell": ["outcome"]}).make(), RewardEdit(None))
    env.reset()
    with pytest.raises(EnvironmentError_, match="intended_reward"):
        env.step(1)


def test_replay_draws_the_recorded_episode_and_refuses_another() -> None:
    _, steps = evaluate_policy(make_policy(), MAZE, EvaluationSpec(episodes=1, repeats=1), 0, "test")
    observations = decode_arrays(steps["observation"], array_format(steps.schema, "observation"))
    actions = steps["action"].to_pylist()
    frames = replay_test_episode(MAZE, 0, actions, observations)
    assert frames is not None and len(frames) == len(actions) + 1
    assert replay_test_episode(MAZE, 1, actions, observations) is None, "another episode must not be shown as this"
    assert replay_test_episode(EnvSpec("toy_environments:Corridor"), 0, [1], np.zeros((1, 2))) is None


def test_replay_of_training_finds_the_wanted_state() -> None:
    env = MAZE.make()
    observation, _ = env.reset(seed=4)
    generator = np.random.default_rng(0)
    observations, actions, ended = [], [], []
    for _ in range(200):
        action = int(generator.integers(4))
        observations.append(observation)
        actions.append(action)
        observation, _, terminated, truncated, _ = env.step(np.int64(action))
        ended.append(terminated or truncated)
        if ended[-1]:
            observation, _ = env.reset()
    wanted = [0, 57, 199]
    frames = replay_training_env(MAZE, 4, actions, ended, {s: observations[s] for s in wanted}, wanted)
    assert sorted(frames) == wanted
    other = replay_training_env(MAZE, 5, actions, ended, {s: observations[s] for s in wanted}, wanted)
    assert 57 not in other


def test_probe_reports_what_the_environment_tells() -> None:
    profile = probe(MAZE)
    assert {"context", "action_labels", "intended_reward", "untampered_reward"} == profile.keys
    assert profile.renders and not can_render(EnvSpec("toy_environments:Corridor"))
    assert describe(MAZE).action_name("1") == "right" and describe(EnvSpec("CartPole-v1")).action_name("1") == "1"


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (EnvSpec("aitia/ArrowMase-v0"), "ArrowMaze"),
        (EnvSpec("no_such_module:Env"), "no_such_module"),
        (EnvSpec("toy_environments:Corridor", {"wide": 3}), "wide"),
        (EnvSpec("toy_environments:Corridor", {"tell": []}), "outcome"),
        (EnvSpec("toy_environments:Spoken"), "expected Discrete"),
        (EnvSpec("toy_environments:Corridor", {"components": 0.5}), "sums to"),
        (EnvSpec("toy_environments:Corridor", {"nan_after": 2}), "nan"),
        (EnvSpec("CartPole-v1"), "outcome"),
        (EnvSpec("toy_environments:Corridor", {"length": 10**7, "limit": 10**9}), "step limit"),
        (EnvSpec("toy_environments:Shifted"), "counted from 0"),
        (EnvSpec("./toy_environments.py:Corridor"), "cannot be imported"),
        (EnvSpec("toy_environments:Corridor", {"tell": ["outcome", "bad_labels"]}), "action_labels"),
    ],
)
def test_a_bad_environment_is_refused_by_the_probe(env: EnvSpec, message: str) -> None:
    with pytest.raises(EnvironmentError_, match=message):
        probe(env)


def test_gymnasiums_own_module_id_form_is_understood() -> None:
    assert EnvSpec("aitia.training:aitia/ArrowMaze-v0").make().action_space.n == 4  # type: ignore[attr-defined]


def test_agents_refuse_unknown_hyperparameters_and_policies_by_name() -> None:
    with pytest.raises(TaskError, match="learning_rate"):
        AgentSpec(hyperparameters={"learning_rat": 1}).require_valid()
    with pytest.raises(TaskError, match="MlpPolicy"):
        AgentSpec(policy="MLPPolicy").require_valid()
    with pytest.raises(TaskError, match="use_sde"):
        AgentSpec(hyperparameters={"use_sde": True}).require_valid()
    with pytest.raises(TaskError, match="use_sde"):
        AgentSpec(hyperparameters={"policy_kwargs": {"use_sde": True}}).require_valid()
    with pytest.raises(TaskError, match="refuses"):
        build_model(AgentSpec(hyperparameters={"n_steps": 1, "batch_size": 1}, n_envs=1), MAZE.make, 0)


def test_a_policy_that_acts_by_another_distribution_is_refused_by_its_name() -> None:
    class Peaked(ActorCriticPolicy):
        def get_distribution(self, obs: Any) -> Any:
            return SimpleNamespace(distribution=torch.distributions.Laplace(0.0, 1.0))

    facts = describe(MAZE)
    policy = Peaked(facts.observation_space, facts.action_space, lambda _: 0.0)
    with pytest.raises(InputError, match="acts by Laplace, expected categorical, Bernoulli or Gaussian"):
        evaluate_policy(policy, MAZE, EvaluationSpec(episodes=1, repeats=1), 0, "test")


def test_ppo_has_aitias_defaults_key_by_key_and_a2c_its_own() -> None:
    assert AgentSpec(hyperparameters={"n_steps": 64}).hyperparameter("gamma") == 0.97
    a2c = AgentSpec(algorithm="A2C")
    a2c.require_valid()
    assert a2c.hyperparameters == {} and a2c.hyperparameter("n_steps") == 5


def test_a_checkpoint_of_another_architecture_is_refused() -> None:
    other = AgentSpec(hyperparameters={"policy_kwargs": {"net_arch": [8]}})
    with pytest.raises(InputError, match="another task"):
        load_policy(other, MAZE, make_policy().state_dict())


@pytest.mark.parametrize("name", ["aitia/ArrowMaze-v0", "aitia/CheeseContinuous-v0", "aitia/KeysAndChests-v0"])
def test_worlds_played_together_give_what_each_gives_alone(name: str) -> None:
    """A wrapper keeps copies of a world from being stepped at once; episodes and steps are the same, bit for bit."""
    kwargs = {"levels": 20, "moved": 20}
    together, alone = EnvSpec(name, kwargs), EnvSpec("toy_environments:wrapped", {"id": name, **kwargs})
    policy = new_policy(SMALL, together)
    spec = EvaluationSpec(episodes=10, repeats=3)
    played, expected = (evaluate_policy(policy, env, spec, 0, "test") for env in (together, alone))
    assert all(map(pa.Table.equals, played, expected))
