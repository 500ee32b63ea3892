"""The engine without a run folder: a module of one's own, plain arrays, an estimator with its parameters."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from small_policies import flat_gradient_of, gae, make_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.distributions import Categorical

import aitia.attribution as library
from aitia.attribution import Targets, TracIn, Trak, TrakProjected, TrakUpdates, Window, influence
from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.estimators.registry import estimators, find_estimator
from aitia.attribution.estimators.window import read_window
from aitia.attribution.gradients.kernel import LAMBDAS
from aitia.datasets.errors import InputError
from aitia.datasets.files.store import RunFolder, read_tensors
from aitia.training.recording.agreement import ADAPTER
from aitia.training.recording.loop import LoopRecorder

STEPS, ENVS, ACTIONS, GAMMA, LAM = 12, 3, 3, 0.9, 0.8
GENERATOR = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def the_same_numbers_in_any_order_of_tests() -> None:
    GENERATOR.bit_generator.state = np.random.default_rng(0).bit_generator.state


class Picture(nn.Module):
    """A convolution, an embedding of a cell and linear layers; actor and critic share all but their heads."""

    def __init__(self) -> None:
        super().__init__()
        self.see, self.table = nn.Conv2d(1, 2, 2), nn.Embedding(5, 3)
        self.join, self.policy, self.critic = nn.Linear(2 * 4 + 3, 6), nn.Linear(6, ACTIONS), nn.Linear(6, 1)

    def forward(self, observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        seen = torch.tanh(self.see(observations["image"])).flatten(1)
        hidden = torch.tanh(self.join(torch.cat([seen, self.table(observations["cell"])], dim=1)))
        return self.policy(hidden), self.critic(hidden)


class Recorded(nn.Module):
    """What `LoopRecorder` takes: log pi and V."""

    def __init__(self) -> None:
        super().__init__()
        self.module = Picture()

    def log_prob(self, observations: dict[str, Tensor], actions: Tensor) -> Tensor:
        return Categorical(logits=self.module(observations)[0]).log_prob(actions)  # type: ignore[no-any-return]

    def value(self, observations: dict[str, Tensor]) -> Tensor:
        values: Tensor = self.module(observations)[1]
        return values.reshape(-1)


class Telling(Recorded):
    """One that also tells the whole distribution."""

    def distribution(self, observations: dict[str, Tensor]) -> Categorical:
        return Categorical(logits=self.module(observations)[0])


def pictures(*shape: int) -> NDArray[Any]:
    found = np.zeros(shape, dtype=[("image", "f4", (1, 3, 3)), ("cell", "i8")])
    found["image"], found["cell"] = GENERATOR.random((*shape, 1, 3, 3)), GENERATOR.integers(0, 5, shape)
    return found


def as_window(**changes: Any) -> Window:
    arrays: dict[str, Any] = {
        "observations": pictures(STEPS, ENVS), "actions": GENERATOR.integers(0, ACTIONS, (STEPS, ENVS)),
        "rewards": GENERATOR.normal(size=(STEPS, ENVS)), "values": GENERATOR.normal(size=(STEPS, ENVS)),
        "dones": GENERATOR.random((STEPS, ENVS)) < 0.2, "intended": GENERATOR.normal(size=(STEPS, ENVS)),
        "last_values": GENERATOR.normal(size=ENVS), "gamma": GAMMA, "gae_lambda": LAM,
    }  # fmt: skip
    return Window.from_arrays(**{**arrays, **changes})


def as_targets(target: Any = "log-odds", labels: NDArray[np.int8] | None = None) -> Targets:
    actions = GENERATOR.integers(0, ACTIONS, 5) if labels is None else np.zeros(5, np.int64)  # a misbehaving one
    return Targets.from_arrays(pictures(5), actions, [0, 0, 1, 1, 1], target=target, labels=labels, ids=("a", "b"))


def tensors(observations: NDArray[Any]) -> dict[str, Tensor]:
    return {
        "image": torch.tensor(observations["image"]).double(),
        "cell": torch.tensor(np.ascontiguousarray(observations["cell"])),
    }


def brute_force(
    module: Recorded, window: Window, targets: Targets, damping: float
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Scores, tau and tau_value by the definitions: one gradient a transition by every parameter, P x P matrices
    inverted, and autograd through generalised advantage estimation and the normalisation of the window.
    """
    module = copy.deepcopy(module).double()
    rows = window.rows
    observations, actions = tensors(rows.observations[rows.row]), torch.tensor(window.action)
    target_probs = module.log_prob(tensors(targets.observations), torch.tensor(targets.actions))
    odds = target_probs - torch.log1p(-torch.exp(target_probs))
    q = torch.stack([flat(module, odds[torch.tensor(targets.failure == i)].mean()) for i in range(2)], dim=1)
    scores = []
    for scalars in (
        module.log_prob(observations, actions),
        np.sqrt(2.0 * window.vf_coef) * module.value(observations),
    ):
        phi = torch.stack([flat(module, scalar) for scalar in scalars])
        matrix = phi.T @ phi / len(phi) + damping * torch.eye(phi.shape[1], dtype=torch.float64)
        scores.append(phi @ torch.linalg.inv(matrix) @ q)
    policy, value = scores[0], np.sqrt(2.0 * window.vf_coef) * scores[1]
    reward = torch.tensor(window.reward, requires_grad=True)
    advantage = torch.tensor(gae(window).raw) + dependence(window) @ (reward - reward.detach())
    normalised = (advantage - advantage.mean()) / (advantage.std() + 0.0)
    tau, by_value = (
        torch.stack(
            [torch.autograd.grad((seen * s).mean(), reward, retain_graph=True)[0] for s in effect.T], dim=1
        ).numpy()
        for seen, effect in ((normalised, policy), (advantage, value))
    )
    return policy.numpy(), tau, by_value


