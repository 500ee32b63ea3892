"""Exchange with Minari, the format of offline reinforcement-learning datasets: a run's transitions out, others' in.

Out: the transitions of a run as a Minari dataset, with what the environment reported in `infos`. In: a Minari dataset
as transitions tables, to be queried like those of a run. A dataset has no policy, so nothing of it can be attributed.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import logging
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from gymnasium import spaces

from ...datasets.arrays import Array, array_format, decode_actions, decode_arrays, fields
from ...datasets.errors import InputError
from ...datasets.files.store import RunFolder, read_table, read_table_schema, read_tensors
from ...datasets.manifest import Manifest
from ...datasets.schema import COMPONENT_PREFIX
from ..environments.contract import Told
from ..environments.spaces import ObservationForm, Space, env_action, policy_observation_space, require_action_space
from ..environments.spec import EnvSpec
from .provenance import EarlierTraining
from .window import Collected, Learned, Step, at, stacked
from .writer import WindowWriter

log = logging.getLogger("aitia")
DEFAULT_ROWS = 4096
_NUMBERS = ("intended_reward", "untampered_reward")
_TEXTS = ("context", "outcome")
_DESCRIPTION = (
    "Training transitions recorded by aitia. infos[...][k + 1] belongs to step k; component_* are reward components. "
    "Episodes that the end of the training cut are marked truncated. Where the last observation of an episode was not "
    "recorded, the one before stands in its place."
)


def export_minari(
    run: str | Path | RunFolder, dataset_id: str, env: EnvSpec | None = None, seeds: Sequence[int] | None = None,
    data_format: str | None = None, description: str = _DESCRIPTION,
) -> Any:  # fmt: skip
    """Write the transitions of a run as a Minari dataset, one episode after another.

    Observations are those of the environment's own space; Box actions are as the environment got them, clipped.
    `infos` hold `seed`, and what the environment reported: `intended_reward, untampered_reward, context, outcome,
    component_*` (NaN and empty text: not reported).

    Args:
        run: the run folder.
        dataset_id: Minari's, such as `aitia/arrow-maze-v0`; it must be new. Minari keeps it in MINARI_DATASETS_PATH.
        env: the training environment; None: that of `run.json`.
        seeds: which trainings; None: all.
        data_format: Minari's; None: `hdf5` where h5py is installed, else `arrow`.
        description: what the dataset says of itself.

    Returns:
        The `minari.MinariDataset`.

    Raises:
        InputError: Minari is not installed, the run has no such seed, or was recorded under VecNormalize.
        RunFolderError: a file of the run is missing or damaged.
    """
    minari = _minari()
    folder = RunFolder.at(run)
    if env is None:
        task = Manifest.read(folder).task
        env = EnvSpec(task["env"], task["train_kwargs"])
    there = sorted(int(path.name[5:]) for path in folder.root.glob("checkpoints/seed=*"))
    chosen = there if seeds is None else list(seeds)
    if not chosen or not set(chosen) <= set(there):
        raise InputError(f"seeds {chosen} were given, {folder.root} has trainings of {there}: expected some of them")
    for seed in chosen:
        if any(name.startswith("vecnormalize.") for name in read_tensors(folder.final_path(seed))):
            raise InputError(
                f"seed {seed} in {folder.root} was recorded under VecNormalize: its observations are not the "
                "environment's; expected a training without it"
            )
    made = env.make()
    try:
        columns, of_env = _reported_columns(folder, chosen), (made.observation_space, made.action_space)
        episodes = (episode for seed in chosen for episode in _episodes(folder, seed, columns, *of_env))
        known: dict[str, Any] = {"env": made} if made.spec is not None else {}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning, module="minari")  # author, e-mail, link: not known
            storage = minari.create_dataset_from_buffers(
                dataset_id, [], algorithm_name="aitia", description=description,
                observation_space=made.observation_space, action_space=made.action_space, jpeg_encoding=False,
                data_format=data_format or ("hdf5" if importlib.util.find_spec("h5py") else "arrow"), **known,
            ).storage  # fmt: skip
        try:
            storage.get_size = lambda: 0.0  # its arrow storage measures the whole folder again after every episode
            storage.update_episodes(episodes)
            del storage.get_size
            storage.update_metadata({"dataset_size": storage.get_size()})
        except BaseException:
            shutil.rmtree(storage.data_path.parent, ignore_errors=True)
            raise
        return minari.load_dataset(dataset_id)
    except (ValueError, ImportError) as error:
        raise InputError(f"Minari does not write the dataset `{dataset_id}`: {error}") from error
    finally:
        made.close()


def _episodes(
    folder: RunFolder, seed: int, columns: Sequence[str], observation_space: Space, action_space: Space
) -> Iterator[Any]:
    """Yield the episodes of a training as Minari's buffers, each when it ends."""
    buffer = importlib.import_module("minari.data_collector").EpisodeBuffer
    begun: dict[int, list[pa.Table]] = {}  # by environment, what windows hold of the episode under way

    def whole(parts: list[pa.Table]) -> Any:
        table = pa.concat_tables(parts, promote_options="default")
        form = array_format(parts[0].schema, "observation")
        seen = decode_arrays(table["observation"], form)
        last = table["next_observation"][-1].as_py()
        after = seen[-1:] if last is None else decode_arrays(pa.array([last], pa.binary(form.width)), form)
        drawn = decode_actions(table)
        taken = [env_action(action_space, action) for action in drawn]
        truncated = table["truncated"].to_numpy().copy()
        truncated[-1] |= not table["terminated"][-1].as_py()
        return buffer(
            observations=_as_env(np.concatenate([seen, after]), observation_space),
            actions=np.stack(taken), rewards=table["reward"].to_numpy(),
            terminations=table["terminated"].to_numpy(), truncations=truncated, infos=_infos(table, columns, seed),
        )  # fmt: skip

    for window in range(folder.window_count(seed)):
        table = read_table(folder.transitions_path(seed, window))
        place = (table["env"].to_numpy(), table["episode"].to_numpy())
        starts = np.flatnonzero(np.any([np.diff(values) != 0 for values in place], axis=0)) + 1
        for start, end in zip([0, *starts], [*starts, table.num_rows], strict=True):
            env, rows = int(place[0][start]), table.slice(start, end - start)
            begun.setdefault(env, []).append(rows)
            if rows["terminated"][-1].as_py() or rows["truncated"][-1].as_py():
                yield whole(begun.pop(env))
    for parts in begun.values():
        yield whole(parts)


