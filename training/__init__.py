"""Environments, agents, recorder, evaluation and retraining. Importing it registers `aitia/...` ids."""

from .worlds.families import register

register()
