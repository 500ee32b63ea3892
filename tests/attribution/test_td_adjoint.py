"""The adjoint of n-step TD: against SB3's own targets, autograd, and real updates with one reward changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from small_policies import flat_gradient_of, make_policy
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor
from toy_environments import Corridor, Kinds

from aitia.attribution.actors.q_networks import q_networks
from aitia.attribution.adjoints.draws import Draws, read_record
from aitia.attribution.adjoints.td import _sample, target_matrix, td_errors, td_influence, window_influence
from aitia.attribution.gradients.kernel import DEFAULT_LAMBDA
from aitia.attribution.targets.margins import CriticMargins, critic_margins, margin_targets
from aitia.attribution.targets.steps import Targets
from aitia.datasets.errors import InputError, RunFolderError
from aitia.datasets.files.store import RunFolder, read_tensors
from aitia.training.recording.off_policy import OffPolicyRecorder, RecordingNStepReplayBuffer
from aitia.training.recording.recorder import Recorder

GAMMA, RATE, CHANGE, ENVS, STEPS, BATCH = 0.5, 1e-6, 2.0**-7, 2, 12, 16


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 5), steps=st.integers(1, 14), seed=st.integers(0, 10_000), ending=st.sampled_from([0.0, 0.2, 0.6])
)
def test_target_matrix_gives_the_returns_of_sb3s_own_buffer(n: int, steps: int, seed: int, ending: float) -> None:
    """Random episodes, terminations and truncations, in a buffer of 8 steps that may have overflowed."""
    generator = np.random.default_rng(seed)
    space, actions = spaces.Box(-1.0, 1.0, (1,)), spaces.Discrete(2)
    buffer = RecordingNStepReplayBuffer(8 * ENVS, space, actions, "cpu", n_envs=ENVS, n_steps=n, gamma=0.9)
    reward = generator.normal(size=(ENVS, steps))
    for t in range(steps):
        done, cut = generator.random((2, ENVS)) < ending
        infos: list[dict[str, Any]] = [{"TimeLimit.truncated": bool(c and d)} for c, d in zip(cut, done, strict=True)]
        nothing = np.zeros((ENVS, 1), np.float32)
        buffer.add(nothing, nothing, np.zeros(ENVS, np.int64), reward[:, t], done, infos)
    samples = buffer.sample(32)
    assert samples.discounts is not None
    t, env, count = np.concatenate(buffer.drawn).T
    matrix = target_matrix(env * steps + t, count, 0.9, reward.size)
    np.testing.assert_allclose(matrix @ reward.reshape(-1), samples.rewards[:, 0], atol=1e-6)
    np.testing.assert_allclose(0.9**count, samples.discounts[:, 0], rtol=1e-6, err_msg="bootstrapped at another step")


def test_its_transpose_is_the_derivative_by_each_reward() -> None:
    generator = np.random.default_rng(0)
    row, count = generator.integers(0, 40, 60), generator.integers(1, 6, 60)
    scores = generator.normal(size=60)
    reward = torch.zeros(45, dtype=torch.float64, requires_grad=True)
    targets = [sum(0.9**m * reward[t + m] for m in range(c)) for t, c in zip(row.tolist(), count.tolist(), strict=True)]
    total: Any = sum(s * y for s, y in zip(scores.tolist(), targets, strict=True))
    (expected,) = torch.autograd.grad(total, reward)
    np.testing.assert_allclose(target_matrix(row, count, 0.9, 45).T @ scores, expected, atol=1e-12)


class Double(FlattenExtractor):
    """Observations in float64, so that a real training runs in float64."""

    def forward(self, observations: Tensor) -> Tensor:
        return super().forward(observations).double()


class Changed(gym.Wrapper[Any, Any, Any, Any]):
    """Pays `change` more at one step, counted from the first."""

    def __init__(self, env: gym.Env[Any, Any], at: int | None, change: float) -> None:
        super().__init__(env)
        self.at, self.change, self.steps = at, change, 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.steps += 1
        return observation, float(reward) + self.change * (self.steps - 1 == self.at), terminated, truncated, info


def one_update(
    algorithm: str,
    n: int = 3,
    at: tuple[int, int] | None = None,
    change: float = 0.0,
    out: Any = None,
    updates: int = 1,
    window: int = 2048,
) -> Any:
    """Train in float64 by one plain gradient step (or more), with the reward of one (environment, step) changed."""

    def make(index: int) -> Callable[[], gym.Env[Any, Any]]:
        env = Corridor(step_reward=0.125, limit=4) if algorithm == "DQN" else Kinds(act="box")
        return lambda: Changed(env, at[1] if at is not None and at[0] == index else None, change)

    model: OffPolicyAlgorithm = {"DQN": DQN, "SAC": SAC}[algorithm](
        "MlpPolicy", DummyVecEnv([make(i) for i in range(ENVS)]), seed=1, device="cpu", learning_rate=RATE, gamma=GAMMA,
        buffer_size=100, learning_starts=ENVS * STEPS - 1, batch_size=BATCH, train_freq=STEPS, gradient_steps=1,
        n_steps=n,
        policy_kwargs={
            "net_arch": [6, 5], "optimizer_class": torch.optim.SGD, "features_extractor_class": Double,
            "activation_fn": torch.nn.Tanh,
        },
        **({"ent_coef": 0.1} if algorithm == "SAC" else {}),
    )  # fmt: skip
    model.policy.double()
    model.learn(updates * ENVS * STEPS, callback=None if out is None else OffPolicyRecorder(out, 0, window))
    assert model._n_updates == updates
    return model


def targets_of(algorithm: str) -> Targets:
    states = np.array([[0.2, 1.0], [0.75, 1.0]], np.float32)
    if algorithm == "DQN":
        return margin_targets(states, [0, 1], [1, 0], 2)
    return critic_margins(states, np.array([[0.5, -0.5], [1.0, 0.0]]), np.array([[-0.5, 0.5], [-1.0, 0.2]]))


def margin(model: Any, algorithm: str) -> float:
    """The target by SB3's own networks: the mean of Q(s, misbehaving) - Q(s, desired)."""
    with torch.no_grad():
        if algorithm == "DQN":
            values = model.q_net(torch.tensor([[0.2, 1.0], [0.75, 1.0]]))
            return float((values[0, 0] - values[0, 1] + values[1, 1] - values[1, 0]) / 2)
        states = torch.tensor([[0.2, 1.0], [0.75, 1.0]])
        first, second = torch.tensor([[[0.5, -0.5], [1.0, 0.0]], [[-0.5, 0.5], [-1.0, 0.2]]])
        pairs = zip(model.critic(states, first), model.critic(states, second), strict=True)
        return float(torch.stack([one.mean() - other.mean() for one, other in pairs]).mean())