def _as_env(kept: Array, space: Space) -> Any:
    """Return observations as kept, [N, ...], in the form of the environment's own space."""
    if isinstance(space, spaces.Dict):
        return {key: _as_env(part, space[key]) for key, part in (fields(kept) or {}).items()}
    shape = space.shape or ()
    turned = kept.shape[1:] != shape and kept.ndim == 1 + len(shape)  # images are kept with channels first
    return (np.moveaxis(kept, 1, -1) if turned else kept).reshape(len(kept), *shape).astype(space.dtype)


def _reported_columns(folder: RunFolder, seeds: Sequence[int]) -> list[str]:
    """Return the columns that the environment reported in these trainings: every episode of a dataset has the same."""
    paths = [folder.transitions_path(seed, window) for seed in seeds for window in range(folder.window_count(seed))]
    components = {n for path in paths for n in read_table_schema(path).names if n.startswith(COMPONENT_PREFIX)}
    first = read_table(paths[0], [*_NUMBERS, "context"])
    reported = [name for name in first.column_names if first[name].null_count == 0]
    return [*reported, "outcome", *sorted(components)]


def _infos(table: pa.Table, columns: Sequence[str], seed: int) -> dict[str, Any]:
    """Return what was reported of each step, [T + 1] with nothing at the reset, as Minari's own collector keeps it.

    Lists, for its arrow storage does not read arrays of one dimension back.
    """
    infos: dict[str, Any] = {"seed": [seed] * (table.num_rows + 1)}
    for name in columns:
        nothing = "" if name in _TEXTS else np.nan
        values = table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
        infos[name] = [nothing, *(nothing if value is None else value for value in values)]
    return infos


