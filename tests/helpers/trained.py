"""A tiny recorded training of every kind of policy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import ActorCriticPolicy

from aitia.attribution.actors.inputs import History, PolicyInputs
from aitia.attribution.estimators.window import read_window
from aitia.attribution.targets.steps import Targets
from aitia.datasets.files.store import RunFolder, read_tensors
from aitia.training.agents.spec import AgentSpec, load_policy
from aitia.training.environments.spec import EnvSpec
from aitia.training.retraining.live import train_recorded

POLICIES = {"vector": "MlpPolicy", "cell": "MlpPolicy", "image": "CnnPolicy", "dict": "MultiInputPolicy"}


class Trained:
    """A tiny recorded training of one kind: its first window, policy and targets."""

    def __init__(
        self, folder: Path, observe: str, act: str, share: bool, algorithm: str = "PPO", windows: int = 1,
        **hyperparameters: Any,
    ) -> None:  # fmt: skip
        kwargs: dict[str, Any] = {"share_features_extractor": share, **hyperparameters.pop("policy_kwargs", {})}
        if observe in ("image", "dict"):
            key = "features_dim" if observe == "image" else "cnn_output_dim"
            kwargs |= {"features_extractor_kwargs": {key: 8}, "net_arch": [4]}
        name = "Masked" if algorithm == "MaskablePPO" else "Kinds"
        policy = POLICIES[observe].replace("Policy", "LstmPolicy" if algorithm == "RecurrentPPO" else "Policy")
        self.env = EnvSpec(f"toy_environments:{name}", {"observe": observe, "act": act, "intended_error": 1.0})
        self.agent = AgentSpec(
            algorithm=algorithm, policy=policy, total_timesteps=24 * windows, n_envs=2,
            hyperparameters={"n_steps": 12, "batch_size": 8, "n_epochs": 2, "policy_kwargs": kwargs, **hyperparameters},
        )  # fmt: skip
        self.folder = RunFolder(folder)
        train_recorded(self.agent, self.env, 0, self.folder)
        self.windows = [read_window(self.folder.transitions_path(0, w)) for w in range(self.folder.window_count(0))]
        self.window = self.windows[0]

    def collected(self, window: int) -> ActorCriticPolicy:
        """The policy that collected a window."""
        return load_policy(self.agent, self.env, read_tensors(self.folder.checkpoint_path(0, window)))

    @property
    def loaded(self) -> ActorCriticPolicy:
        """The policy that collected the first window."""
        return self.collected(0)

    @property
    def policy(self) -> ActorCriticPolicy:
        """The same, disturbed."""
        policy = self.loaded
        torch.manual_seed(0)
        with torch.no_grad():  # far from the nearly uniform start
            for parameter in policy.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape))
        return policy

    def targets(self, kind: str) -> Targets:
        rows = self.window.rows
        chosen = np.array([0, 1, 2])
        failure = np.array([0, 0, 1])
        labels = np.zeros((3, 3), np.int8)
        inputs = PolicyInputs(rows.inputs.rows(chosen).mask, History(np.array([True, False, True])))
        return Targets(
            ("0-0", "0-1"), (kind, kind), failure, rows.observations[chosen], rows.actions[chosen], labels,
            np.zeros(3, bool), inputs=inputs,
        )  # fmt: skip
