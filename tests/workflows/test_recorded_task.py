"""A recording by a script leaves the task file that it fits, and says what is still to be filled in."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from fresh import fresh_python
from gymnasium.envs.registration import EnvSpec as EnvironmentSpec
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecFrameStack, VecNormalize
from torch import nn
from torch.optim import RMSprop
from toy_environments import Corridor
from toy_hooks import __file__ as hooks_file

import aitia.training  # noqa: F401 (registers environments)
from aitia.datasets.errors import RunFolderError, TaskError
from aitia.datasets.files.store import RunFolder
from aitia.training.environments.hooks import HookedEnv
from aitia.training.environments.spec import EnvSpec
from aitia.training.recording.agent_block import agent_block
from aitia.training.recording.recorder import Recorder
from aitia.training.retraining.live import train_recorded
from aitia.workflows.runs.begin import begin_run
from aitia.workflows.runs.task_source import load_task

UNUSUAL: dict[str, Any] = {
    "n_steps": 24, "batch_size": 12, "n_epochs": 3, "learning_rate": lambda left: 0.002 * left, "gamma": 0.91,
    "gae_lambda": 0.83, "ent_coef": 0.03, "vf_coef": 0.7, "max_grad_norm": 0.3, "clip_range": 0.31,
    "clip_range_vf": lambda left: 0.4 * left, "normalize_advantage": False, "target_kl": 0.5,
    "policy_kwargs": {"net_arch": {"pi": [8], "vf": [16, 8]}, "ortho_init": False},
}  # fmt: skip


def _mazes(count: int = 3, **arguments: Any) -> VecEnv:
    return DummyVecEnv([lambda: gym.make("aitia/ArrowMaze-v0", **arguments)] * count)


def _record(out: Path, model: OnPolicyAlgorithm, seed: int = 0, steps: int = 150) -> Path:
    model.learn(steps, callback=Recorder(out, seed))
    return out / "task.yaml"


def _ppo(env: VecEnv, **changes: Any) -> PPO:
    return PPO("MlpPolicy", env, seed=0, device="cpu", **{**UNUSUAL, **changes})


def _filled_in(path: Path, **more: str) -> Path:
    text = path.read_text().replace("desired: [FILL_IN]", "desired: [arrow]", 1)
    text = text.replace("misbehaved: [FILL_IN]", "misbehaved: [corner]", 1)
    for old, new in more.items():
        text = text.replace(f"{old}: FILL_IN", f"{old}: {new}")
    path.write_text(text)
    return path


def test_the_task_of_an_unusual_script_is_taken_over_without_a_difference(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "aitia"):
        path = _record(tmp_path / "run", _ppo(_mazes(walls=0.2, max_episode_steps=30)))
    run = tmp_path / "run"
    assert any(f"aitia run {path} --out {run}" in message for message in caplog.messages), (
        "the next command is not told"
    )
    with pytest.raises(TaskError, match=r"not filled in yet(.|\n)*desired: \[FILL_IN\](.|\n)*misbehaved: \[FILL_IN\]"):
        begin_run(path, run)
    begun = begin_run(_filled_in(path), run)
    assert begun.folder.missing_files(0) == []
    assert begun.task.train_kwargs == begun.task.test_kwargs == {"walls": 0.2, "max_episode_steps": 30}
    given = begun.task.agent.hyperparameters
    plain = {name: value for name, value in UNUSUAL.items() if not callable(value)}
    assert given == {**plain, "learning_rate": "lin_0.002", "clip_range_vf": "lin_0.4"}
    assert begun.task.agent.total_timesteps == 150, "what the schedule fell over, not what it was rounded to"
    assert begun.task.seeds == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("changes", [{}, {"use_rms_prop": False}, {"rms_prop_eps": 0.001, "normalize_advantage": True}])
def test_the_task_of_an_a2c_script_is_taken_over(changes: dict[str, Any], tmp_path: Path) -> None:
    model = A2C("MlpPolicy", _mazes(2), n_steps=8, gamma=0.9, seed=0, device="cpu", **changes)
    begun = begin_run(_filled_in(_record(tmp_path / "run", model)), tmp_path / "run")
    assert begun.task.agent.hyperparameters == {"n_steps": 8, "gamma": 0.9, **changes}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"eps": 1e-5}, {}),
        ({"momentum": 0, "eps": 0.001}, {"rms_prop_eps": 0.001}),
        (None, {"rms_prop_eps": 1e-8}),
        ({"alpha": 0.5, "eps": 1e-5, "weight_decay": 0.1}, None),
        ({"alpha": 0.99, "eps": 1e-5, "weight_decay": 0.1}, None),
        ({"eps": 1e-5, "momentum": 0.9}, None),
        ({"eps": 1e-5, "centered": True}, None),
    ],
)
def test_an_optimiser_of_ones_own_is_said_or_named_as_unsaid(given: Any, said: dict[str, Any] | None) -> None:
    kwargs = {"optimizer_class": RMSprop, **({} if given is None else {"optimizer_kwargs": given})}
    block = agent_block(A2C("MlpPolicy", _mazes(1), device="cpu", policy_kwargs=kwargs), 100)
    if said is None:
        assert any("RMSprop" in remark for remark in block.unsaid), "another optimiser than a task's is not named"
    else:
        assert (block.values["hyperparameters"], block.unsaid) == (said, [])


def test_betas_of_adam_are_said() -> None:
    kwargs = {"optimizer_kwargs": {"betas": (0.5, 0.9)}}
    block = agent_block(A2C("MlpPolicy", _mazes(1), device="cpu", use_rms_prop=False, policy_kwargs=kwargs), 100)
    said = {"use_rms_prop": False, "policy_kwargs": {"optimizer_kwargs": {"betas": [0.5, 0.9]}}}
    assert (block.values["hyperparameters"], block.unsaid) == (said, [])


def test_stable_baselines_own_defaults_are_written_where_a_task_has_others(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", _mazes(1), seed=0, device="cpu", n_steps=64)
    begun = begin_run(_filled_in(_record(tmp_path / "run", model, steps=64)), tmp_path / "run")
    assert begun.task.agent.hyperparameters == {
        "n_steps": 64, "batch_size": 64, "n_epochs": 10, "learning_rate": 0.0003, "gamma": 0.99, "gae_lambda": 0.95,
        "ent_coef": 0.0,
    }  # fmt: skip


def test_seen_outcomes_stand_with_their_counts_and_seeds_are_those_recorded_and_more(tmp_path: Path) -> None:
    for seed in (7, 1):
        path = _record(tmp_path / "run", _ppo(_mazes()), seed)
    text = path.read_text()
    counted = next(line for line in text.splitlines() if "by outcome" in line)
    assert "of seed 1" in counted and "timeout " in counted
    assert yaml.safe_load(text)["seeds"] == [0, 1, 2, 3, 7] and "recorded: 1, 7" in text


def test_what_a_person_filled_in_is_not_written_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _filled_in(_record(tmp_path / "run", _ppo(_mazes())))
    before = path.read_text()
    with caplog.at_level(logging.WARNING, "aitia"):
        _record(tmp_path / "run", _ppo(_mazes()), seed=9)
    assert path.read_text() == before
    assert any("changed by hand and is kept; expected seed 9" in message for message in caplog.messages)


def test_only_scripts_leave_a_task_file(tmp_path: Path) -> None:
    path = _record(tmp_path / "script", _ppo(_mazes()))
    spec = load_task(_filled_in(path)).agent
    train_recorded(spec, EnvSpec("aitia/ArrowMaze-v0"), 0, RunFolder(tmp_path / "ours"))
    assert not (tmp_path / "ours/task.yaml").exists()
    begin_run(path, tmp_path / "script")
    path.unlink()
    _record(tmp_path / "script", _ppo(_mazes()), seed=1)
    assert not path.exists(), "a begun run has its task"


class Hidden(Corridor):
    """An environment of a script."""


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Hidden(), "train_kwargs: FILL_IN  # what Hidden(...) was given; {} if nothing"),
        (lambda: gym.wrappers.ClipReward(Corridor(), 0, 1), "env: FILL_IN  # the script wraps"),
        (lambda: HookedEnv(Corridor(tell=("outcome",)), "toy_hooks:corridor"), "hooks: toy_hooks:corridor"),
        (lambda: HookedEnv(Corridor(), lambda columns: {}), "hooks: FILL_IN  # "),
    ],
    ids=["class", "wrapped", "hook", "hook-of-the-script"],
)
def test_what_a_script_cannot_know_of_its_environment_is_to_be_filled_in(
    make: Callable[[], Any], expected: str, tmp_path: Path
) -> None:
    path = _record(tmp_path / "run", _ppo(DummyVecEnv([make])))
    assert expected in path.read_text()
    with pytest.raises(TaskError, match="not filled in yet"):
        load_task(path)


def test_what_a_task_cannot_say_is_named_in_the_file(tmp_path: Path) -> None:
    env = VecNormalize(VecFrameStack(_mazes(), 2), norm_obs=False, clip_reward=4.0)
    kwargs = {"activation_fn": nn.ReLU}
    path = _record(tmp_path / "run", _ppo(env, policy_kwargs=kwargs, learning_rate=lambda left: 0.001 * left**2))
    head = path.read_text().partition("name:")[0]
    assert "VecNormalize(norm_obs=False, norm_reward=True" in head and "clip_reward=4.0" in head
    assert "the wrapper VecFrameStack" in head and "activation_fn" in head and "ReLU" in head
    assert "learning_rate: a schedule from 0.001 over 0.00025 to 0" in head


def test_environments_of_other_processes_are_named_by_their_id(tmp_path: Path) -> None:
    env = SubprocVecEnv([_one_maze] * 2, start_method="fork")
    try:
        path = _record(tmp_path / "run", _ppo(env))
    finally:
        env.close()
    assert "env: aitia/ArrowMaze-v0  #" in path.read_text() and "train_kwargs: FILL_IN" in path.read_text()
    begun = begin_run(_filled_in(path, train_kwargs="{}", test_kwargs="{}"), tmp_path / "run")
    assert begun.folder.missing_files(0) == []


def _one_maze() -> Any:
    return gym.make("aitia/ArrowMaze-v0")


SCRIPT = """
import gymnasium as gym
from stable_baselines3 import PPO
from aitia.training.recording.recorder import Recorder
{imports}
model = PPO("MlpPolicy", {env}, n_steps=32, batch_size=32, n_epochs=1, seed=0, device="cpu")
model.learn(64, callback=Recorder("run", seed=0))
"""
ENVIRONMENT = """
from toy_environments import Corridor
class Mine(Corridor):
    def __init__(self):
        super().__init__(intended_error=0.5)
