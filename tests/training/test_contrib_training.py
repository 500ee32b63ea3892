"""MaskablePPO and RecurrentPPO: recording changes nothing, and test episodes are played as sb3-contrib plays."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from stable_baselines3 import SAC
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from toy_environments import Kinds, Masked

from aitia.datasets.arrays import array_format, decode_actions, decode_arrays
from aitia.datasets.errors import EnvironmentError_, InputError, TaskError
from aitia.datasets.files.store import RunFolder, read_table, read_tensors
from aitia.training.agents import play as evaluation
from aitia.training.agents.memory import rnn_states, zero_states
from aitia.training.agents.play import EvaluationSpec, evaluate_policy
from aitia.training.agents.spec import AgentSpec, load_policy, new_policy
from aitia.training.environments.spaces import as_tensors
from aitia.training.environments.spec import EnvSpec, probe
from aitia.training.recording.buffers import Membership
from aitia.training.recording.recorder import Recorder
from aitia.training.retraining.live import train_agent, train_recorded

STEPS, ENVS, EPOCHS, BATCH, WINDOWS = 14, 2, 2, 10, 3
ROWS = STEPS * ENVS
KINDS = [
    ("MaskablePPO", "vector", "discrete"), ("MaskablePPO", "dict", "multi"), ("MaskablePPO", "vector", "binary"),
    ("RecurrentPPO", "vector", "discrete"), ("RecurrentPPO", "dict", "box"),
]  # fmt: skip


class Recorded:
    """A tiny recorded training, and what its updates were given."""

    def __init__(self, folder: Path, algorithm: str, observe: str, act: str) -> None:
        name = "Masked" if algorithm == "MaskablePPO" else "Kinds"
        self.env = EnvSpec(f"toy_environments:{name}", {"observe": observe, "act": act})
        kwargs: dict[str, Any] = {"lstm_hidden_size": 6} if algorithm == "RecurrentPPO" else {}
        kwargs |= {"features_extractor_kwargs": {"cnn_output_dim": 8}} if observe == "dict" else {}
        kind = "LstmPolicy" if algorithm == "RecurrentPPO" else "Policy"
        self.agent = AgentSpec(
            algorithm=algorithm, policy=("MultiInput" if observe == "dict" else "Mlp") + kind, n_envs=ENVS,
            total_timesteps=ROWS * WINDOWS,
            hyperparameters={"n_steps": STEPS, "batch_size": BATCH, "n_epochs": EPOCHS, "policy_kwargs": kwargs},
        )  # fmt: skip
        self.folder = RunFolder(folder)
        self.given: list[NDArray[np.float32]] = []
        original = Membership._get_samples

        def spy(buffer: Membership, rows: NDArray[np.int64], *rest: Any) -> Any:
            samples = original(buffer, rows, *rest)
            mask = getattr(samples, "mask", torch.ones_like(samples.old_log_prob)) > 0.0
            self.given.append(samples.old_log_prob[mask].numpy().copy())
            return samples

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Membership, "_get_samples", spy)
            train_recorded(self.agent, self.env, 0, self.folder)

    @property
    def final(self) -> ActorCriticPolicy:
        return load_policy(self.agent, self.env, read_tensors(self.folder.final_path(0)))


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: "-".join(kind))
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return Recorded(tmp_path_factory.mktemp("run"), *request.param)


def test_recording_changes_nothing_bit_for_bit(recorded: Recorded) -> None:
    plain = train_agent(recorded.agent, recorded.env, 0)
    final = read_tensors(recorded.folder.final_path(0))
    assert all(torch.equal(final[name], value) for name, value in plain.policy.state_dict().items())


def test_minibatches_are_the_ones_that_trained_without_the_rows_that_fill_up_sequences(recorded: Recorded) -> None:
    per_epoch = -(-ROWS // BATCH)
    assert len(recorded.given) == WINDOWS * EPOCHS * per_epoch
    for window in range(WINDOWS):
        table = read_table(recorded.folder.transitions_path(0, window))
        epochs, log_prob = np.array(table["minibatches"].to_pylist()), table["log_prob"].to_numpy()
        assert epochs.shape == (ROWS, EPOCHS)
        for epoch in range(EPOCHS):
            sizes = np.bincount(epochs[:, epoch])
            assert sizes.tolist() == [BATCH] * (ROWS // BATCH) + [ROWS % BATCH], "every row once"
            for batch in range(per_epoch):
                given = recorded.given[(window * EPOCHS + epoch) * per_epoch + batch]
                np.testing.assert_array_equal(np.sort(log_prob[epochs[:, epoch] == batch]), np.sort(given))


def test_rewards_are_raw_and_only_columns_that_are_needed_are_there(recorded: Recorded) -> None:
    table = read_table(recorded.folder.transitions_path(0, 1))
    masked = recorded.agent.masked
    assert ("action_mask" in table.column_names) == masked and ("lstm_state" in table.column_names) != masked
    reward, outcome = table["reward"].to_numpy(), np.array(table["outcome"].to_pylist())
    np.testing.assert_array_equal(reward, outcome == "goal")
    if masked:
        masks = decode_arrays(table["action_mask"], array_format(table.schema, "action_mask"))
        envs = {t: Masked(**recorded.env.kwargs) for t in range(6)}
        for t, mask in zip(table["t"].to_pylist(), masks, strict=True):
            envs[t].corridor.t = t
            assert mask.tolist() == envs[t].action_masks()
    else:
        carried = [row for row in range(ROWS) if table["lstm_state"][row].is_valid]
        inside = table["t"].to_numpy() > 0
        assert carried == [env * STEPS for env in range(ENVS) if inside[env * STEPS]], "what no row of the window tells"


def sequence_log_probs(policy: Any, recorded: Recorded, steps: Any) -> NDArray[np.float64]:
    """Log pi of whole episodes by sb3-contrib's own evaluate_actions."""
    found = []
    observations = decode_arrays(steps["observation"], array_format(steps.schema, "observation"))
    actions, episodes = decode_actions(steps), steps["episode"].to_numpy()
    for episode in np.unique(episodes):
        rows = np.flatnonzero(episodes == episode)
        tensors, taken = as_tensors(observations[rows]), torch.as_tensor(actions[rows])
        if recorded.agent.masked:
            masks = decode_arrays(steps["action_mask"], array_format(steps.schema, "action_mask"))[rows]
            _, log_probs, _ = policy.evaluate_actions(tensors, taken, torch.as_tensor(masks))
        else:
            starts = (torch.arange(len(rows)) == 0).float()
            _, log_probs, _ = policy.evaluate_actions(tensors, taken, rnn_states(zero_states(policy)[None]), starts)
        found += log_probs.tolist()
    return np.array(found)


