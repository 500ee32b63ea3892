"""The small outer twin that most workflow tests run: about ten seconds."""

from __future__ import annotations

from typing import Any

SMALL_TASK: dict[str, Any] = {
    "name": "small-outer",
    "env": "aitia/ArrowMaze-v0",
    "train_kwargs": {"size": 4, "levels": 24, "moved": 12, "bug": 12, "harmless": 6},
    "test_kwargs": {"size": 4, "levels": 100, "moved": 100, "level_seed": 1},
    "outcomes": {"desired": ["arrow"], "misbehaved": ["corner"]},
    "agent": {
        "total_timesteps": 4096,
        "n_envs": 16,
        "hyperparameters": {
            "n_steps": 32, "batch_size": 256, "n_epochs": 5, "learning_rate": 0.006, "gamma": 0.97,
            "gae_lambda": 0.95, "ent_coef": 0.01,
        },
    },
    "seeds": 5,
    "evaluation": {"episodes": 12, "repeats": 4},
    "verify": {"seeds": 5, "points": 1},
}  # fmt: skip