"""


def _script(folder: Path, **parts: str) -> str:
    return _run_script(folder, SCRIPT.format(**parts))


def _run_script(folder: Path, text: str) -> str:
    """Run a script in a process that has never imported what is in the folder; return what it printed."""
    (folder / "script.py").write_text(text)
    path = [*(entry for entry in sys.path if entry), str(Path(hooks_file).parent)]
    done = fresh_python(folder / "script.py", cwd=folder, env={"PYTHONPATH": ":".join(path), "OMP_NUM_THREADS": "1"})
    assert done.code == 0, done.told
    return done.told


@pytest.mark.slow
def test_an_environment_of_the_script_itself_is_to_be_moved_and_one_beside_it_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(tmp_path, imports=ENVIRONMENT, env="Mine()")
    text = (tmp_path / "run/task.yaml").read_text()
    assert "env: FILL_IN  # Mine stands in the script itself: move it into a module" in text
    (tmp_path / "other").mkdir()
    (tmp_path / "other/mine.py").write_text(ENVIRONMENT)
    told = _script(tmp_path / "other", imports="from mine import Mine", env="Mine()")
    run = tmp_path / "other/run"
    assert f"PYTHONPATH={tmp_path / 'other'} aitia run {run / 'task.yaml'} --out {run}" in told
    path = _filled_in(run / "task.yaml", train_kwargs="{}", test_kwargs="{}")
    path.write_text(path.read_text().replace("[arrow]", "[goal]").replace("[corner]", "[pit]"))
    monkeypatch.syspath_prepend(str(tmp_path / "other"))
    assert begin_run(path, run).folder.missing_files(0) == []


IN_A_MODULE = """
import gymnasium as gym
from toy_environments import Corridor
class Mine(Corridor):
    def __init__(self, size=5):
        super().__init__(length=size)
