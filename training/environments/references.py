"""Reference solvers: scripted policies for what an agent could have wanted, where an environment offers them.

An environment offers them by `reference_goals` (names, the intended goal first) and `solve(goal)`, the action of a
solver with that goal in the present state. They say what return and which outcomes are possible (Framing 1).
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from ...datasets.schema import REFERENCES
from .spec import EnvSpec


def play_references(spec: EnvSpec, episodes: int, part: str, first: int = 0) -> pa.Table:
    """Play episodes `reset(seed=first..)` with every reference solver; no rows where an environment offers none.

    Args:
        spec: the environment.
        episodes: how many there are in all.
        part: `test` or `train`.
        first: those before were played earlier.
    """
    env, rows = spec.make(), []
    try:
        solver: Any = env.unwrapped
        for goal in getattr(solver, "reference_goals", ()):
            for episode in range(first, episodes):
                env.reset(seed=episode)
                total, length, ended = 0.0, 0, False
                info: dict[str, Any] = {}
                while not ended:
                    _, reward, terminated, truncated, info = env.step(solver.solve(goal))
                    total, length, ended = total + float(reward), length + 1, terminated or truncated
                rows.append((goal, part, episode, str(info["outcome"]), length, total))
    finally:
        env.close()
    return pa.Table.from_pylist([dict(zip(REFERENCES.names, row, strict=True)) for row in rows], schema=REFERENCES)
