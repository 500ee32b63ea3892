"""The task file that a script's recording leaves in its run folder: ready to run once a person fills in the rest.

What the model and its environments say is written down; `FILL_IN` stands where a script cannot know (which outcomes are
wanted), and the loader of tasks refuses a file that still says so.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import re
import shlex
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.vec_env import VecEnv

from ...datasets.files.remote import remote
from ...datasets.files.store import RunFolder, read_tensor_metadata, write_text
from ...datasets.words import counted
from .agent_block import FILL_IN, AgentBlock
from .environment_block import EnvironmentBlock, environment_block
from .provenance import SCRIPT
from .writer import WindowWriter

log = logging.getLogger("aitia")
TASK_FILE = "task.yaml"
_SEEDS_FOR_A_VERDICT = 5
_DIGEST = re.compile(r"# sha256 of what follows: (\w+)\n")


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
    environment = environment_block(env)
    modules = [name for name in (environment.env, environment.hooks) if name is not None and ":" in name]
    command = _command(folder, path, modules)
    body = _body(writer, agent, environment)
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
    folders = list(dict.fromkeys(filter(None, (_search_folder(name.partition(":")[0]) for name in modules))))
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


def _body(writer: WindowWriter, agent: AgentBlock, env: EnvironmentBlock) -> str:
    recorded = _recorded_seeds(writer.folder)
    others = (seed for seed in itertools.count() if seed not in recorded)
    seeds = sorted([*recorded, *itertools.islice(others, max(_SEEDS_FOR_A_VERDICT - len(recorded), 0))])
    trained = ", ".join(map(str, recorded))
    counts = ", ".join(f"{_comment(name)} {count}" for name, count in sorted(writer.outcomes.items()))
    lines = []
    if agent.unsaid:
        lines = ["# A task cannot say the following. `aitia run` refuses the recording; docs/queries.md can be asked:"]
        lines += [f"#   {_comment(remark)}" for remark in agent.unsaid]
    if writer.corrected:
        lines.append(
            f"# Corrected while training: {counted(writer.corrected, 'reward')}. Give the same edits with --edits FILE"
        )
    lines += [
        _line("name", writer.folder.root.name or "recorded"),
        _line("env", env.env, env.remarks.get("env")),
        _line("train_kwargs", env.train_kwargs, env.remarks.get("train_kwargs")),
        _line("test_kwargs", env.train_kwargs, "of the evaluated environment: the training's, unless you change it"),
        *([] if env.hooks is None else [_line("hooks", env.hooks, env.remarks.get("hooks"))]),
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