def flat(module: nn.Module, scalar: Tensor) -> Tensor:
    return flat_gradient_of(module, scalar)  # type: ignore[arg-type]  # it has parameters


def dependence(window: Window) -> Tensor:
    """d advantage / d reward, [N, N]: (gamma lambda)^(k - t) for t <= k in one episode of one environment."""
    found = torch.zeros(STEPS * ENVS, STEPS * ENVS, dtype=torch.float64)
    ended = gae(window).ended.reshape(ENVS, STEPS)
    for env in range(ENVS):
        for t in range(STEPS):
            for k in range(t, STEPS):
                if not ended[env, t:k].any():
                    found[env * STEPS + t, env * STEPS + k] = (GAMMA * LAM) ** (k - t)
    return found


@pytest.mark.parametrize("damping", [1e-2, 0.3])
def test_influence_of_a_module_of_ones_own_is_the_brute_force_definition(damping: float) -> None:
    """Dual = primal: the whole P x P matrix, in float64, both channels, and the adjoint by autograd."""
    torch.manual_seed(0)
    module, window, targets = Recorded(), as_window(), as_targets()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = influence(window, module, targets, Trak(damping=damping))
    scores, tau, by_value = brute_force(module, window, targets, damping)
    assert found.tau_value is not None and np.abs(by_value).max() > 1e-6
    for one, other in ((found.scores, scores), (found.tau, tau), (found.tau_value, by_value)):
        assert one.shape == (STEPS * ENVS, 2)
        np.testing.assert_allclose(one, other, rtol=1e-7, atol=1e-9 * np.abs(other).max())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), "the module of the caller was changed"
    assert found.failures == ("a", "b") and "a, b" in repr(found)
    assert found.env.tolist() == sorted(found.env.tolist()) and found.step[:STEPS].tolist() == list(range(STEPS))


def test_rows_are_environment_by_environment_and_advantages_those_of_the_definition() -> None:
    rewards, values = GENERATOR.normal(size=(2, STEPS, ENVS))
    dones, last = GENERATOR.random((STEPS, ENVS)) < 0.2, GENERATOR.normal(size=ENVS)
    window = as_window(rewards=rewards, values=values, dones=dones, last_values=last)
    np.testing.assert_array_equal(window.reward.reshape(ENVS, STEPS), rewards.T)
    expected = np.zeros((STEPS, ENVS))
    for env in range(ENVS):
        for t in range(STEPS):
            for k in range(t, STEPS):
                after = 0.0 if dones[k, env] else (values[k + 1, env] if k + 1 < STEPS else last[env])
                expected[t, env] += (GAMMA * LAM) ** (k - t) * (rewards[k, env] + GAMMA * after - values[k, env])
                if dones[k, env]:
                    break
    np.testing.assert_allclose(window.signal.raw.reshape(ENVS, STEPS).T, expected, rtol=1e-12, atol=1e-12)
    given = as_window(values=None, advantages=expected)
    np.testing.assert_array_equal(given.signal.raw.reshape(ENVS, STEPS).T, expected)
    single = as_window(
        observations=pictures(4), actions=[0, 1, 2, 0], rewards=np.ones(4), values=np.zeros(4),
        dones=[False] * 3 + [True], intended=None, last_values=0.0,
    )  # fmt: skip
    assert single.steps == 4 and single.correction is None and set(single.group.tolist()) == {"all"}