def test_plays_carry_memory_and_masks_as_sb3_contrib_does(recorded: Recorded) -> None:
    """Log pi of every step as played is that of the whole episode at once; nothing forbidden is ever taken."""
    plays, steps = evaluate_policy(recorded.final, recorded.env, EvaluationSpec(episodes=9, repeats=2), 0, "test")
    expected = sequence_log_probs(recorded.final, recorded, steps)
    np.testing.assert_allclose(steps["log_prob"].to_numpy(), expected, atol=2e-5)
    assert plays.num_rows == 18 and max(plays["length"].to_pylist()) > 3
    greedy = EvaluationSpec(episodes=9, repeats=1, deterministic=True)
    evaluate_policy(recorded.final, recorded.env, greedy, 0, "test")
    masked = recorded.agent.masked
    _, chance = evaluate_policy(None, recorded.env, EvaluationSpec(episodes=9, repeats=1), -1, "test", masked)
    assert chance.schema.equals(steps.schema, check_metadata=True), "the two are one table"


def test_slots_and_companions_do_not_change_a_play(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EvaluationSpec(episodes=5, repeats=2)
    many, steps = evaluate_policy(recorded.final, recorded.env, spec, 0, "test")
    monkeypatch.setattr(evaluation, "_SLOTS", 1)
    single, single_steps = evaluate_policy(recorded.final, recorded.env, spec, 0, "test")
    assert many.equals(single)
    np.testing.assert_allclose(decode_actions(steps), decode_actions(single_steps), atol=1e-5)


def test_drawn_actions_follow_the_masked_probabilities(tmp_path: Path) -> None:
    recorded = Recorded(tmp_path, "MaskablePPO", "vector", "discrete")
    policy: Any = recorded.final
    with torch.no_grad():
        policy.action_net.bias[:] = torch.tensor([0.0, 1.0, 5.0])
        policy.action_net.weight[:] = 0.0
    for asked, expected in ((policy, 1.0 / (1.0 + np.exp(-1.0))), (None, 0.5)):
        spec = EvaluationSpec(episodes=1000, repeats=1)
        _, steps = evaluate_policy(asked, recorded.env, spec, 0, "test", masked=True)
        first = steps["action"].to_numpy()[steps["t"].to_numpy() == 0]
        assert set(first) == {0, 1}, "the third action is not allowed at the first step"
        assert abs(first.mean() - expected) < 4 * np.sqrt(expected * (1 - expected) / 1000)


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (
            EnvSpec("toy_environments:Kinds"),
            "has no method `action_masks`, which MaskablePPO needs: expected 3 booleans",
        ),
        (EnvSpec("toy_environments:Masked", {"told": 2}), "returned 2 values, expected 3 booleans"),
        (EnvSpec("toy_environments:Gated", {"open": False}), "allows no action"),
    ],
)
def test_masks_that_are_missing_or_wrong_are_named(env: EnvSpec, message: str) -> None:
    with pytest.raises(EnvironmentError_, match=message):
        probe(env, masked=True)