def import_minari(dataset: Any, out: str | Path | RunFolder, seed: int = 0, rows: int = DEFAULT_ROWS) -> int:
    """Write a Minari dataset as transitions tables of a run folder, to be queried like those of a training.

    Episodes follow each other in one environment. `value, log_prob, advantage, return` are null and there are no
    checkpoints: without the policy that collected the data no influence can be computed, and `aitia` does not take
    them for a training. `intended_reward, untampered_reward, context, outcome` and components are read from `infos`
    where they are there; without an intended reward no reward can be called wrong.

    Args:
        dataset: a `minari.MinariDataset`, or the id of one that is on this machine.
        out: the run folder.
        seed: the number under which the data are kept.
        rows: transitions a file.

    Returns:
        The number of files written.

    Raises:
        InputError: Minari is not installed, the dataset is not there or empty, or the seed is taken.
        EnvironmentError_: its spaces are not supported.
    """
    folder = RunFolder.at(out)
    for taken in (folder.manifest_path, folder.transitions_folder(seed)):
        if taken.exists():
            raise InputError(f"{taken} exists already: import into a folder that holds no run, as a seed that is free")
    name = dataset if isinstance(dataset, str) else str(dataset.id)
    if isinstance(dataset, str):
        try:
            dataset = _minari().load_dataset(dataset)
        except (OSError, ValueError) as error:
            raise InputError(f"the Minari dataset `{name}` cannot be opened: {error}") from error
    where = f"the Minari dataset `{name}`"
    space, action_space = dataset.observation_space, dataset.action_space
    policy_observation_space(space, where)
    require_action_space(action_space, where)
    writer = WindowWriter(folder, seed)
    writer.begin(1, EarlierTraining())
    known: set[str] = set()
    try:
        reading = _steps(dataset, ObservationForm(space), known)
        while some := list(itertools.islice(reading, rows)):
            steps, seen, actions, after = zip(*some, strict=True)
            about = {"algorithm": "imported"}
            writer.write(Collected(steps, stacked(seen), np.stack(actions), after[-1], about=about), Learned(), None)
        if not writer.windows:
            raise InputError(f"{where} holds no steps, expected some")
    except BaseException:
        writer.discard()
        raise
    writer.publish(None)
    log.warning(
        "%s is in %s as seed %d, without a policy: values, log-probabilities and advantages are null, and nothing of "
        "it can be attributed%s", name, folder.root, seed,
        "" if "intended_reward" in known else "; it tells no intended reward, so no reward can be called wrong",
    )  # fmt: skip
    return writer.windows


def _steps(dataset: Any, form: ObservationForm, known: set[str]) -> Iterator[tuple[Step, Any, Array, Any]]:
    """Yield every step of a dataset, one episode after another; add the names of what it reports to `known`.

    Yields:
        The step, the observation before it [1, ...], its action [1, ...] and the observation after it [1, ...].
    """
    for episode in dataset.iterate_episodes():
        length = len(episode)
        kept = form.batch([at(episode.observations, number) for number in range(length + 1)])
        seen = fields(kept) or kept
        reported = _reported(episode.infos or {}, length)
        known |= {key for key in Told._fields if reported and getattr(reported[-1], key) is not None}
        actions = np.asarray(episode.actions)
        for number in range(length):
            here, then = slice(number, number + 1), slice(number + 1, number + 2)
            reward = np.asarray(episode.rewards[here], dtype=np.float64)
            if not np.isfinite(reward[0]):
                raise InputError(
                    f"episode {episode.id}, step {number}: the reward is {reward[0]}, expected a finite number"
                )
            terminated = np.asarray(episode.terminations[here], dtype=bool)
            ended = terminated | np.asarray(episode.truncations[here], dtype=bool)
            ended |= number == length - 1  # an episode of the dataset ends with its last step
            last = {0: at(seen, number + 1)} if ended[0] else {}
            step = Step(reward, ended, ended & ~terminated, [reported[number]], last, np.ones(1))
            yield step, at(seen, here), actions[here], at(seen, then)


def _reported(infos: Mapping[str, Any], steps: int) -> list[Told]:
    """Return what a dataset says of each step; Minari keeps the reset's info first where there is one more."""

    def column(values: Any, number: bool) -> list[Any]:
        last = list(values)[len(values) - steps :]
        if number:
            return [None if value is None or not np.isfinite(value) else float(value) for value in last]
        texts = [value.decode() if isinstance(value, bytes) else value for value in last]
        return [None if value is None or value == "" else str(value) for value in texts]

    nested = infos.get("reward_components")
    parts = dict(nested) if isinstance(nested, Mapping) else {}
    parts |= {key.removeprefix(COMPONENT_PREFIX): v for key, v in infos.items() if key.startswith(COMPONENT_PREFIX)}
    components = {key: column(values, number=True) for key, values in parts.items()}
    columns = {name: [None] * steps for name in (*_NUMBERS, *_TEXTS)}
    columns |= {name: column(infos[name], name in _NUMBERS) for name in columns if name in infos}
    return [
        Told(
            outcome=columns["outcome"][k] if k == steps - 1 else None,
            intended_reward=columns["intended_reward"][k],
            components={key: values[k] for key, values in components.items() if values[k] is not None} or None,
            context=columns["context"][k],
            action_labels=None,
            untampered_reward=columns["untampered_reward"][k],
        )
        for k in range(steps)
    ]


def _minari() -> Any:
    try:
        return importlib.import_module("minari")
    except ImportError as error:
        raise InputError(f'Minari is not installed ({error}): pip install "aitia[minari]"') from error