class Bare(nn.Module):
    """The layers of a small SB3 policy, by hand."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.body, self.head = policy.mlp_extractor.policy_net, policy.action_net
        self.critic, self.last = policy.mlp_extractor.value_net, policy.value_net

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        return torch.log_softmax(self.head(self.body(observations)), dim=-1).gather(1, actions[:, None])[:, 0]

    def value(self, observations: Tensor) -> Tensor:
        values: Tensor = self.last(self.critic(observations))
        return values[:, 0]

    def distribution(self, observations: Tensor) -> Categorical:
        return Categorical(logits=self.head(self.body(observations)))

    def latent(self, observations: Tensor) -> Tensor:
        found: Tensor = self.body(observations)
        return found


@pytest.mark.parametrize("target", ["log-odds", "episode", "labels", "value"])
@pytest.mark.parametrize("estimator", [Trak(), TracIn(), "nearest-latent", "td-error"])
def test_a_module_and_the_sb3_policy_of_the_same_weights_get_the_same_numbers(target: str, estimator: Any) -> None:
    policy = make_policy()
    observations = GENERATOR.uniform(-1, 1, (STEPS, ENVS, 5)).astype(np.float32)
    window = as_window(observations=observations)
    labels = np.tile(np.array([1, -1, 0], np.int8), (5, 1)) if target == "labels" else None
    targets = Targets.from_arrays(
        GENERATOR.uniform(-1, 1, (5, 5)).astype(np.float32), np.zeros(5, np.int64), [0, 0, 1, 1, 1],
        target=target, labels=labels,
    )  # fmt: skip
    assert set(targets.kinds) == {target}
    one, other = (influence(window, module, targets, estimator) for module in (policy, Bare(policy)))
    for name in ("scores", "tau", "tau_raw"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-8, atol=1e-12)
        assert np.abs(getattr(one, name)).max() > 0.0 or target == "value"
    assert (one.tau_value is None) == (other.tau_value is None)


def test_dictionaries_of_observations_are_taken_as_loops_have_them() -> None:
    torch.manual_seed(6)
    module, packed, steps = Recorded(), pictures(STEPS, ENVS), pictures(5)
    rewards, values = GENERATOR.normal(size=(2, STEPS, ENVS))
    actions, failing, dones = np.ones((STEPS, ENVS), int), np.zeros(5, int), np.zeros((STEPS, ENVS), bool)
    one, other = (
        influence(
            Window.from_arrays(form(packed), actions, rewards, values, dones), module,
            Targets.from_arrays(form(steps), failing),
        ).tau
        for form in (lambda array: array, lambda array: {name: array[name] for name in array.dtype.names})
    )  # fmt: skip
    np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match=r"observations\['cell'\] of shape \(11, 3\), expected \(12, 3\)"):
        short = {"image": packed["image"], "cell": packed["cell"][1:]}
        Window.from_arrays(short, actions, rewards, values, dones)


def test_the_adapter_of_loop_recorder_is_taken_as_it_stands() -> None:
    scope: dict[str, Any] = {"torch": torch}
    exec(ADAPTER, scope)
    torch.manual_seed(1)
    recorded, window, targets = scope["Recorded"](Picture()), as_window(), as_targets("episode")
    assert np.abs(influence(window, recorded, targets).tau).max() > 0.0


def test_a_recorded_loop_of_a_module_of_ones_own_has_influence(tmp_path: Path) -> None:
    """The window of the file, with the module at its checkpoint, is the window of the arrays (float32 in the file)."""
    torch.manual_seed(3)
    module, observations = Bare(make_policy()), GENERATOR.uniform(-1, 1, (STEPS + 1, ENVS, 5)).astype(np.float32)
    actions, rewards = GENERATOR.integers(0, ACTIONS, (STEPS, ENVS)), GENERATOR.choice([0.0, 0.5], (STEPS, ENVS))
    dones = np.zeros((STEPS, ENVS), bool)
    infos = [{"intended_reward": 0.0, "context": "c"} for _ in range(ENVS)]
    with torch.no_grad():
        values = np.stack([module.value(torch.tensor(o)).numpy() for o in observations])
        with LoopRecorder(tmp_path, policy=module, gamma=GAMMA, gae_lambda=LAM, n_envs=ENVS) as recorder:
            for t in range(STEPS):
                log_prob = module.log_prob(torch.tensor(observations[t]), torch.tensor(actions[t]))
                recorder.step(
                    observations[t], actions[t], rewards[t], dones[t], dones[t], infos, observations[t + 1],
                    log_prob=log_prob, value=values[t],
                )  # fmt: skip
            recorder.update()
    folder = RunFolder(tmp_path)
    found = read_window(folder.transitions_path(0, 0))
    module.load_state_dict(read_tensors(folder.checkpoint_path(0, 0)))
    targets = Targets.from_arrays(observations[:3, 0], actions[:3, 0])
    arrays = Window.from_arrays(
        observations[:-1], actions, rewards, values[:-1], dones, last_values=values[-1], gamma=GAMMA, gae_lambda=LAM,
        intended=np.zeros((STEPS, ENVS)),
    )  # fmt: skip
    one, other = (influence(window, module, targets).tau for window in (found, arrays))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * np.abs(other).max())
    assert found.correction is not None and np.abs((found.correction[:, None] * one).sum()) > 0.0


def test_estimators_carry_their_parameters_and_names_mean_the_default_ones() -> None:
    assert find_estimator("trak") == Trak() == Trak(damping=1e-3) != Trak(damping=1e-1)
    assert find_estimator(Trak(damping=0.5)).damping == 0.5
    assert estimators()["trak-projected"] == TrakProjected(dimension=2048, seed=0)
    assert TrakUpdates().label == "trak-updates" and TracIn().label == "tracin"
    assert TrakProjected(dimension=64).label == "trak-projected(dimension=64)"
    window, targets, policy = as_window(), as_targets(), Recorded()
    by_name, default, other = (influence(window, policy, targets, e).tau for e in ("trak", Trak(), Trak(damping=0.5)))
    np.testing.assert_array_equal(by_name, default)
    assert np.abs(default - other).max() > 0.0 and 0.5 not in LAMBDAS


@pytest.mark.filterwarnings("ignore")
def test_projections_of_another_seed_are_other_projections() -> None:
    policy = make_policy()
    window = as_window(observations=GENERATOR.uniform(-1, 1, (STEPS, ENVS, 5)).astype(np.float32))
    targets = Targets.from_arrays(np.ones((2, 5), np.float32), np.zeros(2, np.int64))
    one, same, other = (
        influence(window, policy, targets, TrakProjected(dimension=16, seed=seed, damping=0.7)).scores
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.0


class Normed(Recorded):
    """One with a layer that has no factored gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(ACTIONS)

    def log_prob(self, observations: dict[str, Tensor], actions: Tensor) -> Tensor:
        logits = self.norm(self.module(observations)[0])
        return Categorical(logits=logits).log_prob(actions)  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore")
