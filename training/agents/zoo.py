"""Agents of rl-zoo3 and saved models of other versions of Stable-Baselines3, read without unpickling anything.

rl-zoo3 writes `ALGO/ENV_1/ENV.zip` and `ALGO/ENV_1/ENV/{args.yml, config.yml, vecnormalize.pkl}`. The YAML files hold
Python tags and expressions, the zip pickles: here tags are read from a closed list, expressions are literals or
`dict(...)` of literals, and of the zip only JSON, text and tensors (`torch.load(weights_only=True)`) are looked at.
"""

from __future__ import annotations

import ast
import io
import logging
import pickle
import zipfile
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import stable_baselines3
import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from ...datasets.errors import InputError, TaskError
from ...datasets.files.limits import GIB, BoundedLoader, parse_json, read_limit, read_yaml
from ...datasets.files.remote import local_path
from .spec import ALGORITHMS, PPO_DEFAULTS, AgentSpec

log = logging.getLogger("aitia")
_HANDLED = ("policy", "n_envs", "n_timesteps", "policy_kwargs")
_CONTRIB = {"ppo_lstm": "RecurrentPPO", "maskableppo": "MaskablePPO"}
_NOTHING: tuple[Any, ...] = (None, False, "", [], {})
_SHARED = "mlp_extractor.shared_net."


class SavedModel(NamedTuple):
    """What is read of a zip that `model.save` wrote.

    Attributes:
        parameters: of the policy, by name.
        num_timesteps: environment steps that it was trained for.
        version: Stable-Baselines3's; None where the zip does not say.
    """

    parameters: dict[str, Tensor]
    num_timesteps: int
    version: str | None


class _Loader(BoundedLoader):
    """Plain YAML, ordered dictionaries and tuples."""


