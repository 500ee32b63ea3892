"""Groups: what is corrected together. Each is decidable for a transition met for the first time while training again.

`context`: the level, seed or prompt of the episode. `component`: which reward components were paid (their names,
joined by +). `cluster`: k-means on a policy's latent features of the state. `transition`: this very state and action.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2, vq
from stable_baselines3.common.policies import ActorCriticPolicy

from ...datasets.arrays import Array, array_format, decode_actions, decode_arrays
from ...datasets.errors import InputError
from ...datasets.files.store import read_tensors, write_tensors
from ...datasets.rewards import reward_events
from ..agents.spec import latent_features
from ..environments.spaces import choices, env_action
from ..environments.spec import EnvSpec, describe

CLUSTERS = 32
_HASH_BYTES = 16  # of 10^9 distinct transitions two share 128 bits with a probability of 10^-21
_FIT_ROWS = 20_000
_FIT_SEED = 0

_SHOWN_NUMBERS = 8  # of an observation with more, a group's name has none
_BETWEEN = " / "
_NAME_OF_0_1 = re.compile(r"([^\n]*/)?[^/\n]*/[0-9a-f]{8}")


class ByTransition:
    """This very state and action, by a name that can be read: `17 / obs 14 / left`.

    A name has the context if there is one, the observation and the action. Numbers are written to three digits, of
    observations with more than a few numbers none. Where that is less than all bytes of observation and action,
    their digest follows (`obs [0.123, -1.4] #1f..`), so two transitions share a name only if they are the same. Names
    are made of the transition alone, the same in every process.

    Args:
        env: the training environment.
    """

    name = "transition"

    def __init__(self, env: EnvSpec) -> None:
        self._facts = describe(env)
        names, count = self._facts.action_names, choices(self._facts.action_space)
        named = len(names) == count == len(set(names)) and not any(_BETWEEN in name for name in names)
        self._action_names = names if named else ()

    def columns(self, known: Sequence[str]) -> list[str]:
        """Return the columns of the transitions that `of_table` needs."""
        return ["observation", "action", "context"]

    def of_table(self, table: pa.Table) -> NDArray[np.str_]:
        """Return the group of each transition, [N]."""
        observations = decode_arrays(table["observation"], array_format(table.schema, "observation"))
        known: dict[tuple[bytes, bytes, str | None], str] = {}
        names = []
        for observation, action, context in zip(
            observations, decode_actions(table), table["context"].to_pylist(), strict=True
        ):
            key = (observation.tobytes(), action.tobytes(), context)
            if key not in known:
                known[key] = self._label(observation, action, context)
            names.append(known[key])
        return np.array(names)

    def of_step(self, observation: Any, action: Any, info: Mapping[str, Any]) -> str:
        """Return the group of one transition of the environment."""
        context = info.get("context")
        kept = self._facts.form.batch([observation])[0]
        return self._label(kept, action, None if context is None else str(context))

    def _label(self, observation: Any, action: Any, context: str | None) -> str:
        sent = np.asarray(env_action(self._facts.action_space, action))
        seen, done = _observation_text(observation), _numbers_text(sent)
        shown = f"obs {seen.text}" if seen.text else "obs"
        if not (seen.exact and done.exact):
            digest = hashlib.blake2b(observation.tobytes() + sent.tobytes(), digest_size=_HASH_BYTES).hexdigest()
            shown = f"{shown} #{digest}"
        chosen = self._action_names[int(sent)] if self._action_names else done.text
        return _BETWEEN.join([shown, chosen] if context is None else [context, shown, chosen])


class _Text(NamedTuple):
    """Numbers as text, and whether it tells them exactly."""

    text: str
    exact: bool


def _observation_text(observation: Any) -> _Text:
    """Return an observation as kept (a numpy row, structured for a Dict) as text; none where it has many numbers."""
    if observation.dtype.names is None:
        return _numbers_text(observation) if observation.size <= _SHOWN_NUMBERS else _Text("", False)
    parts = {name: np.asarray(observation[name]) for name in observation.dtype.names}
    if sum(part.size for part in parts.values()) > _SHOWN_NUMBERS:
        return _Text("", False)
    texts = {name: _numbers_text(part) for name, part in parts.items()}
    text = ", ".join(f"{name} {part.text}" for name, part in texts.items())
    return _Text(text, all(part.exact for part in texts.values()))


def _numbers_text(values: Array) -> _Text:
    flat = values.reshape(-1)
    floats = np.issubdtype(flat.dtype, np.floating)
    texts = [f"{number:.3g}" if floats else str(int(number)) for number in flat.tolist()]
    exact = not floats or np.array([float(text) for text in texts], flat.dtype).tobytes() == flat.tobytes()
    return _Text(texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]", exact)


def require_current_names(groups: Collection[str]) -> None:
    """Check that groups by transition have names of this version: no transition would be in one of 0.1.

    Raises:
        InputError: names the first that has not.
    """
    for group in groups:
        if _NAME_OF_0_1.fullmatch(group):
            raise InputError(
                f"the group `{group}` is named as aitia 0.1 named states and actions; expected a name such as "
                "`17 / obs 14 / left`. Attribute the run again (aitia attribute RUN) and take the names from it"
            )


class ByCluster:
    """The cluster of the state in a policy's latent features (k-means).

    Args:
        env: the training environment.
        policy: whose latent features.
        unit: spread of each feature over the states that the clusters were fitted on, [H].
        centres: [K, H], in units of the spread.
    """

    name = "cluster"

    def __init__(
        self, env: EnvSpec, policy: ActorCriticPolicy, unit: NDArray[np.float64], centres: NDArray[np.float64]
    ) -> None:
        self._facts, self._policy, self._unit, self._centres = describe(env), policy, unit, centres
        self._known: dict[bytes, str] = {}

    @staticmethod
    def fit(env: EnvSpec, policy: ActorCriticPolicy, observations: Array, clusters: int = CLUSTERS) -> ByCluster:
        """Find clusters of states (observations [N, ...], as kept); fewer where fewer states differ."""
        latent = latent_features(policy, observations)
        spread = latent.std(axis=0)
        unit = np.where(spread > 0.0, spread, 1.0)
        scaled = latent / unit
        count = min(clusters, len(np.unique(scaled.round(9), axis=0)))
        centres, _ = kmeans2(scaled, count, minit="++", rng=_FIT_SEED, missing="warn")
        return ByCluster(env, policy, unit, centres)

    def save(self, path: Path) -> None:
        """Write the clusters and the policy that they are of."""
        tensors = {"unit": torch.from_numpy(self._unit), "centres": torch.from_numpy(self._centres)}
        policy = {f"policy.{name}": value for name, value in self._policy.state_dict().items()}
        write_tensors(path, {**tensors, **policy}, {})

    @staticmethod
    def load(path: Path, env: EnvSpec, policy: ActorCriticPolicy) -> ByCluster:
        """Read clusters; `policy` is of the same architecture and gets the saved parameters."""
        tensors = read_tensors(path)
        policy.load_state_dict({n.removeprefix("policy."): v for n, v in tensors.items() if n.startswith("policy.")})
        policy.set_training_mode(False)
        return ByCluster(env, policy, tensors["unit"].numpy(), tensors["centres"].numpy())

    def assign(self, observations: Array) -> NDArray[np.int64]:
        """Return the cluster of each state, also of new ones, [N]."""
        nearest, _ = vq(latent_features(self._policy, observations) / self._unit, self._centres)
        return np.asarray(nearest, dtype=np.int64)

    def columns(self, known: Sequence[str]) -> list[str]:
        """Return the columns of the transitions that `of_table` needs."""
        return ["observation"]

    def of_table(self, table: pa.Table) -> NDArray[np.str_]:
        """Return the group of each transition, [N]."""
        observations = decode_arrays(table["observation"], array_format(table.schema, "observation"))
        return np.array([_cluster_name(number) for number in self.assign(observations)])

    def of_step(self, observation: Any, action: Any, info: Mapping[str, Any]) -> str:
        """Return the group of one transition of the environment; a state seen before is looked up."""
        kept = self._facts.form.batch([observation])
        key = kept.tobytes()
        if key not in self._known:
            self._known[key] = _cluster_name(int(self.assign(kept)[0]))
        return self._known[key]


def _cluster_name(number: int) -> str:
    return f"cluster {number:02d}"


def fit_sample(tables: Sequence[pa.Table]) -> Array:
    """Return states to fit clusters on: those of reward events, evenly thinned; all states where there is no event."""
    parts, chosen = [], []
    for table in tables:
        reward = table["reward"].to_numpy()
        intended = table["intended_reward"].to_numpy(zero_copy_only=False).astype(np.float64)
        parts.append(decode_arrays(table["observation"], array_format(table.schema, "observation")))
        chosen.append(reward_events(reward, intended))
    observations, event = np.concatenate(parts), np.concatenate(chosen)
    rows = np.flatnonzero(event) if event.any() else np.arange(len(event))
    kept: Array = observations[rows[np.linspace(0, len(rows) - 1, min(len(rows), _FIT_ROWS)).astype(int)]]
    return kept