@pytest.fixture(scope="module", params=["DQN", "SAC"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, RunFolder, Any]:
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    return request.param, folder, one_update(request.param, out=folder)


def test_one_update_with_one_reward_changed_moves_the_target_as_predicted(trained: tuple[str, RunFolder, Any]) -> None:
    """Two whole trainings a reward, paid more and less in the environment, by SB3's own `train` in float64."""
    algorithm, folder, model = trained
    transitions, tau = td_influence(model.policy, folder, 0, targets_of(algorithm), lam=None)
    order = np.argsort(-np.abs(tau[:, 0]))
    assert tau[order[0], 0] != 0.0 and tau[order[-1], 0] == 0.0
    for row in [*order[:3], order[len(order) // 2], order[-1]]:
        where = transitions["env"][row].as_py(), transitions["step"][row].as_py()
        up, down = (margin(one_update(algorithm, 3, where, sign * CHANGE), algorithm) for sign in (1, -1))
        measured = (up - down) / (2 * CHANGE * RATE)
        assert measured == pytest.approx(tau[row, 0], rel=1e-4, abs=1e-6 * abs(tau).max()), where


def test_rows_in_the_flat_part_of_the_huber_loss_have_no_influence(tmp_path: Path) -> None:
    """The goal pays more than 1 above Q: SB3's gradient is clipped there, whatever it pays."""
    model = one_update("DQN", n=1, out=tmp_path)
    transitions, tau = td_influence(model.policy, RunFolder(tmp_path), 0, targets_of("DQN"), lam=None)
    draws = read_record(RunFolder(tmp_path), 0).draws(0)
    drawn = np.isin(np.arange(len(tau)), draws.row)
    goal = drawn & (transitions["reward"].to_numpy() > 1.0)
    assert goal.any() and (tau[goal] == 0.0).all() and (tau[drawn & ~goal] != 0.0).all()
    row = int(np.flatnonzero(goal)[0])
    where = transitions["env"][row].as_py(), transitions["step"][row].as_py()
    up, down = (margin(one_update("DQN", 1, where, sign * CHANGE), "DQN") for sign in (1, -1))
    assert up == down


def test_preconditioned_influence_is_the_primal_definition(trained: tuple[str, RunFolder, Any]) -> None:
    """One gradient a draw, the Gauss-Newton matrix formed and inverted, the adjoint as a double loop."""
    algorithm, folder, model = trained
    found = td_influence(model.policy, folder, 0, targets_of(algorithm)).tau[:, 0]
    model.policy.load_state_dict(read_tensors(folder.checkpoint_path(0, 0)))
    record = read_record(folder, 0)
    draws = record.draws(0)
    expected = np.zeros(len(found))
    flat = (
        np.abs(td_errors(model.policy, record, draws)) >= 1.0 if algorithm == "DQN" else np.zeros(len(draws.row), bool)
    )
    networks = [model.policy] if algorithm == "DQN" else list(model.critic.q_networks)
    for number, network in enumerate(networks):
        target = gradient(network, margin_tensor(model, algorithm, number))
        per_draw = [
            gradient(network, value(model, algorithm, number, record.observations[row], record.actions[row]))
            for row in draws.row
        ]
        weights = torch.tensor(draws.times * ~flat, dtype=torch.float64)
        phi = torch.stack(per_draw)
        curvature = phi.T @ (weights[:, None] * phi) / float(draws.times.sum())
        direction = torch.linalg.solve(curvature + DEFAULT_LAMBDA * torch.eye(len(curvature)), target)
        scores = (weights * (phi @ direction)).numpy() / draws.times.sum() / len(networks)
        for row, count, score in zip(draws.row, draws.count, scores, strict=True):
            for m in range(count):
                expected[row + m] += GAMMA**m * score
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9 * np.abs(expected).max())


def gradient(network: Any, of: Tensor) -> Tensor:
    return flat_gradient_of(network, of).double()


def value(model: Any, algorithm: str, number: int, observation: Any, action: Any) -> Tensor:
    state = torch.tensor(observation)[None]
    if algorithm == "DQN":
        found: Tensor = model.q_net(state)[0, int(action)]
        return found
    critic: Tensor = model.critic(state, torch.tensor(action)[None])[number].sum()
    return critic


def margin_tensor(model: Any, algorithm: str, number: int) -> Tensor:
    targets = targets_of(algorithm)
    if isinstance(targets, CriticMargins):
        parts = [(targets.observations["observation"][i], targets.actions[i], s) for i, s in enumerate((1, 1, -1, -1))]
    else:
        parts = [
            (o, a, s) for o, bad in zip(targets.observations, (0, 1), strict=True) for a, s in ((bad, 1), (1 - bad, -1))
        ]
    return torch.stack([s * value(model, algorithm, number, o, a) for o, a, s in parts]).sum() / 2


def test_temporal_difference_errors_are_sb3s(tmp_path: Path) -> None:
    """Against SB3's formula on its own buffer: terminations, time limits, n-step bootstrapping."""
    model = one_update("DQN", n=3, out=tmp_path)
    model.policy.load_state_dict(read_tensors(RunFolder(tmp_path).checkpoint_path(0, 0)))
    with torch.no_grad():
        model.q_net_target.q_net[-1].bias.add_(torch.tensor([0.3, -0.2]))
    buffer, record = model.replay_buffer, read_record(RunFolder(tmp_path), 0)
    buffer.drawn = []
    samples = buffer.sample(200)
    with torch.no_grad():
        following = model.q_net_target(samples.next_observations).max(1)[0][:, None]
        target = samples.rewards + (1 - samples.dones) * samples.discounts * following
        expected = (model.q_net(samples.observations).gather(1, samples.actions) - target)[:, 0]
    assert 0 < samples.dones.mean() < 1
    step, env, count = buffer.drawn[0].T
    draws = Draws(env * STEPS + step, count, np.ones(200, np.int64))
    np.testing.assert_allclose(td_errors(model.policy, record, draws), expected, atol=1e-6)


def test_next_observations_cross_windows_and_end_at_time_limits(tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: Corridor(limit=3, length=6)] * ENVS)
    model = DQN("MlpPolicy", env, device="cpu", buffer_size=200, train_freq=1)
    model.learn(ENVS * 23, callback=OffPolicyRecorder(tmp_path, 0, window=10))
    record, buffer = read_record(RunFolder(tmp_path), 0), model.replay_buffer
    assert record.windows == 5 and buffer is not None
    rows = np.flatnonzero(~record.ended)
    expected = buffer.next_observations[:23].swapaxes(0, 1).reshape(ENVS * 23, -1)
    np.testing.assert_array_equal(record.next_observations(rows), expected[rows])
    assert buffer.timeouts[:23].sum() > 5


def test_windows_add_up_by_their_draws(tmp_path: Path) -> None:
    """Parameters that hardly move: four windows of one update say what one window of four does."""
    many, whole = (
        td_influence(
            one_update("DQN", out=out, updates=4, window=size).policy, RunFolder(out), 0, targets_of("DQN"), None
        )
        for out, size in ((tmp_path / "many", ENVS * STEPS), (tmp_path / "whole", 4 * ENVS * STEPS))
    )
    assert many.transitions["window"].to_numpy().max() == 3 and whole.transitions["window"].to_numpy().max() == 0
    np.testing.assert_allclose(many.tau, 4 * whole.tau, rtol=1e-3, atol=1e-4 * np.abs(many.tau).max())


def test_a_sample_of_the_draws_is_unbiased(trained: tuple[str, RunFolder, Any]) -> None:
    algorithm, folder, model = trained
    record, targets, policy = read_record(folder, 0), targets_of(algorithm), model.policy
    policy.load_state_dict(read_tensors(folder.checkpoint_path(0, 0)))
    draws = record.draws(0)
    whole = window_influence(policy, record, draws, targets, None, "w")
    samples = [_sample(policy, record, draws, 5, np.random.default_rng(seed)) for seed in range(100)]
    assert {int(sample.times.sum()) for sample in samples} == {5}
    found = np.stack([window_influence(policy, record, sample, targets, None, "w") for sample in samples])
    error = np.abs(found.mean(0) - whole)
    assert (error <= 4.5 * found.std(0) / np.sqrt(100) + 1e-12).all()
    assert _sample(policy, record, draws, len(draws.row), np.random.default_rng(0)) is draws


def test_what_has_no_influence_is_refused_with_the_reason(trained: tuple[str, RunFolder, Any], tmp_path: Path) -> None:
    algorithm, folder, model = trained
    targets = targets_of(algorithm)
    with pytest.raises(InputError, match="no V of its own"):
        td_influence(model.policy, folder, 0, replace(targets, kinds=("value",)))
    with pytest.raises(InputError, match="expected that of DQN or SAC"):
        q_networks(make_policy())
    with pytest.raises(RunFolderError, match="expected"):
        td_influence(model.policy, folder, 3, targets)
    env = DummyVecEnv([Corridor])
    PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu").learn(8, callback=Recorder(tmp_path))
    with pytest.raises(RunFolderError, match="OffPolicyRecorder"):
        td_influence(model.policy, RunFolder(tmp_path), 0, targets)


def shared_sac() -> SAC:
    env = DummyVecEnv([lambda: Kinds("image", "box")])
    kwargs: dict[str, Any] = {
        "share_features_extractor": True, "features_extractor_kwargs": {"features_dim": 4}, "net_arch": [4],
    }  # fmt: skip
    return SAC("CnnPolicy", env, device="cpu", buffer_size=10, policy_kwargs=kwargs)


def test_critics_that_do_not_train_their_features_are_refused() -> None:
    with pytest.raises(InputError, match="share_features_extractor"):
        q_networks(shared_sac().policy)
    dictionary = SAC("MultiInputPolicy", DummyVecEnv([lambda: Kinds("dict", "box")]), device="cpu", buffer_size=10)
    with pytest.raises(InputError, match="Flatten"):
        q_networks(dictionary.policy)
