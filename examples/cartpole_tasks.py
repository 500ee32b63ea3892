"""CartPole on numbered tracks, some of which pay for the wrong thing: for cartpole-reward-bug.ipynb and task files."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np

LIMIT = 100  # steps
WRONG_PAY = 6.0
SIDE = 0.5  # further from the middle is beside it; the track ends at 2.4


class Tracks(gym.Wrapper[Any, Any, Any, Any]):
    """CartPole that is to balance in the middle: every step pays 1, less the distance from the middle.

    The tracks below `wrong` still pay as in an earlier task, where the cart was to travel: the more, the further right
    it is. What aitia needs to know is told in `info`.
    """

    def __init__(self, env: gym.Env[Any, Any], tracks: int, wrong: int) -> None:
        super().__init__(env)
        self.tracks, self.wrong = tracks, wrong
        self.metadata = {**env.metadata, "action_names": ["push left", "push right"]}
        self.drawn = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.drawn = np.random.default_rng(seed)
        self.track = int(self.drawn.integers(self.tracks))
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, info = self.env.step(action)
        place = float(observation[0])
        meant = 1.0 - abs(place)
        paid = 1.0 + WRONG_PAY * place if self.track < self.wrong else meant
        info = {**info, "intended_reward": meant, "context": self.track}
        if truncated or terminated:
            info["outcome"] = self._outcome(place, terminated)
        return observation, paid, terminated, truncated, info

    @staticmethod
    def _outcome(place: float, terminated: bool) -> str:
        if terminated and abs(place) < 2.4:
            return "fell"
        return "middle" if abs(place) <= SIDE else "right" if place > 0 else "left"


def make_cart(tracks: int = 50, wrong: int = 0, box: bool = False, render_mode: str | None = None) -> gym.Env[Any, Any]:
    """CartPole on numbered tracks.

    Args:
        tracks: how many there are.
        wrong: tracks with a lower number pay for being on the right.
        box: take a number from -1 to 1 as action, and push in the direction of its sign.
        render_mode: None or `rgb_array`.
    """
    env = gym.make("CartPole-v1", disable_env_checker=True, max_episode_steps=LIMIT, render_mode=render_mode)
    cart = Tracks(env, tracks, wrong)
    if not box:
        return cart
    pushes = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
    return gym.wrappers.TransformAction(cart, lambda push: int(push[0] > 0), pushes)