def test_layers_without_a_factored_gradient_are_projected() -> None:
    torch.manual_seed(5)
    module, window, targets = Normed(), as_window(), as_targets()
    with pytest.raises(InputError, match=r"`norm` of the policy is a LayerNorm.*trak-projected"):
        influence(window, module, targets)
    found = influence(window, module, targets, TrakProjected(dimension=64))
    assert np.abs(found.tau).max() > 0.0 and found.tau_value is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("target", ["log-odds", "labels"])
def test_the_projection_of_a_module_of_ones_own_correlates_with_exact(target: str) -> None:
    torch.manual_seed(4)
    labels = np.tile(np.array([1, 1, -1], np.int8), (5, 1)) if target == "labels" else None
    module, window, targets = Telling(), as_window(), as_targets(target, labels)
    exact, found = (influence(window, module, targets, e).scores for e in (Trak(), TrakProjected(dimension=1024)))
    for failure in range(2):
        assert np.corrcoef(found[:, failure], exact[:, failure])[0, 1] > 0.9


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    with pytest.raises(InputError, match=r"dones of shape \(11, 3\), expected \(12, 3\)"):
        as_window(dones=np.zeros((STEPS - 1, ENVS), bool))
    with pytest.raises(InputError, match="neither values nor advantages"):
        as_window(values=None)
    with pytest.raises(InputError, match="actions has 4 rows, expected 5"):
        Targets.from_arrays(pictures(5), np.zeros(4, np.int64))
    with pytest.raises(InputError, match="ascending"):
        Targets.from_arrays(pictures(3), np.zeros(3, np.int64), [1, 0, 1])
    with pytest.raises(InputError, match="log_prob"):
        as_actor(Picture())
    with pytest.raises(InputError, match="distribution"):
        influence(as_window(), Recorded(), as_targets("labels", np.tile(np.array([1, -1, 0], np.int8), (5, 1))))
    with pytest.raises(InputError, match="latent"):
        influence(as_window(), Recorded(), as_targets(), "nearest-latent")


def test_labels_ask_a_module_for_its_distribution() -> None:
    labels = np.tile(np.array([1, 1, -1], np.int8), (5, 1))
    torch.manual_seed(2)
    module, targets = Telling(), as_targets("labels", labels)
    assert np.abs(influence(as_window(), module, targets).tau).max() > 0.0


def test_public_names_are_these_and_documented() -> None:
    assert set(library.__all__) == {
        "Actor", "Estimator", "Signal", "Targets", "TracIn", "Trak", "TrakLinear", "TrakProjected", "TrakUpdates",
        "Window", "group_effects", "influence",
    }  # fmt: skip
    assert all(inspect.getdoc(getattr(library, name)) for name in library.__all__)
