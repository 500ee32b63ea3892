"""One window of transitions, decoded: what every estimator works on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...datasets.arrays import Array, array_format, decode_actions, decode_arrays
from ...datasets.errors import NonFiniteError, RunFolderError
from ...datasets.files.store import read_table, read_table_schema
from ...datasets.groups import BY_CONTEXT, Grouping
from ...datasets.rewards import corrections, editable, reward_events
from ...datasets.schema import metadata_of
from ...training.retraining.replay import ReplayedWindow
from ..adjoints.gae import Advantages
from ..gradients.kernel import WindowRows
from ..targets.given import COLUMNS as GIVEN_COLUMNS
from ..targets.given import given_of_window


@dataclass(frozen=True)
class Window:
    """The transitions of one window, decoded. Arrays are [N], row = env * n_steps + step.

    Attributes:
        name: names the window in messages.
        seed, number: which training, which window of it.
        rows: its distinct (observation, action) rows.
        advantages: what the adjoint needs.
        reward, intended: as paid and as intended (None: not known).
        group: what each transition is corrected with.
        action: the action taken, [N] or [N, K].
        editable: what an arbitrary edit of its group would change; None: the reward events as paid.
        vf_coef: weight of the value loss.
        updates: the real updates that used the window, for estimators that need them.
        context: what the environment told of each transition's context, [N] texts or None; None: not read.
    """

    name: str
    seed: int
    number: int
    rows: WindowRows
    advantages: Advantages
    reward: NDArray[np.float64]
    intended: NDArray[np.float64] | None
    group: NDArray[np.str_]
    action: Array
    editable: NDArray[np.bool_] | None = None
    vf_coef: float = 0.5
    updates: ReplayedWindow | None = None
    context: NDArray[np.object_] | None = None

    @property
    def steps(self) -> int:
        """Steps of each environment in the window."""
        return len(self.reward) // self.advantages.n_envs

    @property
    def correction(self) -> NDArray[np.float64] | None:
        """dr = r* - r of each transition; exactly 0 where they agree; None without intended rewards."""
        return None if self.intended is None else corrections(self.reward, self.intended)

    @property
    def is_event(self) -> NDArray[np.bool_]:
        """Reward events: r != 0 or r* != 0."""
        return reward_events(self.reward, self.reward if self.intended is None else self.intended)


_COLUMNS = (
    "seed", "window", "step", "t", "observation", "action", "reward", "reward_scale", "intended_reward",
    "advantage", "terminated", "truncated", "minibatches", "context",
)  # fmt: skip
_UNCLIPPED = "unclipped_scale"


def learned_scale(
    reward: NDArray[np.float64],
    intended: NDArray[np.float64] | None,
    unclipped: NDArray[np.float64],
    clip: float,
) -> NDArray[np.float64]:
    r"""Return what a unit of each reward is worth to a learner that gets :math:`clip(s r, -c, c)`, [N].

    Where neither the reward nor its correction is clipped it is s. A correction across a clip is no small change: it
    is worth :math:`(clip(s r^*) - clip(s r)) / (r^* - r)`, so that its effect is that of what the learner gets instead.
    A clipped reward that is not to be corrected counts as if it were taken away (r* = 0).

    Args:
        reward, intended: r and r* [N] (None: not known).
        unclipped: s [N].
        clip: c.
    """
    change = np.zeros_like(reward) if intended is None else corrections(reward, intended)
    clipped = np.abs(unclipped * reward) >= clip
    change = np.where(clipped & (change == 0.0), -reward, change)
    learned, instead = (np.clip(unclipped * paid, -clip, clip) for paid in (reward, reward + change))
    crosses = (clipped | (np.abs(unclipped * (reward + change)) > clip)) & (change != 0.0)
    return np.where(crosses, (instead - learned) / np.where(crosses, change, 1.0), unclipped)


def read_window(path: Path, grouping: Grouping = BY_CONTEXT) -> Window:
    """Read one window of transitions.

    Args:
        path: its file.
        grouping: what is corrected together.

    Raises:
        RunFolderError: the file is missing, damaged or empty.
        NonFiniteError: an advantage or a reward is not finite.
    """
    known = read_table_schema(path).names
    beside = [name for name in GIVEN_COLUMNS if name in known]
    beside += [_UNCLIPPED] if _UNCLIPPED in known else []
    needed = dict.fromkeys([*_COLUMNS, *beside, *grouping.columns(known)])
    table = read_table(path, list(needed))
    metadata = metadata_of(table.schema)
    if table.num_rows == 0:
        raise RunFolderError(f"{path} holds no transitions: train again")
    if "gae_lambda" not in metadata:
        raise RunFolderError(
            f"{path} was recorded off policy ({metadata.get('algorithm')}) and has no advantages; expected a run of "
            "an on-policy algorithm. Its influence: aitia.attribution.adjoints.td.td_influence (docs/off-policy.md)"
        )

    def column(name: str) -> NDArray[np.float64]:
        return np.asarray(table[name].to_numpy(), dtype=np.float64)

    for name in ("advantage", "reward"):
        bad = np.flatnonzero(~np.isfinite(column(name)))
        if len(bad):
            raise NonFiniteError(f"{path}, row {bad[0]}: {name} is {column(name)[bad[0]]}; the training diverged")
    actions = decode_actions(table)
    observations = decode_arrays(table["observation"], array_format(table.schema, "observation"))
    ended = table["terminated"].to_numpy() | table["truncated"].to_numpy()
    intended = None if table["intended_reward"].null_count > 0 else column("intended_reward")
    scale = column("reward_scale")
    if _UNCLIPPED in table.column_names:  # runs of version 0.1 have only that of rewards that were not clipped
        scale = learned_scale(column("reward"), intended, column(_UNCLIPPED), float(metadata["clip_reward"]))
    return Window(
        name=f"{path.parent.name}/{path.stem}",
        seed=int(table["seed"][0].as_py()),
        number=int(table["window"][0].as_py()),
        rows=WindowRows.of(observations, actions, given_of_window(table)),
        advantages=Advantages(
            raw=column("advantage"),
            ended=np.asarray(ended, dtype=np.bool_),
            n_envs=int(metadata["n_envs"]),
            gamma=float(metadata["gamma"]),
            gae_lambda=float(metadata["gae_lambda"]),
            normalize=metadata["normalize_advantage"] == "true",
            reward_scale=scale,
            minibatches=np.array(table["minibatches"].combine_chunks().flatten().to_numpy()).reshape(len(actions), -1),
        ),
        reward=column("reward"),
        intended=intended,
        group=grouping.of_table(table),
        action=actions,
        editable=editable(column("reward"), table["terminated"].to_numpy(), grouping),
        vf_coef=float(metadata.get("vf_coef", 0.5)),
        context=np.array(table["context"].to_pylist(), dtype=np.object_),
    )
