"""Modules and arrays that the engine could get silently wrong: refused by name, or right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from small_policies import flat_gradient_of, make_policy
from torch import Tensor, nn
from torch.distributions import Categorical, Normal
from torch.nn import functional

from aitia.attribution import Targets, Trak, TrakProjected, Window, influence
from aitia.attribution.actors.adapt import as_actor
from aitia.attribution.gradients.layers import gradient_factors
from aitia.datasets.errors import AitiaError, InputError, NonFiniteError

STEPS, ENVS = 10, 3


class Mine(nn.Module):
    """Two layers, put together as a test says."""

    def __init__(self, logits: Callable[[Any, Tensor], Tensor], prepare: Callable[[Any], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 3)
        self.logits = logits
        prepare(self)

    def log_prob(self, observations: Tensor, actions: Tensor) -> Tensor:
        return Categorical(logits=self.logits(self, observations)).log_prob(actions)  # type: ignore[no-any-return]


def plain(m: Any, x: Tensor) -> Tensor:
    return m.last(torch.tanh(m.first(x)))  # type: ignore[no-any-return]


def arrays() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {
        "observations": draw.normal(size=(STEPS, ENVS, 5)).astype(np.float32),
        "actions": draw.integers(0, 3, (STEPS, ENVS)), "rewards": draw.normal(size=(STEPS, ENVS)),
        "values": draw.normal(size=(STEPS, ENVS)), "dones": draw.random((STEPS, ENVS)) < 0.2,
    }  # fmt: skip


def failing() -> dict[str, Any]:
    draw = np.random.default_rng(1)
    return {
        "observations": draw.normal(size=(4, 5)).astype(np.float32), "actions": draw.integers(0, 3, 4),
        "failure": [0, 0, 1, 1],
    }  # fmt: skip


def tau_of(module: nn.Module, estimator: str | Trak = "trak") -> Any:
    return influence(Window.from_arrays(**arrays()), module, Targets.from_arrays(**failing()), estimator).tau


def attended(m: Any) -> None:
    m.first.register_forward_hook(lambda module, inputs, output: 2.0 * output)


@pytest.mark.parametrize(
    ("logits", "prepare"),
    [
        (plain, lambda m: None),
        (plain, lambda m: m.first.requires_grad_(False)),
        (plain, lambda m: setattr(m, "unused", nn.Linear(2, 2))),
        (plain, lambda m: setattr(m, "frozen", nn.LayerNorm(2).requires_grad_(False))),
        (plain, attended),
        (lambda m, x: m.last(input=torch.tanh(m.first(input=x))), lambda m: None),
        (lambda m, x: m.last(functional.relu(m.first(x), inplace=True)), lambda m: None),
        (lambda m, x: m.last(functional.dropout(m.first(x), 0.5, m.training)), lambda m: None),
        (lambda m, x: m.last(m.norm(m.first(x))), lambda m: setattr(m, "norm", nn.BatchNorm1d(5, affine=False))),
    ],
)
def test_gradients_are_those_of_autograd(logits: Any, prepare: Any) -> None:
    """The inner products of the factors are those of whole gradients by every parameter that is not frozen."""
    module = Mine(logits, prepare).double().eval()
    draw = np.random.default_rng(2)
    observations, actions = draw.normal(size=(6, 5)), torch.as_tensor(draw.integers(0, 3, 6))
    log_prob = module.log_prob(torch.as_tensor(observations), actions)
    frozen = [parameter for parameter in module.parameters() if not parameter.requires_grad]
    for parameter in frozen:
        parameter.grad = None
    learned = nn.ParameterList([p for p in module.parameters() if p.requires_grad])
    rows = torch.stack([flat_gradient_of(learned, one) for one in log_prob])  # type: ignore[arg-type]
    factors = gradient_factors(as_actor(module), observations, lambda said: said.distribution.log_prob(actions).sum())
    torch.testing.assert_close(factors.products(factors), rows @ rows.T, rtol=1e-10, atol=1e-12)


def normed(m: Any) -> None:
    m.norm = nn.BatchNorm1d(5, affine=False, track_running_stats=False)


@pytest.mark.parametrize(
    ("logits", "prepare", "said"),
    [
        (lambda m, x: m.last(torch.tanh(functional.linear(x, m.first.weight))), None, "`first.weight`.*used elsewhere"),
        (lambda m, x: m.last(m.first(x) @ m.first.weight), None, "`first.weight`.*used elsewhere"),
        (lambda m, x: m.last(m.first(m.first(x))), None, "`first` is used more than once"),
        (plain, lambda m: m.first.bias.requires_grad_(False), "`first` of the policy is a Linear with.*partly frozen"),
        (plain, lambda m: nn.utils.spectral_norm(m.first), "`first` of the policy is a Linear with"),
        (plain, lambda m: m.requires_grad_(False), "frozen"),
        (lambda m, x: m.last(torch.no_grad()(m.first)(x)), None, "`first` of the policy is used under torch.no_grad"),
        (lambda m, x: m.last(m.first(x.repeat(2, 1))[: len(x)]), None, "`first` of the policy was used on .8, 5."),
        (lambda m, x: m.last(m.norm(m.first(x))), normed, "in one batch and .* in another"),
        (lambda m, x: plain(m, x - x.mean(0)), None, "in one batch and .* in another"),
        (lambda m, x: m.last(functional.dropout(m.first(x), 0.5)), None, "in one batch and .* in another"),
        (plain, lambda m: setattr(m, "value", m.first), "value returned the shape .30, 5., expected .30,."),
        (plain, lambda m: setattr(m, "distribution", lambda x: Normal(plain(m, x), 1.0)), "returned a Normal"),
    ],
)
def test_modules_without_exact_gradients_are_refused_by_name(logits: Any, prepare: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        tau_of(Mine(logits, prepare or (lambda m: None)))


def test_a_cast_of_the_modules_own_is_explained() -> None:
    with pytest.raises(RuntimeError) as caught:
        tau_of(Mine(lambda m, x: plain(m, x.float()), lambda m: None))
    assert "dtype of the module's parameters" in caught.value.__notes__[0]


@pytest.mark.filterwarnings("ignore")
def test_the_projection_leaves_frozen_layers_out() -> None:
    module = Mine(plain, lambda m: m.first.requires_grad_(False))
    window, targets = Window.from_arrays(**arrays()), Targets.from_arrays(**failing())
    exact, projected = (influence(window, module, targets, e).scores for e in (Trak(), TrakProjected(dimension=2048)))
    assert all(np.corrcoef(exact[:, f], projected[:, f])[0, 1] > 0.98 for f in range(2))


def test_what_the_caller_has_set_neither_matters_nor_changes() -> None:
    module = Mine(plain, lambda m: None)
    expected, state, drawn = tau_of(module), torch.get_rng_state(), np.random.get_state(legacy=True)  # noqa: NPY002
    with torch.no_grad():
        np.testing.assert_array_equal(tau_of(module), expected)
    with torch.inference_mode():
        np.testing.assert_array_equal(tau_of(module, "auto"), expected)
    assert module.training and module.first.weight.dtype == torch.float32 and module.first.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)
    assert str(np.random.get_state(legacy=True)) == str(drawn)  # noqa: NPY002


def test_a_window_of_one_environment_keeps_its_own_arrays() -> None:
    values = {name: array[:, :1].copy() for name, array in arrays().items()}
    window = Window.from_arrays(**{**values, "values": None, "advantages": values["values"]})
    for array in (window.reward, window.action, window.signal.raw):
        assert not any(np.shares_memory(array, mine) for mine in values.values())


NAN = np.where(np.arange(STEPS * ENVS).reshape(STEPS, ENVS) == 10, np.nan, 1.0)  # step 3, environment 1


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"rewards": NAN}, NonFiniteError, "step 3 of environment 1: rewards is nan"),
        ({"values": NAN}, NonFiniteError, "step 3 of environment 1: values is nan"),
        ({"advantages": NAN}, NonFiniteError, "advantages is nan"),
        ({"intended": NAN}, NonFiniteError, "intended is nan"),
        ({"last_values": np.inf}, InputError, "last_values inf, expected 3 finite"),
        ({"last_values": np.zeros(4)}, InputError, "expected 3 finite"),
        ({"rewards": np.zeros((0, 3))}, InputError, r"rewards of shape \(0, 3\)"),
        ({"rewards": np.zeros((STEPS, ENVS, 1))}, InputError, r"rewards of shape \(10, 3, 1\)"),
        ({"minibatches": np.zeros((STEPS, ENVS), np.int32)}, InputError, r"minibatches of shape \(10, 3\)"),
    ],
)
def test_windows_that_mean_nothing_are_refused(changes: dict[str, Any], error: type[AitiaError], said: str) -> None:
    with pytest.raises(error, match=said):
        Window.from_arrays(**{**arrays(), **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"failure": [0, 0, 2, 2]}, "failure 1 has no step"),
        ({"ids": ("a", "b", "c")}, "failure c has no step"),
        ({"failure": [-1, 0, 1, 1]}, "ascending"),
        ({"failure": [0.0, 0.7, 1.2, 1.9]}, "whole number"),
        ({"observations": np.zeros((0, 5)), "actions": [], "failure": []}, "0 steps"),
        ({"target": "labels"}, "without labels"),
        ({"target": "labels", "labels": np.ones(4)}, r"labels of shape \(4,\)"),
    ],
)
def test_targets_that_mean_nothing_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Targets.from_arrays(**{**failing(), **changes})


def test_parameters_that_mean_nothing_are_refused() -> None:
    module = Mine(plain, lambda m: None)
    with pytest.raises(InputError, match=r"trak\(damping=-1.0\): expected a damping above 0"):
        tau_of(module, Trak(damping=-1.0))
    with pytest.raises(InputError, match="dimension 0"):
        TrakProjected(dimension=0)
    with pytest.raises(InputError, match=r"the class Trak, .* Trak\(\)"):
        tau_of(module, Trak)  # type: ignore[arg-type]


def test_integers_of_any_width_are_actions_and_floats_are_none() -> None:
    policy, targets = make_policy(), Targets.from_arrays(**failing())
    windows = [Window.from_arrays(**{**arrays(), "actions": arrays()["actions"].astype(t)}) for t in ("i8", "u1", "f4")]
    one, other = (influence(window, policy, targets).tau for window in windows[:2])
    np.testing.assert_array_equal(one, other)
    with pytest.raises(InputError, match=r"actions of shape .30,. and torch.float32, expected whole numbers"):
        influence(windows[2], policy, targets)