@pytest.mark.parametrize(
    ("agent", "env", "message"),
    [
        ({"algorithm": "MaskablePPO"}, {"act": "box"}, "expected actions that can be masked"),
        ({"algorithm": "RecurrentPPO"}, {"act": "binary"}, "expected Discrete, MultiDiscrete or Box"),
        ({"algorithm": "RecurrentPPO"}, {"observe": "dict"}, "expected MultiInputLstmPolicy"),
        ({"hyperparameters": {"policy_kwargs": {"use_sde": True}}}, {"act": "box"}, "StateDependentNoiseDistribution"),
    ],
)
def test_policies_that_cannot_be_learned_or_attributed_are_named(
    agent: dict[str, Any], env: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        new_policy(AgentSpec(**agent), EnvSpec("toy_environments:Kinds", env))


def test_policies_are_named_by_default_and_an_unknown_one_names_those_there_are() -> None:
    assert AgentSpec(algorithm="RecurrentPPO").policy == "MlpLstmPolicy"
    assert AgentSpec(algorithm="MaskablePPO").policy == AgentSpec().policy == "MlpPolicy"
    with pytest.raises(TaskError, match="MlpLstmPolicy, CnnLstmPolicy, MultiInputLstmPolicy"):
        AgentSpec(algorithm="RecurrentPPO", policy="CnnPolicy").require_valid()


def test_a_minibatch_of_one_row_whose_advantages_cannot_be_normalised_is_named() -> None:
    """Stable-Baselines3's PPO leaves them as they are; sb3-contrib's divide by a spread of NaN."""
    hyperparameters = {"n_steps": 14, "batch_size": 9}
    AgentSpec(n_envs=2, hyperparameters=hyperparameters).require_valid()
    for algorithm in ("MaskablePPO", "RecurrentPPO"):
        with pytest.raises(TaskError, match="28 rows in minibatches of 9 leave one of a single row"):
            AgentSpec(algorithm=algorithm, n_envs=2, hyperparameters=hyperparameters).require_valid()
        spared = {**hyperparameters, "normalize_advantage": False}
        AgentSpec(algorithm=algorithm, n_envs=2, hyperparameters=spared).require_valid()


def test_without_sb3_contrib_its_algorithms_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sb3_contrib", None)
    AgentSpec().require_valid()
    with pytest.raises(TaskError, match=r'pip install "aitia\[contrib\]"'):
        AgentSpec(algorithm="MaskablePPO").require_valid()


def test_an_algorithm_that_is_not_on_policy_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = SAC("MlpPolicy", DummyVecEnv([lambda: Kinds(act="box")]), buffer_size=100, device="cpu")
    with pytest.raises(InputError, match="given SAC, expected an on-policy algorithm"):
        model.learn(8, callback=Recorder(tmp_path / "run"))
    assert not (tmp_path / "run").exists()
