"""Environments, agents, recorder, evaluation and retraining. Importing it registers `aitia/...` ids."""

import gymnasium as gym

if "aitia/ArrowMaze-v0" not in gym.registry:
    gym.register(id="aitia/ArrowMaze-v0", entry_point="aitia.training.arrow_maze:ArrowMazeEnv")
