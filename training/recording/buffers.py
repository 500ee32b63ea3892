"""Rollout buffers that remember which minibatch used which row, for every on-policy algorithm that is recorded."""

from __future__ import annotations

from collections.abc import Generator
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from ...datasets.arrays import Array

UNUSED_ROW = -1


class Membership:
    """Remembers which minibatch of which epoch used each row; a mix-in before a rollout buffer.

    It draws exactly what the buffer draws, so a recorded training equals an unrecorded one. Rows that a recurrent
    buffer adds to fill up its sequences are none of the window's, and are not counted. Nor are those of a minibatch
    after which the epoch is given up: PPO looks at `target_kl` before the optimiser's step, and leaves it out.

    Attributes:
        membership: one int32 [N] an epoch of the current window: minibatch of each row, -1 if unused.
    """

    membership: list[NDArray[np.int32]]
    buffer_size: int
    n_envs: int

    def reset(self) -> None:
        """Begin a new window; the list handed out for the old one stays as it is."""
        self.membership = []
        super().reset()  # type: ignore[misc]

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        """Yield the minibatches of one epoch."""
        self.membership.append(np.full(self.buffer_size * self.n_envs, UNUSED_ROW, dtype=np.int32))
        self._minibatch = 0
        try:
            yield from super().get(batch_size)  # type: ignore[misc]
        except GeneratorExit:  # the loop was left with the minibatch that it was given last
            self.membership[-1][self.membership[-1] == self._minibatch - 1] = UNUSED_ROW
            raise

    def _get_samples(self, batch_inds: NDArray[np.int64], *rest: Any) -> Any:
        self.membership[-1][batch_inds] = self._minibatch
        self._minibatch += 1
        return super()._get_samples(batch_inds, *rest)  # type: ignore[misc]


def known_buffers() -> tuple[type[RolloutBuffer], ...]:
    """Return the rollout buffers of Stable-Baselines3 and, where it is installed, of sb3-contrib."""
    own = (RolloutBuffer, DictRolloutBuffer)
    try:
        from sb3_contrib.common.maskable.buffers import MaskableDictRolloutBuffer, MaskableRolloutBuffer
        from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
    except ImportError:
        return own
    return (
        *own, MaskableRolloutBuffer, MaskableDictRolloutBuffer, RecurrentRolloutBuffer, RecurrentDictRolloutBuffer,
    )  # fmt: skip


@lru_cache
def with_mixin(mixin: type, kind: type[RolloutBuffer]) -> type[RolloutBuffer]:
    """Return the class of buffers `kind` with `mixin` before it."""
    return type(f"{mixin.__name__}{kind.__name__}", (mixin, kind), {})


def rebuilt(buffer: RolloutBuffer, mixin: type) -> RolloutBuffer:
    """Return an empty buffer like `buffer`, of its kind with `mixin` before it."""
    old: Any = buffer
    kind = next(kind for kind in type(old).__mro__ if kind in known_buffers())
    recurrent = [old.hidden_state_shape] if hasattr(old, "hidden_state_shape") else []
    made: Any = with_mixin(mixin, kind)
    return made(  # type: ignore[no-any-return]
        old.buffer_size, old.observation_space, old.action_space, *recurrent, old.device,
        gae_lambda=old.gae_lambda, gamma=old.gamma, n_envs=old.n_envs,
    )  # fmt: skip


def action_masks(buffer: RolloutBuffer) -> NDArray[np.bool_] | None:
    """Return which actions were allowed, bool [steps, envs, A], before the window's first epoch; None without masks."""
    masks: Array | None = getattr(buffer, "action_masks", None)
    return None if masks is None else masks.reshape(buffer.buffer_size, buffer.n_envs, -1) > 0.0


def first_lstm_states(buffer: RolloutBuffer) -> NDArray[np.float32] | None:
    """Return the LSTM states that came into the window's first step, before its first epoch.

    Returns:
        float32 [envs, 4, layers, H]: hidden and cell state of the actor's LSTM, then of the critic's; None without.
    """
    if not hasattr(buffer, "hidden_states_pi"):
        return None
    whole: Any = buffer
    names = ("hidden_states_pi", "cell_states_pi", "hidden_states_vf", "cell_states_vf")
    return np.stack([getattr(whole, name)[0].swapaxes(0, 1) for name in names], axis=1)