def _ordered(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> dict[Any, Any]:
    pairs = loader.construct_sequence(node, deep=True)
    return dict(pairs[0]) if pairs else {}


def _tuple(loader: yaml.SafeLoader, node: yaml.SequenceNode) -> list[Any]:
    return loader.construct_sequence(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered)
_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def read_zoo_folder(folder: str | Path, ignore: Collection[str] = ()) -> AgentSpec:
    """Return the `agent` block of a task for a model folder of rl-zoo3, such as `ppo/CartPole-v1_1`.

    Hyperparameters that the folder does not name are Stable-Baselines3's own, as in rl-zoo3, not aitia's. The
    environment and its arguments stand in `args.yml` and belong to the task, not to its agent.

    Args:
        folder: the folder of the model.
        ignore: names of what a task cannot say (an error lists them) and is to be left out. The agent is then another
            one than the folder's.

    Raises:
        InputError: not such a folder, or one that says what a task cannot: normalisation, wrappers, classes.
        TaskError: an algorithm, policy or hyperparameter that is not supported.
    """
    config_path = _config_path(local_path(folder, "a model folder of rl-zoo3"))
    config = _read_yaml(config_path)
    arguments = _read_yaml(config_path.with_name("args.yml"))
    algorithm = _algorithm(str(arguments.get("algo") or config_path.parents[2].name))
    steps = arguments.get("n_timesteps") or -1
    known = _parameters(algorithm)
    policy_kwargs, unsupported = _policy_kwargs(config.get("policy_kwargs"))
    hyperparameters = {name: value for name, value in config.items() if name in known and name not in _HANDLED}
    unsupported |= {k: v for k, v in config.items() if k not in (*known, *_HANDLED) and v not in _NOTHING}
    if hyperparameters.pop("use_sde", False):
        unsupported["use_sde"] = True
    refused = {name: value for name, value in unsupported.items() if name not in ignore}
    if refused:
        raise InputError(
            f"{config_path} has {', '.join(f'{k}: {v}' for k, v in refused.items())}, which the agent block of a task "
            "cannot say; expected a training without them. read_zoo_folder(..., ignore=[names]) leaves them out: "
            "another agent then (statistics of vecnormalize.pkl are a pickle and are not read)"
        )
    if policy_kwargs:
        hyperparameters["policy_kwargs"] = policy_kwargs
    archive = config_path.parent.with_name(f"{config_path.parent.name}.zip")
    if archive.exists():
        _warn_of_other_version(archive)
    try:
        spec = AgentSpec(
            algorithm=algorithm,
            policy=config["policy"],
            total_timesteps=int(steps if steps > 0 else config["n_timesteps"]),
            n_envs=int(config.get("n_envs") or 1),
            hyperparameters={**_defaults(algorithm, known), **hyperparameters},
        )
    except KeyError as error:
        raise InputError(
            f"{config_path} has no {error}; expected the hyperparameters of a training by rl-zoo3"
        ) from error
    except ValidationError as error:
        problems = "; ".join(f"{item['loc'][-1]}: {item['msg']}" for item in error.errors())
        raise TaskError(f"{config_path}: {problems}") from error
    spec.require_valid()
    return spec


def read_saved_model(path: str | Path) -> SavedModel:
    """Return parameters and training steps of a zip that `model.save` wrote, with any version of Stable-Baselines3.

    To record what it learns further, load `parameters` into the policy of a new model and set `model.num_timesteps`;
    docs/recording.md has the lines.

    Raises:
        InputError: not such a zip, a policy that is more than tensors, or one with layers that policies no longer have.
    """
    path = local_path(path, "a saved model")
    version = _warn_of_other_version(path)
    try:
        data = parse_json(_read_member(path, "data").decode())
    except ValueError as error:
        raise InputError(f"{path}: `data` is not JSON ({error}), expected it as `model.save` writes it") from error
    try:
        parameters = torch.load(io.BytesIO(_read_member(path, "policy.pth")), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise InputError(
            f"{path}: policy.pth is not a dictionary of tensors alone, expected one as `model.save` writes it; it is "
            "not loaded, for a pickle can run any code"
        ) from error
    shared = [name for name in parameters if name.startswith(_SHARED)]
    if shared:
        raise InputError(
            f"{path} has layers that actor and critic share ({shared[0]}): Stable-Baselines3 has none since 1.8, so "
            "nothing can be done with it here. Train it again, or keep to the version that wrote it"
        )
    steps = data.get("num_timesteps", 0)
    return SavedModel(_with_three_extractors(parameters), steps if isinstance(steps, int) else 0, version)


def _with_three_extractors(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters with the names of the features extractor that policies have since SB3 1.8."""
    renamed = dict(parameters)
    if "action_net.weight" in renamed and not any(name.startswith("pi_features_extractor.") for name in renamed):
        own = {name: value for name, value in renamed.items() if name.startswith("features_extractor.")}
        renamed |= {f"{part}_{name}": value for part in ("pi", "vf") for name, value in own.items()}
    return renamed


def _config_path(folder: Path) -> Path:
    paths = [path for path in (folder / "config.yml", *sorted(folder.glob("*/config.yml"))) if path.is_file()]
    if len(paths) != 1:
        raise InputError(
            f"{folder} has {len(paths)} config.yml, expected one: a model folder of rl-zoo3 such as ppo/CartPole-v1_1, "
            "with CartPole-v1/config.yml and CartPole-v1/args.yml in it"
        )
    return paths[0].resolve()


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = read_yaml(path, _Loader)  # a SafeLoader with two more tags
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; expected plain values, as rl-zoo3 writes them") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} holds a {type(values).__name__}, expected a mapping as rl-zoo3 writes it")
    return values


def _algorithm(name: str) -> str:
    by_lower = {known.lower(): known for known in ALGORITHMS}
    return by_lower.get(name.lower(), _CONTRIB.get(name.lower(), name.upper()))


def _parameters(algorithm: str) -> Collection[str]:
    """Return the hyperparameters that an algorithm takes; none where it is not supported (AgentSpec says so)."""
    return AgentSpec(algorithm=algorithm).parameters if algorithm in ALGORITHMS else ()


def _defaults(algorithm: str, known: Collection[str]) -> dict[str, Any]:
    """Return Stable-Baselines3's values where a task has others of aitia's own."""
    if algorithm not in ALGORITHMS:
        return {}
    parameters = AgentSpec(algorithm=algorithm).parameters
    return {name: parameters[name].default for name in PPO_DEFAULTS if name in known}


def _policy_kwargs(written: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `policy_kwargs`, which rl-zoo3 writes as a Python expression, and what of them a task cannot say."""
    if written in _NOTHING:
        return {}, {}
    if isinstance(written, dict):
        return dict(written), {}
    try:
        call = ast.parse(str(written).strip(), mode="eval").body
    except SyntaxError:
        return {}, {"policy_kwargs": written}
    if not _is_dict(call):
        return {}, {"policy_kwargs": written}
    kept: dict[str, Any] = {}
    unsupported: dict[str, Any] = {}
    for keyword in call.keywords:
        try:
            kept[str(keyword.arg)] = _literal(keyword.value)
        except ValueError:
            unsupported[f"policy_kwargs.{keyword.arg}"] = ast.unparse(keyword.value)
    arch = kept.get("net_arch")
    if isinstance(arch, list) and len(arch) == 1 and isinstance(arch[0], dict):
        kept["net_arch"] = arch[0]  # as it was written before SB3 1.8
    return kept, unsupported


def _is_dict(node: ast.expr) -> TypeGuard[ast.Call]:
    is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict"
    return is_call and not node.args and all(keyword.arg for keyword in node.keywords)  # type: ignore[attr-defined]


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal, or of `dict(...)`, lists and tuples of literals; nothing is called.

    Raises:
        ValueError: it is something else.
    """
    if _is_dict(node):
        return {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(part) for part in node.elts]
    return ast.literal_eval(node)


def _read_member(path: Path, name: str) -> bytes:
    try:
        with zipfile.ZipFile(path) as archive:
            if (size := archive.getinfo(name).file_size) > (limit := read_limit()):
                raise InputError(f"{path}: {name} has {size / GIB:.1f} GiB, at most {limit / GIB:g} are read")
            return archive.read(name)  # no more than that, whatever the archive holds
    except (OSError, zipfile.BadZipFile, zlib.error, RuntimeError, KeyError) as error:
        raise InputError(
            f"{path} cannot be read ({error}); expected a zip as `model.save` of Stable-Baselines3 writes it"
        ) from error


def _warn_of_other_version(path: Path) -> str | None:
    """Say where a zip was saved by another version of Stable-Baselines3; return that version."""
    try:
        version = _read_member(path, "_stable_baselines3_version").decode().strip()
    except InputError:
        version = ""
    try:
        system = _read_member(path, "system_info.txt").decode(errors="replace")
    except InputError:
        system = ""
    installed = stable_baselines3.__version__
    if version.split(".")[:2] == installed.split(".")[:2]:
        return version
    with_what = [
        line.strip("- \r") for line in system.splitlines() if line.startswith(("- Python", "- Gym", "- OpenAI"))
    ]
    log.warning(
        "%s was saved by %s%s, %s is installed. Parameters are read by name, and one that does not fit is an error; "
        "defaults of hyperparameters may have changed%s",
        path, f"Stable-Baselines3 {version}" if version else "an unknown version of Stable-Baselines3",
        f" ({', '.join(with_what)})" if with_what else "", installed,
        ". Before 2.0 environments were of Gym, not Gymnasium: their observations and rewards may differ too"
        if version.split(".")[0] in ("0", "1") else "",
    )  # fmt: skip
    return version or None
