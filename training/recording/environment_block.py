"""The environment's keys of a task, from the environments that a script trained in: what makes the same ones again.

A task names an environment by a Gymnasium id or by `module:function`. Where no other process could make it by such a
name, `FILL_IN` stands there, and a remark says what a person has to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium as gym
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from ...datasets.words import counted
from ..edits.edit import CorrectedRewards
from ..environments.hooks import HookedEnv
from ..environments.registered import maker, module_of, registers
from .agent_block import FILL_IN, is_plain, plain

_OWN_IDS = ("gymnasium", "aitia")  # packages whose ids are known without importing anything else
_HARMLESS = (Monitor, OrderEnforcing, PassiveEnvChecker, HookedEnv, CorrectedRewards)


class EnvironmentBlock(NamedTuple):
    """What a task says of the training environment.

    Attributes:
        env, train_kwargs, hooks: the task's keys; `FILL_IN` where the script does not show the value.
        remarks: by key, what a person should know of it; None: nothing.
    """

    env: str
    train_kwargs: dict[str, Any] | str = FILL_IN
    hooks: str | None = None
    remarks: Mapping[str, str | None] = {}


def environment_block(vec_env: VecEnv | None) -> EnvironmentBlock:
    """Return what a task says of the environments of a model; None: those of a loop, which are not known."""
    if vec_env is None:
        return _to_fill_in("the environment of the loop: a Gymnasium id, or module:function")
    envs = getattr(vec_env.unwrapped, "envs", None)
    if not envs:  # in other processes: a spec may not be picklable, and would end them
        return _of_text(str(vec_env.env_method("__str__", indices=[0])[0]))
    blocks = [_of_env(env) for env in envs]
    if any(block != blocks[0] for block in blocks):
        names = sorted({f"{block.env} {block.train_kwargs}" for block in blocks})
        return _to_fill_in(f"the script's environments differ: {'; '.join(names)}")
    return blocks[0]


def _to_fill_in(remark: str) -> EnvironmentBlock:
    return EnvironmentBlock(FILL_IN, remarks={"env": remark})


def _of_env(env: gym.Env[Any, Any]) -> EnvironmentBlock:
    spec, wrappers, limits, hook = env.unwrapped.spec, [], [], None
    while isinstance(env, gym.Wrapper):
        if isinstance(env, HookedEnv):
            hook = env.hook
        if isinstance(env, TimeLimit) and spec is not None:
            limits.append(int(env._max_episode_steps))
        elif not isinstance(env, _HARMLESS):
            wrappers.append(type(env).__name__)
        env = env.env
    block = _of_class(type(env)) if spec is None else _of_spec(spec, min(limits, default=None))
    if wrappers:
        what = f"{block.env} {block.train_kwargs if block.train_kwargs != FILL_IN else ''}".rstrip()
        wrapped = f"the script wraps {what} in {', '.join(wrappers)}: name a function that does so, module:function"
        block = _to_fill_in(wrapped)._replace(train_kwargs={})
    if hook is None:
        return block
    name, remark = _name_of(hook)
    return block._replace(hooks=name, remarks={**block.remarks, "hooks": remark})


def _of_spec(spec: Any, limit: int | None) -> EnvironmentBlock:
    """Return an environment that `gymnasium.make` made: its id, and the arguments that are not its registered ones.

    Args:
        spec: its specification.
        limit: steps after which its episodes are cut; None: never.
    """
    registered = gym.registry.get(spec.id)
    arguments = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    name, remark = _id(spec.id, spec.entry_point)
    usual: Mapping[str, Any] = {}
    if name is None:
        name, remark = _unregistered(spec.id, spec.entry_point, limit)
    else:
        usual = {} if registered is None else registered.kwargs
        if limit != (None if registered is None else registered.max_episode_steps):
            arguments["max_episode_steps"] = -1 if limit is None else limit  # -1: none, to gymnasium
    changed = {key: value for key, value in arguments.items() if key not in usual or not _same(usual[key], value)}
    odd = ", ".join(f"{key}={value!r}" for key, value in changed.items() if not is_plain(value))
    if odd:
        odd = f"a task has plain values only: {odd}"
        return EnvironmentBlock(name, FILL_IN, remarks={"train_kwargs": odd, "env": remark})
    return EnvironmentBlock(name, {key: plain(value) for key, value in changed.items()}, remarks={"env": remark})


def _same(usual: Any, value: Any) -> bool:
    return usual is value or (is_plain(value) and plain(usual) == plain(value))


def _id(name: str, entry_point: Any) -> tuple[str | None, str | None]:
    """Return a Gymnasium id with the module that registers it, and a remark where a person has to name that.

    None in place of the id: importing the module of the environment does not register it as it is registered here.
    """
    module = module_of(entry_point)
    if module.partition(".")[0] in _OWN_IDS:
        return name, None
    if module in ("", "__main__"):
        return FILL_IN, f"the script itself registers {name}: put that into a module and name it, module:{name}"
    return (f"{module}:{name}", None) if registers(module, name) else (None, None)


def _unregistered(name: str, entry_point: Any, limit: int | None) -> tuple[str, str | None]:
    """Return what makes an environment whose id only the script registers: its class, or what is to be filled in."""
    module, made = module_of(entry_point), maker(entry_point)
    importing = f"importing {module} does not register {name} as the script has it"
    put = f"{importing}: put its gymnasium.register(...) there and name it, {module}:{name}"
    if limit is not None:
        return FILL_IN, (
            f"{put} (or name another module that has it). {made} alone does not end episodes after "
            f"{counted(limit, 'step')}"
        )
    return (made, f"what {name} makes: {importing}") if made.partition(":")[2].isidentifier() else (FILL_IN, put)


def _of_class(kind: type) -> EnvironmentBlock:
    """Return an environment that the script made from its class: the arguments of its constructor are not known."""
    name, remark = _name_of(kind)
    if kind.__init__ is object.__init__:  # type: ignore[misc]
        return EnvironmentBlock(name, {}, remarks={"env": remark})
    arguments = f"what {kind.__name__}(...) was given; {{}} if nothing"
    return EnvironmentBlock(name, remarks={"env": remark, "train_kwargs": arguments})


def _name_of(thing: Any) -> tuple[str, str | None]:
    """Return a class or function as `module:name`, and a remark where no other process can import it."""
    module, name = getattr(thing, "__module__", "__main__"), getattr(thing, "__qualname__", type(thing).__name__)
    if module != "__main__" and name.isidentifier():
        return f"{module}:{name}", None
    return FILL_IN, f"{name} stands in the script itself: move it into a module of its own and name it, module:{name}"


def _of_text(text: str) -> EnvironmentBlock:
    """Return an environment of another process from how it prints itself: <Wrapper<Class<id>>>."""
    parts = text.strip("<>").split("<")
    named = gym.registry.get(parts[-1])
    remark = f"made in another process, where it prints itself as {text}"
    if named is None:
        return _to_fill_in(f"{remark}: a Gymnasium id, or module:function")
    if set(parts[:-2]) - {kind.__name__ for kind in (*_HARMLESS, TimeLimit)}:
        return _to_fill_in(f"{remark}: name a function that wraps it so, module:function")
    name, own = _id(named.id, named.entry_point)
    arguments = "what it was made with; {} if nothing"
    if name is None:
        name, own = _unregistered(named.id, named.entry_point, named.max_episode_steps)
        arguments = f"what it was made with, and what it is registered with: {named.kwargs}"
    return EnvironmentBlock(name, remarks={"env": own or remark, "train_kwargs": arguments})
