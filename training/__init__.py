"""Environments, agents, recording, reward edits and retraining. Importing it registers `aitia/...` ids."""

from .worlds.families import register

register()
