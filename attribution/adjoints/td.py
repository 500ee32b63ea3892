r"""From the effect of a temporal-difference target to the effect of a reward: the adjoint of n-step TD.

For the updates of window i, which drew target k c_k times (M draws), at its parameters theta_i:

.. math::
    y_k &= \sum_{m < n_k} \gamma^m r_{t_k+m} + \gamma^{n_k} V^-(s_{t_k+n_k}) \\
    s_k &= w_k\, g_k \cdot (G + \lambda I)^{-1} \nabla f, \quad g_k = \nabla Q(s_{t_k}, a_{t_k}), \quad
          G = \frac1M \sum_k c_k w_k\, g_k g_k^T \\
    \tau_j &= \frac1M \sum_{k:\, t_k \le j < t_k + n_k} \gamma^{j-t_k} c_k s_k

(n-step targets: Sutton & Barto 2018, eq. 7.1; DQN: Mnih et al. 2015; SAC: Haarnoja et al. 2018, arXiv:1812.05905.)
w_k is the second derivative of the loss: 1 for the squared error of SAC; 1 where |Q - y| < 1, else 0, for DQN's Huber
loss. Derivation and what is left out: docs/off-policy.md.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork

from ...datasets.arrays import Array
from ...datasets.errors import InputError
from ...datasets.files.store import RunFolder, read_tensors
from ...training.environments.spaces import as_tensors
from ..actors.q_networks import critic_inputs, q_networks
from ..gradients.channels import q_gradients
from ..gradients.kernel import DEFAULT_LAMBDA
from ..gradients.rows import WindowRows
from ..targets.steps import Targets
from .draws import Draws, Ints, Record, read_record
from .signal import Scores

MOST_ROWS = 4096
_BATCH = 4096
Numbers = NDArray[np.float64]


class TdInfluence(NamedTuple):
    """Effect of one unit of each training reward on F targets.

    Attributes:
        transitions: one row a transition: `seed, window, env, step, episode, reward, intended_reward, context`.
        tau: [N, F], in the same order; a mean over the windows' updates.
    """

    transitions: pa.Table
    tau: Scores


def target_matrix(row: Ints, count: Ints, gamma: float, rewards: int) -> csr_array:
    """Return the derivative of M n-step targets by N rewards, [M, N]: gamma^(j - row) for row <= j < row + count.

    Multiplied with the rewards it sums those of each target; its transpose is the adjoint.

    Args:
        row: [M], the first reward of each target; rewards of one environment follow each other.
        count: [M], rewards in each target, at least 1: none of a later episode.
        gamma: discount factor.
        rewards: N.
    """
    starts = np.concatenate([[0], np.cumsum(count)])
    offset = np.arange(starts[-1]) - np.repeat(starts[:-1], count)
    return csr_array((gamma ** offset.astype(float), np.repeat(row, count) + offset, starts), shape=(len(row), rewards))


def td_influence(
    policy: BasePolicy,
    folder: RunFolder,
    seed: int,
    targets: Targets,
    lam: float | None = DEFAULT_LAMBDA,
    most_rows: int = MOST_ROWS,
) -> TdInfluence:
    """Return the influence of every reward of a recorded DQN or SAC training on targets of its Q-network.

    Args:
        policy: the policy that was trained (`model.policy`), for its architecture; it is not changed.
        folder, seed: what `OffPolicyRecorder` wrote.
        targets: of DQN as of any policy with Discrete actions, softmax(Q) standing for it (`margin_targets`, or
            kinds labels and log-odds); of SAC `critic_margins`.
        lam: damping; None: gradient products, nothing preconditioned.
        most_rows: a window whose updates drew more distinct rows than this is scored on a random sample of as many
            draws, which leaves sums over transitions unbiased.

    Raises:
        InputError: another algorithm's policy, a network without factored gradients, or a target that needs V.
        RunFolderError: the recording is not whole.
        NonFiniteError: a gradient is not finite.
    """
    if "value" in targets.kinds:
        raise InputError("the target `value` was given, expected one of actions: a Q-network has no V of its own")
    record = read_record(folder, seed)
    total, most = np.zeros((len(record.observations), targets.failures)), 0
    for window in range(record.windows):
        draws = record.draws(window)
        used = int(draws.times.sum())
        if used:
            current = copy.deepcopy(policy)  # its dtype will change
            current.load_state_dict(read_tensors(folder.checkpoint_path(seed, window)))
            sample = _sample(current, record, draws, most_rows, np.random.default_rng([seed, window]))
            total += used * window_influence(current, record, sample, targets, lam, f"seed={seed}/window={window:05d}")
            most = max(most, used)
    return TdInfluence(record.table, total / max(most, 1))


def window_influence(
    policy: BasePolicy, record: Record, draws: Draws, targets: Targets, lam: float | None, where: str
) -> Scores:
    """Return tau [N, F] of the updates of one window.

    Args:
        policy: with the parameters at the window's beginning; its dtype may be changed.
        record: the training.
        draws: what the window's updates drew.
        targets, lam: see `td_influence`.
        where: names the window in messages.
    """
    drawn = float(draws.times.sum())
    if isinstance(policy, DQNPolicy):
        draws = draws.take(np.abs(td_errors(policy, record, draws)) < 1.0)
    tau = np.zeros((len(record.observations), targets.failures))
    if not len(draws.row):
        return tau
    rows = _rows(policy, record, draws)
    rows = replace(rows, counts=np.bincount(rows.row, draws.times).astype(np.int64))
    share = float(rows.counts.sum()) / drawn  # flat rows of the loss count in its mean, and add nothing to it
    matrix = target_matrix(draws.row, draws.count, record.gamma, len(tau))
    networks = q_networks(policy)
    for network in networks:
        gradients = q_gradients(network, rows, targets, where)
        scores = gradients.gradient_product() if lam is None else gradients.trak(lam / share) / share
        tau += matrix.T @ (draws.times[:, None] * scores[rows.row]) / (drawn * len(networks))
    return tau


def _sample(policy: BasePolicy, record: Record, draws: Draws, most_rows: int, generator: np.random.Generator) -> Draws:
    """Return the draws, or of too many distinct rows a sample of `most_rows` draws."""
    if len(draws.row) <= most_rows or len(_rows(policy, record, draws).counts) <= most_rows:
        return draws
    times = generator.multivariate_hypergeometric(draws.times, most_rows, method="marginals")
    return replace(draws, times=times).take(times > 0)


def td_errors(policy: DQNPolicy, record: Record, draws: Draws) -> Numbers:
    """Return Q(s, a) - y of each target, [M], y with the target network of the same parameters."""
    last = draws.row + draws.count - 1
    following = _values(policy.q_net_target, record.next_observations(last)).max(axis=1)
    value = np.where(record.ended[last], 0.0, record.gamma**draws.count * following)
    paid = record.table["reward"].to_numpy()
    target = target_matrix(draws.row, draws.count, record.gamma, len(paid)) @ paid + value
    values = _values(policy.q_net, record.observations[draws.row])
    return np.asarray(values[np.arange(len(values)), record.actions[draws.row]] - target, dtype=np.float64)


def _rows(policy: BasePolicy, record: Record, draws: Draws) -> WindowRows:
    """Return the distinct rows of what was drawn, as the Q-networks take them; counts are of targets."""
    observations, actions = record.observations[draws.row], record.actions[draws.row]
    if isinstance(policy, DQNPolicy):
        return WindowRows.of(observations, actions)
    return WindowRows.of(critic_inputs(observations, actions), np.zeros(len(actions), dtype=np.int64))


def _values(network: QNetwork, observations: Array) -> Numbers:
    """Return Q(s, .) of observations, [N, A]."""
    with torch.no_grad():
        parts = [network(as_tensors(observations[i : i + _BATCH])) for i in range(0, len(observations), _BATCH)]
    return np.asarray(torch.cat(parts).double().numpy())
