"""The task file that a script's recording leaves in its run folder: ready to run once a person fills in the rest.

What the model and its environments say is written down; `FILL_IN` stands where a script cannot know (which outcomes are
wanted), and the loader of tasks refuses a file that still says so.
"""

from __future__ import annotations

import hashlib
import logging
import math
import re
import shlex
import sys
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import yaml
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from ...datasets.files.remote import remote
from ...datasets.files.store import RunFolder, read_tensor_metadata, write_text
from ...datasets.words import counted
from ..edits.edit import CorrectedRewards
from ..environments.hooks import HookedEnv
from ..environments.registered import maker, module_of, registers
from .agent_block import FILL_IN, AgentBlock, is_plain, plain
from .provenance import SCRIPT
from .writer import WindowWriter

log = logging.getLogger("aitia")
TASK_FILE = "task.yaml"
_OWN_IDS = ("gymnasium", "aitia")  # packages whose ids are known without importing anything else
_SEEDS_FOR_A_VERDICT = 5
_HARMLESS = (Monitor, OrderEnforcing, PassiveEnvChecker, HookedEnv, CorrectedRewards)
_DIGEST = re.compile(r"# sha256 of what follows: (\w+)\n")


class _Environment(NamedTuple):
    """What a task says of the training environment, with a remark for each key where there is something to say."""

    env: str
    train_kwargs: dict[str, Any] | str = FILL_IN
    hooks: str | None = None
    remarks: Mapping[str, str] = {}


def write_task(writer: WindowWriter, agent: Callable[[], AgentBlock | None], env: VecEnv | None) -> None:
    """Leave `task.yaml` next to a recording that is whole, and log what to do with it; whatever comes of it.

    A file that a person has changed is kept; so is the task of a run that was begun already.

    Args:
        writer: of the recording that ended.
        agent: makes the `agent` block; None where no task can train like this: then there is no file.
        env: the model's environments; None: not known.
    """
    try:
        block = agent()
        if block is not None:
            _write(writer, block, env)
    except Exception as error:  # environments of any make are asked how they were made
        log.warning("%s: no task file was written: %s: %s", writer.folder.root, type(error).__name__, error)


def _write(writer: WindowWriter, agent: AgentBlock, env: VecEnv | None) -> None:
    folder, seed = writer.folder, writer.seed
    path = folder.root / TASK_FILE
    if folder.manifest_path.exists():
        return
    of_loop = {"env": "the environment of the loop: a Gymnasium id, or module:function"}
    found = _Environment(FILL_IN, remarks=of_loop) if env is None else _environment(env)
    modules = [name for name in (found.env, found.hooks) if name is not None and ":" in name]
    command = _command(folder, path, modules)
    body = _body(writer, agent, found)
    if path.exists() and not _as_written(path.read_text(encoding="utf-8")):
        log.warning("%s was changed by hand and is kept; expected seed %d in its `seeds`: %s", path, seed, command)
        return
    head = (
        f"# Written by aitia after the recording of seed {seed}. Fill in what says {FILL_IN}, then:\n#   {command}\n"
        "# docs/task-file.md says what each key means. Further recordings write the file again, until you change it.\n"
        f"# sha256 of what follows: {_digest(body)}\n"
    )
    write_text(path, head + body)
    if agent.unsaid:
        log.warning("%s describes the training of seed %d, but a task cannot say all of it: see there", path, seed)
    else:
        log.warning("%s describes the training of seed %d. Fill in what says %s: %s", path, seed, FILL_IN, command)


def unfilled(text: str) -> list[str]:
    """Return the lines of a task file that a person has still to fill in."""
    lines = enumerate(text.splitlines(), start=1)
    return [f"line {number}: {line.strip()}" for number, line in lines if FILL_IN in line.partition("#")[0]]


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()[:16]


def _as_written(text: str) -> bool:
    """Return whether a task file is one of ours that nobody has changed."""
    mark = _DIGEST.search(text)
    return mark is not None and mark[1] == _digest(text[mark.end() :])


def _command(folder: RunFolder, path: Path, modules: Sequence[str]) -> str:
    """Return the command that takes the recording over."""
    folders = list(dict.fromkeys(found for name in modules if (found := _search_folder(name.partition(":")[0]))))
    before = f"PYTHONPATH={shlex.quote(':'.join(folders))} " if folders else ""
    out = shlex.quote(str(folder.root))
    if remote(path) is not None:
        return f"{before}aitia run {TASK_FILE} --out {out}  # next to a copy of {path}: task files are local"
    return f"{before}aitia run {shlex.quote(str(path))} --out {out}"


