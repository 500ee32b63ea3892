"""Record a Stable-Baselines3 script of your own: one wrapper, one callback. `python examples/record_a_script.py [OUT]`.

MiniGrid tells nothing in `info`, so a hook says how episodes end. The tables then open in duckdb, pandas or pyarrow.
"""

from __future__ import annotations

import sys

import gymnasium as gym
import minigrid  # noqa: F401  (registers MiniGrid's environments)
import pyarrow.dataset as ds
from minigrid.wrappers import ImgObsWrapper
from stable_baselines3 import PPO

from aitia import Recorder
from aitia.training.environments.hooks import HookedEnv


def make() -> HookedEnv:
    env = gym.make("MiniGrid-LavaGapS5-v0", disable_env_checker=True)
    return HookedEnv(ImgObsWrapper(env), "hooks:minigrid")  # type: ignore[no-untyped-call]


def main(out: str, steps: int = 8192) -> dict[str, int]:
    """Train for some steps, and return how many episodes ended how."""
    model = PPO("MlpPolicy", make(), n_steps=512, batch_size=128, n_epochs=4, seed=0, device="cpu")
    model.learn(steps, callback=Recorder(out, seed=0))
    table = ds.dataset(f"{out}/transitions").to_table(columns=["window", "outcome", "reward"])
    ended = table.filter(ds.field("outcome").is_valid())
    return {row["values"]: row["counts"] for row in ended["outcome"].value_counts().to_pylist()}


if __name__ == "__main__":
    print(main(sys.argv[1] if len(sys.argv) > 1 else "runs/lava-gap"))