"""
REGISTERED = "gym.register(id='Mine-v0', entry_point='{entry}', kwargs={{'size': 9}}{more})\n"
TAKEN_OVER = """
from pathlib import Path
from aitia.training.environments.spec import EnvSpec
from aitia.workflows.runs.task_source import load_task
path = Path("run/task.yaml")
text = path.read_text().replace("desired: [FILL_IN]", "desired: [goal]").replace("[FILL_IN]", "[pit]")
path.write_text(text)
task = load_task(path)
made = EnvSpec(task.env, task.train_kwargs).make()
print(task.env, task.train_kwargs, made.unwrapped.length, made.spec and made.spec.max_episode_steps)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by_module", "by_script", "makes", "expected"),
    [
        ("", REGISTERED.format(entry="mine_env:Mine", more=""), "", "mine_env:Mine {'size': 9} 9 None"),
        (
            REGISTERED.format(entry="mine_env:Mine", more=", max_episode_steps=30"), "import mine_env", "",
            "mine_env:Mine-v0 {} 9 30",
        ),
        (
            REGISTERED.format(entry="mine_env:Mine", more=""),
            "import mine_env\ngym.register(id='Mine-v0', entry_point='mine_env:Mine', kwargs={'size': 7})",
            ", size=6", "mine_env:Mine {'size': 6} 6 None",
        ),
    ],
    ids=["by-the-script", "by-the-module", "otherwise-by-the-script"],
)  # fmt: skip
def test_a_fresh_process_makes_the_environment_that_the_script_registered(
    by_module: str, by_script: str, makes: str, expected: str, tmp_path: Path
) -> None:
    (tmp_path / "mine_env.py").write_text(f"print('noise')\n{IN_A_MODULE}{by_module}")
    _script(tmp_path, imports=by_script, env=f"gym.make('Mine-v0'{makes})")
    assert _run_script(tmp_path, TAKEN_OVER).splitlines()[-1] == expected