def _search_folder(module: str) -> str | None:
    """Return the folder in which a module is looked for; None where Python looks there anyway, or it is not known."""
    root = sys.modules.get(module.partition(".")[0])
    file = getattr(root, "__file__", None)
    if file is None or module == FILL_IN:
        return None
    folder = Path(file).resolve().parents[1 if hasattr(root, "__path__") else 0]
    installed = [Path(place).resolve() for place in sysconfig.get_paths().values()]
    return None if any(folder.is_relative_to(place) for place in installed) else str(folder)


def _body(writer: WindowWriter, agent: AgentBlock, env: _Environment) -> str:
    recorded = _recorded_seeds(writer.folder)
    new = (number for number in range(len(recorded) + _SEEDS_FOR_A_VERDICT) if number not in recorded)
    seeds = sorted([*recorded, *(next(new) for _ in range(_SEEDS_FOR_A_VERDICT - len(recorded)))])
    trained = ", ".join(map(str, recorded))
    lines = []
    if agent.unsaid:
        lines.append(
            "# A task cannot say the following. `aitia run` refuses the recording; docs/queries.md can be asked:"
        )
        lines += [f"#   {_comment(remark)}" for remark in agent.unsaid]
    if writer.corrected:
        lines.append(
            f"# Corrected while training: {counted(writer.corrected, 'reward')}. Give the same edits with --edits FILE"
        )
    remarks = dict(env.remarks)
    remarks["test_kwargs"] = "of the evaluated environment: the training's, unless you change it"
    counts = ", ".join(f"{_comment(name)} {count}" for name, count in sorted(writer.outcomes.items()))
    lines.append(_line("name", writer.folder.root.name or "recorded"))
    for key in ("env", "train_kwargs"):
        lines.append(_line(key, getattr(env, key), remarks.get(key)))
    lines.append(_line("test_kwargs", env.train_kwargs, remarks["test_kwargs"]))
    if env.hooks is not None:
        lines.append(_line("hooks", env.hooks, remarks.get("hooks")))
    lines += [
        f"# Episodes of the training of seed {writer.seed}, by outcome: {counts or 'none ended'}",
        "outcomes:",
        f"  desired: [{FILL_IN}]  # what you want",
        f"  misbehaved: [{FILL_IN}]  # what a competent agent does that you do not want; any other is incompetent",
        _line("agent", agent.values),
        _line("seeds", seeds, f"recorded: {trained}; the others are trained (a verdict needs {_SEEDS_FOR_A_VERDICT})"),
    ]
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any, remark: str | None = None) -> str:
    """Return one key of the file, with a remark behind it, or above where the value takes several lines."""
    leaf = not isinstance(value, dict) or not any(isinstance(part, dict) for part in value.values())
    shown = value if leaf else {key: value}
    text = yaml.safe_dump(shown, default_flow_style=leaf or None, sort_keys=False, allow_unicode=True, width=math.inf)
    text = text.removesuffix("...\n").rstrip("\n")
    text = f"{key}: {text}" if leaf else text
    if remark is None:
        return text
    return f"# {_comment(remark)}\n{text}" if "\n" in text else f"{text}  # {_comment(remark)}"


