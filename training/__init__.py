"""Environments, agents, recorder, evaluation and retraining. Importing it registers `aitia/...` ids."""

import gymnasium as gym

_WORLDS = {
    "CoinRun": "coin-run",
    "Cheese": "cheese",
    "CheeseContinuous": "cheese-continuous",
    "BoatRace": "boat-race",
    "ButtonRoom": "button-room",
    "PlatformRun": "platform-run",
    "KeysAndChests": "keys-and-chests",
    "CleaningRobot": "cleaning-robot",
}
ARRAY_IDS = frozenset(f"aitia/{name}-v0" for name in ("ArrowMaze", *_WORLDS))
if "aitia/ArrowMaze-v0" not in gym.registry:
    gym.register(id="aitia/ArrowMaze-v0", entry_point="aitia.training.worlds.maze:ArrowMazeEnv")
    gym.register(id="aitia/TwoMazes-v0", entry_point="aitia.training.worlds.two_mazes:TwoMazesEnv")
    gym.register(id="aitia/CoinLine-v0", entry_point="aitia.training.worlds.coin_line:CoinLineEnv")
    for _game in ("CoinRun", "Maze"):
        gym.register(id=f"aitia/Procgen{_game}-v0", entry_point=f"aitia.training.worlds.procgen:Procgen{_game}Env")
    for _name, _family in _WORLDS.items():
        gym.register(
            id=f"aitia/{_name}-v0",
            entry_point="aitia.training.worlds.environment:WorldEnv",
            kwargs={"family": _family},
        )