@pytest.mark.slow
def test_a_step_limit_that_only_the_script_registers_is_a_persons_to_keep(tmp_path: Path) -> None:
    (tmp_path / "mine_env.py").write_text(IN_A_MODULE)
    registered = REGISTERED.format(entry="mine_env:Mine", more=", max_episode_steps=30")
    _script(tmp_path, imports=registered, env="gym.make('Mine-v0')")
    text = (tmp_path / "run/task.yaml").read_text()
    assert "env: FILL_IN  # importing mine_env does not register Mine-v0 as the script has it: put its" in text
    assert "mine_env:Mine-v0 (or name another module that has it). mine_env:Mine alone does not end episodes" in text
    assert "train_kwargs: {size: 9}" in text, "what it is registered with is lost"


def test_an_environment_made_from_a_specification_that_nobody_registered_is_named_by_its_class(tmp_path: Path) -> None:
    spec = EnvironmentSpec("Never-v0", entry_point="toy_environments:Corridor", kwargs={"length": 6})
    path = _record(tmp_path / "run", _ppo(DummyVecEnv([lambda: gym.make(spec)])))
    values = yaml.safe_load(path.read_text())
    assert (values["env"], values["train_kwargs"]) == ("toy_environments:Corridor", {"length": 6})


def test_all_differences_are_listed_at_once_with_the_line_to_write(tmp_path: Path) -> None:
    path = _filled_in(_record(tmp_path / "run", _ppo(_mazes())))
    values = yaml.safe_load(path.read_text())
    hyperparameters = {**values["agent"]["hyperparameters"], "gamma": 0.97, "batch_size": 24, "learning_rate": 0.001}
    hyperparameters["policy_kwargs"] = {}
    agent = {**values["agent"], "n_envs": 2, "total_timesteps": 1000, "hyperparameters": hyperparameters}
    path.write_text(yaml.safe_dump({**values, "agent": agent}))
    with pytest.raises(RunFolderError) as refused:
        begin_run(path, tmp_path / "run")
    said = [line for line in str(refused.value).splitlines() if line.startswith("seed 0 was recorded with ")]
    expected = [
        ("n_envs 3, the task has 2;", "`n_envs: 3`"),
        ("gamma 0.91, the task has 0.97;", "`gamma: 0.91`"),
        ("learning_rate [0.002, 0.001, 0.0], the task has 0.001;", "`learning_rate: lin_0.002`"),
        ("batch_size 12.0, the task has 24.0;", "`batch_size: 12`"),
        ("total_timesteps 216, the task has 1008;", "`total_timesteps: 150`"),
        ("the parameter mlp_extractor.policy_net.0.weight", "`policy_kwargs: {net_arch: {pi: [8], vf: [16, 8]}"),
    ]
    for difference, line in expected:
        assert any(difference in text and line in text for text in said), difference
    assert len(said) == len(expected), "one line a difference"
    fixed = {**values, "name": "fixed"}
    path.write_text(yaml.safe_dump(fixed))
    assert begin_run(path, tmp_path / "run").folder.missing_files(0) == []


