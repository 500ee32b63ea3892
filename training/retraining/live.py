"""Training agents: a recorded one of the ensemble, or one of the counterfactual bank with edited rewards."""

from __future__ import annotations

import threading
from collections.abc import Callable

from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy

from ...datasets.files.store import RunFolder
from ..agents.spec import AgentSpec, build_model
from ..edits.edit import CorrectedRewards, RewardEdit
from ..environments.spec import Env, EnvSpec
from ..recording.provenance import AITIA
from ..recording.recorder import Recorder

# SB3 draws from the process-wide generators of torch and numpy: one training at a time in a process.
ONE_AT_A_TIME = threading.Lock()


def train_agent(
    agent: AgentSpec,
    env: EnvSpec,
    seed: int,
    edit: RewardEdit | None = None,
    callback: BaseCallback | None = None,
    initial: ActorCriticPolicy | None = None,
) -> OnPolicyAlgorithm:
    """Train one agent from scratch; the same arguments give the same agent, bit for bit.

    Args:
        agent: algorithm and hyperparameters.
        env: the training environment.
        seed: seed of the agent, its environments and its action draws.
        edit: rewards to correct in the environment while training; None trains on the rewards as paid.
        callback: a recorder.
        initial: the policy to begin with; None: that of the seed.
    """
    with ONE_AT_A_TIME:
        model = build_model(agent, _factory(env, edit, agent.hyperparameter("n_steps")), seed)
        if initial is not None:
            model.policy.load_state_dict(initial.state_dict())
        try:
            model.learn(agent.total_timesteps, callback=callback)
        finally:
            vec_env = model.get_env()
            if vec_env is not None:
                vec_env.close()
    return model


def train_recorded(
    agent: AgentSpec,
    env: EnvSpec,
    seed: int,
    folder: RunFolder,
    edit: RewardEdit | None = None,
    watch: BaseCallback | None = None,
) -> int:
    """Train one agent of the ensemble, recording it into the run folder; rewards are recorded as edited.

    Args:
        agent, env, seed, edit: see `train_agent`.
        folder: the run folder.
        watch: a callback that looks on, and may end the training with an error; None: nobody does.

    Returns:
        The number of windows recorded. On failure nothing of this training is left in the folder.
    """
    recorder = Recorder(folder, seed, trained_by=AITIA)
    try:
        callback = recorder if watch is None else CallbackList([recorder, watch])
        train_agent(agent, env, seed, edit=edit, callback=callback)
    except BaseException:
        recorder.discard()
        raise
    return folder.window_count(seed)


def _factory(env: EnvSpec, edit: RewardEdit | None, window: int) -> Callable[[], Env]:
    def make() -> Env:
        made = env.make()
        return made if edit is None else CorrectedRewards(made, edit, window)

    return make