def _comment(text: str) -> str:
    """Return text that stays in its line."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def _recorded_seeds(folder: RunFolder) -> list[int]:
    finals = folder.root.glob("checkpoints/seed=*/final.safetensors")
    of_scripts = [path for path in finals if read_tensor_metadata(path).get("trained_by") == SCRIPT]
    return sorted(int(path.parent.name.removeprefix("seed=")) for path in of_scripts)


def _environment(vec_env: VecEnv) -> _Environment:
    """Return what a task says of the environments of a model."""
    envs = getattr(vec_env.unwrapped, "envs", None)
    if not envs:  # in other processes: a spec may not be picklable, and would end them
        return _of_text(str(vec_env.env_method("__str__", indices=[0])[0]))
    found = [_of_env(env) for env in envs]
    if any(other != found[0] for other in found[1:]):
        names = sorted({f"{other.env} {other.train_kwargs}" for other in found})
        return _Environment(FILL_IN, remarks={"env": f"the script's environments differ: {'; '.join(names)}"})
    return found[0]


def _of_env(env: gym.Env[Any, Any]) -> _Environment:
    spec, wrappers, limits, hook = env.unwrapped.spec, [], [], None
    while isinstance(env, gym.Wrapper):
        if isinstance(env, HookedEnv):
            hook = env.hook
        if isinstance(env, TimeLimit) and spec is not None:
            limits.append(int(env._max_episode_steps))
        elif not isinstance(env, _HARMLESS):
            wrappers.append(type(env).__name__)
        env = env.env
    found = _of_class(type(env)) if spec is None else _of_spec(spec, min(limits, default=None))
    if wrappers:
        what = f"{found.env} {found.train_kwargs if found.train_kwargs != FILL_IN else ''}".rstrip()
        wrapped = f"the script wraps {what} in {', '.join(wrappers)}: name a function that does so, module:function"
        found = _Environment(FILL_IN, {}, remarks={"env": wrapped})
    if hook is None:
        return found
    name, remark = _name_of(hook)
    return found._replace(hooks=name, remarks={**found.remarks, **({"hooks": remark} if remark else {})})


def _of_spec(spec: Any, limit: int | None) -> _Environment:
    """Return an environment that `gymnasium.make` made: its id, and the arguments that are not its registered ones.

    Args:
        spec: its specification.
        limit: steps after which its episodes are cut; None: never.
    """
    registered = gym.registry.get(spec.id)
    given = {name: value for name, value in spec.kwargs.items() if name != "render_mode"}
    name, remark = _id(spec.id, spec.entry_point)
    if name is None:
        name, remark = _unregistered(spec.id, spec.entry_point, limit)
        usual = {}
    else:
        usual = {} if registered is None else registered.kwargs
        if limit != (None if registered is None else registered.max_episode_steps):
            given["max_episode_steps"] = -1 if limit is None else limit  # -1: none, to gymnasium
    changed = {name: value for name, value in given.items() if name not in usual or not _same(usual[name], value)}
    remarks = {}
    odd = [name for name, value in changed.items() if not is_plain(value)]
    if odd:
        remarks["train_kwargs"] = f"a task has plain values only: {', '.join(f'{n}={changed[n]!r}' for n in odd)}"
    kwargs = FILL_IN if odd else {name: plain(value) for name, value in changed.items()}
    return _Environment(name, kwargs, remarks={**remarks, **({"env": remark} if remark else {})})


def _same(usual: Any, given: Any) -> bool:
    return usual is given or (is_plain(given) and plain(usual) == plain(given))


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
    if limit is not None:
        return FILL_IN, (
            f"{importing}: put its gymnasium.register(...) there and name it, {module}:{name} (or name another module "
            f"that has it). {made} alone does not end episodes after {counted(limit, 'step')}"
        )
    if made.partition(":")[2].isidentifier():
        return made, f"what {name} makes: {importing}"
    return FILL_IN, f"{importing}: put its gymnasium.register(...) there and name it, {module}:{name}"


def _of_class(kind: type) -> _Environment:
    """Return an environment that the script made from its class: what its constructor was given is not known."""
    name, remark = _name_of(kind)
    remarks = {} if remark is None else {"env": remark}
    if kind.__init__ is object.__init__:  # type: ignore[misc]
        return _Environment(name, {}, remarks=remarks)
    remarks["train_kwargs"] = f"what {kind.__name__}(...) was given; {{}} if nothing"
    return _Environment(name, FILL_IN, remarks=remarks)


def _name_of(found: Any) -> tuple[str, str | None]:
    """Return a class or function as `module:name`, and a remark where no other process can import it."""
    module, name = getattr(found, "__module__", "__main__"), getattr(found, "__qualname__", type(found).__name__)
    if module != "__main__" and name.isidentifier():
        return f"{module}:{name}", None
    return FILL_IN, f"{name} stands in the script itself: move it into a module of its own and name it, module:{name}"


def _of_text(text: str) -> _Environment:
    """Return an environment of another process from how it prints itself: <Wrapper<Class<id>>>."""
    parts = text.strip("<>").split("<")
    named = gym.registry.get(parts[-1])
    remark = f"made in another process, where it prints itself as {text}"
    if named is None:
        return _Environment(FILL_IN, remarks={"env": f"{remark}: a Gymnasium id, or module:function"})
    known = {kind.__name__ for kind in (*_HARMLESS, TimeLimit)}
    if set(parts[:-2]) - known:
        return _Environment(FILL_IN, remarks={"env": f"{remark}: name a function that wraps it so, module:function"})
    name, own = _id(named.id, named.entry_point)
    given = "what it was made with; {} if nothing"
    if name is None:
        name, own = _unregistered(named.id, named.entry_point, named.max_episode_steps)
        given = f"what it was made with, and what it is registered with: {named.kwargs}"
    remarks = {"env": own or remark, "train_kwargs": given}
    return _Environment(name, FILL_IN, remarks=remarks)