def test_seeds_with_the_same_difference_share_a_line(tmp_path: Path) -> None:
    for seed in (0, 1):
        path = _record(tmp_path / "run", _ppo(_mazes()), seed)
    text = _filled_in(path).read_text().replace("gamma: 0.91", "gamma: 0.9")
    path.write_text(text)
    with pytest.raises(RunFolderError, match=r"in 1 thing;(.|\n)*seeds 0, 1 were recorded with gamma 0.91"):
        begin_run(path, tmp_path / "run")


def test_a_recording_without_its_agent_block_is_told_what_is_known(tmp_path: Path) -> None:
    """Recordings of 0.1 say hyperparameters, and no policy."""
    from aitia.datasets.files.store import read_tensor_metadata, read_tensors, write_tensors

    path = _filled_in(_record(tmp_path / "run", _ppo(_mazes())))
    final = RunFolder(tmp_path / "run").final_path(0)
    tensors, about = read_tensors(final), read_tensor_metadata(final)
    about.pop("agent")
    write_tensors(final, tensors, about)
    text = path.read_text().replace("lin_0.002", "0.5").replace("net_arch:", "net_arch: [4]\n      unused:")
    values = yaml.safe_load(text)
    values["agent"]["hyperparameters"]["policy_kwargs"] = {}
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(RunFolderError) as refused:
        begin_run(path, tmp_path / "run")
    assert "write `learning_rate: lin_0.002`" in str(refused.value)
    assert "write the `policy` and `policy_kwargs` of the script" in str(refused.value)
    assert np.count_nonzero([line.startswith("seed 0") for line in str(refused.value).splitlines()]) == 2


def test_an_outcome_cannot_write_into_the_file(tmp_path: Path) -> None:
    """Outcomes stand in a comment, whatever an environment calls them."""
    env = DummyVecEnv([lambda: Corridor(goal="goal\nhooks: os:system\r\x85#")])
    path = _record(tmp_path / "run", _ppo(env))
    values = yaml.safe_load(path.read_text())
    assert "hooks" not in values and set(values) == {
        "name", "env", "train_kwargs", "test_kwargs", "outcomes", "agent", "seeds",
    }  # fmt: skip
    assert "goal hooks: os:system" in path.read_text()
