"""Stable-Baselines3 agents as a task names them: building, checking, loading."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
)
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from torch import Tensor

from ...datasets.arrays import Array
from ...datasets.errors import InputError, TaskError, nearest
from ...datasets.files.limits import MOST_WINDOWS
from ...datasets.words import counted
from ..environments.spaces import Space, as_tensors
from ..environments.spec import Env, EnvSpec, describe
from ..worlds.environment import bare_worlds, step_copies
from .memory import is_recurrent

MASKABLE, RECURRENT = "MaskablePPO", "RecurrentPPO"  # of sb3-contrib
_OWN: dict[str, type[OnPolicyAlgorithm]] = {"PPO": PPO, "A2C": A2C}  # of Stable-Baselines3 itself
ALGORITHMS = (*_OWN, MASKABLE, RECURRENT)
OFF_POLICY = ("DQN", "SAC")
PPO_DEFAULTS: dict[str, Any] = {
    "n_steps": 128,
    "batch_size": 256,
    "n_epochs": 4,
    "learning_rate": 0.001,
    "gamma": 0.97,
    "gae_lambda": 0.95,
    "ent_coef": 0.01,
}
SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")
_LINEAR = "lin_"
_MOST_ROWS = 2**24  # transitions of a window
_SHORTEST = 5  # A2C's n_steps
_DISTRIBUTIONS = (
    BernoulliDistribution, CategoricalDistribution, DiagGaussianDistribution, MultiCategoricalDistribution,
)  # fmt: skip
NOT_HYPERPARAMETERS = {"self", "policy", "env", "seed", "device", "verbose", "tensorboard_log"}


def algorithm_class(name: str) -> type[OnPolicyAlgorithm]:
    """Return the class of one of `ALGORITHMS`.

    Raises:
        TaskError: it is of sb3-contrib, which is not installed.
    """
    if name in _OWN:
        return _OWN[name]
    try:
        import sb3_contrib
    except ImportError as error:
        raise TaskError(
            f'agent.algorithm: {name} was given, which is of sb3-contrib: pip install "aitia[contrib]" ({error})'
        ) from error
    algorithm: type[OnPolicyAlgorithm] = getattr(sb3_contrib, name)
    return algorithm


class AgentSpec(BaseModel):
    """The `agent` block of a task file; `policy` is by default the algorithm's own for flat observations."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)

    algorithm: str = "PPO"
    policy: str = Field(default="", validate_default=True)
    total_timesteps: int = Field(default=81920, ge=1, le=10_000_000_000)
    n_envs: int = Field(default=16, ge=1, le=65_536)
    hyperparameters: dict[str, Any] = Field(default_factory=dict, validate_default=True)

    @field_validator("algorithm")
    @classmethod
    def _known_algorithm(cls, value: str) -> str:
        if value in OFF_POLICY:
            raise ValueError(
                f"`{value}` was given, expected one of {', '.join(ALGORITHMS)}: evaluation, replay and the bank of "
                "retrainings need a policy that gives action probabilities. A script of your own can record DQN and "
                "SAC (aitia.training.recording.off_policy.OffPolicyRecorder) and ask for the influence of its rewards "
                "(aitia.attribution.adjoints.td.td_influence): docs/off-policy.md"
            )
        if value not in ALGORITHMS:
            raise ValueError(
                f"`{value}` is not supported so far, expected one of {', '.join(ALGORITHMS)} (on-policy algorithms of "
                f"Stable-Baselines3 and sb3-contrib; others come with later work).{nearest(value, ALGORITHMS)}"
            )
        return value

    @field_validator("policy")
    @classmethod
    def _policy_for_flat_observations(cls, value: str, info: ValidationInfo) -> str:
        return value or ("MlpLstmPolicy" if info.data.get("algorithm") == RECURRENT else "MlpPolicy")

    @field_validator("hyperparameters")
    @classmethod
    def _with_defaults(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        """Fill in aitia's own defaults of PPO and its kinds; A2C has those of Stable-Baselines3."""
        return {**PPO_DEFAULTS, **value} if info.data.get("algorithm") != "A2C" else value

    @model_validator(mode="after")
    def _so_many_windows(self) -> AgentSpec:
        """Refuse windows of more transitions, and more windows, than a training can have."""
        steps = self.hyperparameters.get("n_steps", _SHORTEST if self.algorithm == "A2C" else None)
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            return self  # `require_valid` says what is wrong with it
        rows = steps * self.n_envs
        if rows > _MOST_ROWS or self.total_timesteps > rows * MOST_WINDOWS:
            raise ValueError(
                f"n_steps {steps:,} times n_envs {self.n_envs:,} make windows of {counted(rows, 'transition')}, of "
                f"{self.total_timesteps:,} in all; expected at most {_MOST_ROWS:,} in a window and {MOST_WINDOWS:,} "
                "windows"
            )
        return self

    @property
    def masked(self) -> bool:
        """Whether the agent draws only actions that the environment allows."""
        return self.algorithm == MASKABLE

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The hyperparameters that the algorithm takes."""
        signature = inspect.signature(algorithm_class(self.algorithm).__init__)
        return {name: p for name, p in signature.parameters.items() if name not in NOT_HYPERPARAMETERS}

    def hyperparameter(self, name: str) -> Any:
        """Return a hyperparameter as the task gives it, else the algorithm's default.

        `lin_0.001` is a schedule that falls linearly to zero over the training (as in rl-zoo3).
        """
        value = self.hyperparameters.get(name, self.parameters[name].default)
        start = _linear_start(name, value)
        return value if start is None else LinearSchedule(start, 0.0, 1.0)

    def require_valid(self) -> None:
        """Check policy and hyperparameter names.

        Raises:
            TaskError: an unknown one, with the nearest known name.
        """
        for name in self.hyperparameters:
            if name not in self.parameters:
                raise TaskError(
                    f"agent.hyperparameters: {self.algorithm} has no `{name}`; it takes "
                    f"{', '.join(self.parameters)}.{nearest(name, self.parameters)}"
                )
            value = self.hyperparameters[name]
            if isinstance(value, str) and name in SCHEDULED and _linear_start(name, value) is None:
                raise TaskError(
                    f"agent.hyperparameters.{name}: `{value}` was given, expected a number, or for instance "
                    "lin_0.001, which falls linearly to zero"
                )
        steps = self.hyperparameter("n_steps")
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise TaskError(f"agent.hyperparameters.n_steps: `{steps}` was given, expected a whole number from 1")
        known = list(algorithm_class(self.algorithm).policy_aliases)
        if self.policy not in known:
            raise TaskError(
                f"agent.policy: `{self.policy}` was given, expected one of {', '.join(known)}."
                f"{nearest(self.policy, known)}"
            )
        if self.hyperparameters.get("use_sde") or (self.hyperparameters.get("policy_kwargs") or {}).get("use_sde"):
            raise TaskError(
                "agent.hyperparameters: use_sde was given; expected Gaussian actions whose spread does not depend on "
                "the state, which attribution needs: remove it"
            )
        self._require_no_single_row()

    def _require_no_single_row(self) -> None:
        """Check that sb3-contrib's algorithms meet no minibatch of one row: it makes their parameters NaN."""
        if self.algorithm in _OWN or not self.hyperparameter("normalize_advantage"):
            return
        steps, batch = self.hyperparameter("n_steps"), self.hyperparameter("batch_size")
        if isinstance(steps, int) and isinstance(batch, int) and batch > 0 and steps * self.n_envs % batch == 1 % batch:
            raise TaskError(
                f"agent.hyperparameters: {counted(steps * self.n_envs, 'row')} in minibatches of {batch} leave one of "
                f"a single row, whose advantages {self.algorithm} cannot normalise; expected a batch_size that divides "
                "n_steps * n_envs"
            )


def _linear_start(name: str, value: Any) -> float | None:
    """Return where a linear schedule begins; None if the value is not one."""
    if name not in SCHEDULED or not isinstance(value, str) or not value.startswith(_LINEAR):
        return None
    try:
        return float(value.removeprefix(_LINEAR))
    except ValueError:
        return None


class _VecEnv(DummyVecEnv):
    """Stable-Baselines3's, one environment after the other; copies of a world step together, which is faster."""

    def step_wait(self) -> VecEnvStepReturn:
        """Step as `DummyVecEnv` does, and begin again where an episode ended."""
        worlds = bare_worlds(self.envs)
        if worlds is None:
            return super().step_wait()
        steps = step_copies(worlds, self.actions)
        infos = []
        for number, (observation, reward, terminated, truncated, info) in enumerate(steps):
            self.buf_rews[number], self.buf_dones[number] = reward, terminated or truncated
            info["TimeLimit.truncated"] = truncated and not terminated
            if terminated or truncated:
                info["terminal_observation"] = observation
                observation, self.reset_infos[number] = self.envs[number].reset()
            self._save_obs(number, observation)
            infos.append(info)
        return self._obs_from_buf(), np.copy(self.buf_rews), np.copy(self.buf_dones), infos


def build_model(spec: AgentSpec, make_env: Callable[[], Env], seed: int) -> OnPolicyAlgorithm:
    """Build an untrained agent on `n_envs` copies of an environment, in this process and on the CPU.

    Raises:
        TaskError: Stable-Baselines3 refuses the hyperparameters.
    """
    spec.require_valid()
    vec_env = _VecEnv([make_env] * spec.n_envs)
    try:
        model = algorithm_class(spec.algorithm)(
            spec.policy, vec_env, seed=seed, device="cpu", verbose=0,
            **{name: spec.hyperparameter(name) for name in spec.hyperparameters},
        )  # fmt: skip
    except (TypeError, ValueError, AssertionError) as error:
        vec_env.close()
        raise TaskError(f"{spec.algorithm} refuses agent.hyperparameters {spec.hyperparameters}: {error}") from error
    vec_env.seed(env_seed(spec, seed, 0))
    model.set_logger(Logger(None, []))  # the library's own leaves an empty folder behind with every training
    return model


def env_seed(spec: AgentSpec, seed: int, env: int) -> int:
    """Return the seed of environment `env` of an agent's training.

    SB3's own choice, seed + env, would give neighbouring seeds of an ensemble nearly the same environments,
    and the tests over seeds take them as independent.
    """
    return seed * spec.n_envs + env


class _NoOptimizer:
    """Stands where a policy keeps its optimizer; a first real one in a process makes torch import for two seconds."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass


def new_policy(spec: AgentSpec, env: EnvSpec, **changes: Any) -> ActorCriticPolicy:
    """Return an untrained policy of the task's architecture. It has no optimizer: Stable-Baselines3 trains its own.

    Args:
        spec: the agent.
        env: what it is to act in.
        changes: arguments of the policy that go before the task's `policy_kwargs`.

    Raises:
        TaskError: the policy does not fit the observations or actions, or refuses its `policy_kwargs`.
    """
    facts = describe(env)
    observation_space = facts.observation_space
    dictionary = isinstance(observation_space, spaces.Dict)
    if dictionary != spec.policy.startswith("MultiInput"):
        kind = "LstmPolicy" if spec.algorithm == RECURRENT else "Policy"
        expected = f"MultiInput{kind}" if dictionary else f"Mlp{kind}, or Cnn{kind} for images"
        raise TaskError(
            f"agent.policy: `{spec.policy}` was given for observations {observation_space}, expected {expected}"
        )
    _require_trainable(spec, facts.action_space)
    policy_class = algorithm_class(spec.algorithm).policy_aliases[spec.policy]
    policy_kwargs = spec.hyperparameters.get("policy_kwargs") or {}
    arguments: dict[str, Any] = {**policy_kwargs, **changes}
    if arguments.keys().isdisjoint(("optimizer_class", "optimizer_kwargs")):
        arguments["optimizer_class"] = _NoOptimizer
    try:
        policy = policy_class(observation_space, facts.action_space, lambda _: 0.0, **arguments)
    except (AssertionError, TypeError, ValueError, RuntimeError) as error:
        raise TaskError(
            f"agent.policy: `{spec.policy}` with policy_kwargs {policy_kwargs} does not fit the observations "
            f"{observation_space} (CnnPolicy needs images, MlpPolicy anything flat): {str(error).splitlines()[0]}"
        ) from error
    built: Any = policy
    acts = built.action_dist
    if type(acts) not in _DISTRIBUTIONS and not hasattr(acts, "apply_masking"):
        raise TaskError(
            f"agent.hyperparameters.policy_kwargs: {policy_kwargs} make the policy act by a {type(acts).__name__}; "
            "expected categorical, Bernoulli or Gaussian actions without use_sde, which attribution needs"
        )
    return built  # type: ignore[no-any-return]  # that of MaskablePPO has the same parts, and is no subclass


def _require_trainable(spec: AgentSpec, actions: Space) -> None:
    """Check that the algorithm can learn these actions.

    Raises:
        TaskError: it cannot.
    """
    if spec.masked and isinstance(actions, spaces.Box):
        raise TaskError(
            f"agent.algorithm: MaskablePPO was given for actions {actions}, expected actions that can be masked: "
            "Discrete, MultiDiscrete or MultiBinary. Use PPO"
        )
    if spec.algorithm == RECURRENT and isinstance(actions, spaces.MultiBinary):
        raise TaskError(
            f"agent.algorithm: RecurrentPPO was given for actions {actions}, expected Discrete, MultiDiscrete or Box: "
            "sb3-contrib's cannot be trained with MultiBinary ones. Use MultiDiscrete with two choices each"
        )


def latent_features(policy: ActorCriticPolicy, observations: Array) -> NDArray[np.float64]:
    """Return the latent features of the actor, the input of its last layer, [N, H], of observations as kept.

    A recurrent policy is asked as if its episode began with the observation.
    """
    with torch.no_grad():
        prepared: Any = preprocess_obs(as_tensors(observations), policy.observation_space, policy.normalize_images)
        features: Any = policy.pi_features_extractor(prepared)
        if is_recurrent(policy):
            lstm: Any = policy.lstm_actor
            features = lstm(features[None])[0][0]
        latent: Tensor = policy.mlp_extractor.forward_actor(features)
    return latent.double().numpy()


def load_policy(spec: AgentSpec, env: EnvSpec, parameters: Mapping[str, Tensor]) -> ActorCriticPolicy:
    """Rebuild a policy from recorded parameters, in evaluation mode.

    Raises:
        InputError: the parameters are of another architecture or space.
    """
    facts = describe(env)
    policy = new_policy(spec, env, ortho_init=False)  # 13 ms of initial weights that the recorded ones replace
    own = {name: value for name, value in parameters.items() if not name.startswith("vecnormalize.")}
    try:
        policy.load_state_dict(own)
    except RuntimeError as error:
        raise InputError(
            f"a checkpoint does not fit the policy of the task ({spec.policy} on {facts.observation_space}, "
            f"{facts.action_space}): {error}. The run belongs to another task or another version"
        ) from error
    policy.set_training_mode(False)
    return policy
