"""Hooks for the toy environments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def corridor(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Say of a corridor that tells nothing what it would tell itself."""
    cell = columns["next_observation"][:, 0]
    ended = np.where(cell == 1.0, "goal", np.where(cell == 0.0, "pit", "timeout"))
    return {"outcome": ended, "intended_reward": columns["reward"], "context": columns["t"]}


def too_short(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value too few."""
    return {"outcome": ["goal"] * (len(columns["t"]) - 1)}


def listing(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Tell nothing new, and list the outcomes that there are."""
    return {}


listing.outcomes = ("goal", "ditch", "timeout", "lake")  # type: ignore[attr-defined]
