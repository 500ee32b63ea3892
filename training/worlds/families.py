"""The catalogue of families: where the class of each is. Importing it imports none of them.

A family that is a `World` has an environment, `WorldEnv`, and is stepped as arrays; the others are environments alone.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

import gymnasium as gym

if TYPE_CHECKING:
    from .base import World

_WORLDS = {
    "arrow-maze": "maze:ArrowMaze",
    "coin-run": "goals:CoinRun",
    "cheese": "goals:Cheese",
    "cheese-continuous": "goals:ContinuousCheese",
    "boat-race": "channels:BoatRace",
    "button-room": "channels:ButtonRoom",
    "platform-run": "platform:PlatformRun",
    "keys-and-chests": "keys:KeysAndChests",
    "cleaning-robot": "robot:CleaningRobot",
}
_OTHERS = {
    "two-mazes": "two_mazes:TwoMazesEnv",
    "coin-line": "coin_line:CoinLineEnv",
    "procgen-coin-run": "procgen:ProcgenCoinRunEnv",
    "procgen-maze": "procgen:ProcgenMazeEnv",
}


def _gymnasium_id(family: str) -> str:
    """Return `aitia/CoinRun-v0` for `coin-run`."""
    return f"aitia/{family.title().replace('-', '')}-v0"


def world_class(family: str) -> type[World]:
    """Return the class of a world by its family's name."""
    module, _, name = _WORLDS[family].partition(":")
    world: type[World] = getattr(importlib.import_module(f".{module}", __package__), name)
    return world


def register() -> None:
    """Register the Gymnasium ids of all families, once."""
    if _gymnasium_id("arrow-maze") in gym.registry:
        return
    here = "aitia.training.worlds"
    for family in _WORLDS:
        gym.register(_gymnasium_id(family), f"{here}.environment:WorldEnv", kwargs={"family": family})
    for family, place in _OTHERS.items():
        gym.register(_gymnasium_id(family), f"{here}.{place}")
