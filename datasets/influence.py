"""Influence tables that grow: the metadata of each list which failures of each estimator it covers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import TypeAdapter, ValidationError

from .files.store import read_table, read_table_schema, write_table
from .manifest import digest
from .schema import current_top_transitions, metadata_of, with_metadata

_MEANS = ("effect", "tau", "reward_tau", "score")  # over failures; a row that is not there is 0
_LISTS = TypeAdapter(dict[str, list[str]])
_COUNTS = ("transitions", "paid")  # the same for all failures


def _lists(path: Path, key: str, name: str) -> dict[str, list[str]] | None:
    """Return lists by estimator of a table's metadata; None if there are none or it was made with another key."""
    about = metadata_of(read_table_schema(path)) if path.exists() else {}
    if about.get("key") != key or name not in about:
        return None
    try:
        return _LISTS.validate_json(about[name])
    except ValidationError:  # not of aitia: nothing of it counts
        return None


def covered(path: Path, key: str) -> dict[str, list[str]] | None:
    """Return the failures of each estimator that a table covers; None if it is missing or was made with another key."""
    return _lists(path, key, "failures")


def further_of(paths: Sequence[Path], key: str, estimator: str) -> frozenset[str]:
    """Return which effects all tables have of an estimator in addition; none of one that was made with another key."""
    return frozenset.intersection(*(frozenset((_lists(p, key, "further") or {}).get(estimator, ())) for p in paths))


def attribution_id(groups: Path, masses: Path, key: str, estimator: str) -> str:
    """Return the digest of what an estimator attributed and in which unit: what rests on it says which it was.

    Args:
        groups: table of group sums.
        masses: table of what windows' effects are divided by.
        key: digest of what all attributions share.
        estimator: its label.
    """
    lists = (covered(groups, key), _lists(masses, key, "formed_by"))
    return digest([key, *(sorted((one or {}).get(estimator, ())) for one in lists)])


def covered_by_all(paths: Sequence[Path], key: str, estimator: str) -> frozenset[str] | None:
    """Return the failures of an estimator that all tables cover; None if one is missing or was made with another key.

    Tables that cover different ones were left by a call that ended between their writing: nothing counts as done.
    """
    coverage = [covered(path, key) for path in paths]
    if any(table is None for table in coverage):
        return None
    done = {frozenset((table or {}).get(estimator, ())) for table in coverage}
    return done.pop() if len(done) == 1 else frozenset()


@dataclass(frozen=True)
class Addition:
    """What one call attributed, on its way into tables that hold earlier calls.

    Attributes:
        key: digest of what all attributions of the tables share; rows of another one are dropped.
        estimator: of this call.
        failures: of this call.
        known: all failures of the set, in order; rows of others are dropped.
        further: effects that were computed in addition.
    """

    key: str
    estimator: str
    failures: tuple[str, ...]
    known: Sequence[str]
    further: tuple[str, ...] = ()

    def write_rows(self, path: Path, added: pa.Table) -> None:
        """Add rows of this call's failures; rows of other failures and estimators stay."""
        earlier = covered(path, self.key)
        tables = [added]
        if earlier is not None:
            failure = pc.field("failure").cast(pa.string())
            replaced = failure.isin(list(self.failures)) & (pc.field("estimator") == self.estimator)
            rows = current_top_transitions(read_table(path))  # what other tables hold stays as it is
            tables.insert(0, rows.filter(failure.isin(list(self.known)) & ~replaced))
        mine = (earlier or {}).get(self.estimator, [])
        self._write(path, tables, {**(earlier or {}), self.estimator: [*mine, *self.failures]})

    def write_means(self, path: Path, added: pa.Table) -> None:
        """Add this call to means over failures, which are linear: both are weighted by their numbers of failures."""
        earlier = covered(path, self.key)
        tables, mine = [added], (earlier or {}).get(self.estimator, [])
        if not set(mine).isdisjoint(self.failures):
            mine = []  # some are in the mean already, and cannot be taken out of it: it begins anew
        if earlier is not None:
            own, table = pc.field("estimator") == self.estimator, read_table(path)
            if mine:
                weight = len(mine) / (len(mine) + len(self.failures))
                tables = [_weighted_mean(table.filter(own), added, weight)]
            tables.insert(0, table.filter(~own))
        self._write(path, tables, {**(earlier or {}), self.estimator: [*mine, *self.failures]})

    def known_values(self, path: Path, column: str) -> list[float]:
        """Return the values that the estimator's rows have in a column of a table with the same key, sorted."""
        if self.estimator not in (covered(path, self.key) or {}):
            return []
        return sorted(pc.unique(read_table(path).filter(pc.field("estimator") == self.estimator)[column]).to_pylist())

    def write_once(self, path: Path, added: pa.Table, column: str) -> None:
        """Add rows that later failures do not change, of values in a column that the estimator has no rows of yet.

        Metadata `formed_by` lists the failures of the call that wrote each estimator's first ones.
        """
        earlier, known = covered(path, self.key), self.known_values(path, column)
        tables = [added.filter(~pc.field(column).isin(pa.array(known, pa.float64())))]
        formed = _lists(path, self.key, "formed_by") or {}
        if earlier is not None:
            tables.insert(0, read_table(path))
        formed.setdefault(self.estimator, list(self.failures))
        mine = (earlier or {}).get(self.estimator, [])
        covers = {**(earlier or {}), self.estimator: [*mine, *self.failures]}
        self._write(path, tables, covers, {"formed_by": json.dumps(formed)})

    def _write(
        self, path: Path, tables: Sequence[pa.Table], covers: dict[str, list[str]], about: dict[str, str] | None = None
    ) -> None:
        names = {estimator: frozenset(failures) for estimator, failures in covers.items()}
        ordered = {estimator: [name for name in self.known if name in mine] for estimator, mine in names.items()}
        table = pa.concat_tables([table.replace_schema_metadata(None) for table in tables]).unify_dictionaries()
        further = {**(_lists(path, self.key, "further") or {}), self.estimator: list(self.further)}
        written = {"key": self.key, "failures": json.dumps(ordered), "further": json.dumps(further)}
        write_table(path, with_metadata(table, written | (about or {})))


def _weighted_mean(first: pa.Table, second: pa.Table, weight: float) -> pa.Table:
    """Return `weight` times the means of the first table plus `1 - weight` times those of the second."""
    schema, parts = second.schema, []
    for table, factor in ((first, weight), (second, 1.0 - weight)):
        columns = {name: table[name] for name in schema.names}
        if "group" in columns:
            columns["group"] = columns["group"].cast(pa.string())
        columns |= {name: pc.multiply(columns[name], factor) for name in _MEANS if name in columns}
        parts.append(pa.table(columns))
    keys = [name for name in schema.names if name not in (*_MEANS, *_COUNTS)]
    how = {**dict.fromkeys(_MEANS, "sum"), **dict.fromkeys(_COUNTS, "max")}
    wanted = [(name, how[name]) for name in schema.names if name in how]
    grouped = pa.concat_tables(parts).group_by(keys, use_threads=False).aggregate(wanted)
    means = {name: grouped[f"{name}_{how[name]}" if name in how else name] for name in schema.names}
    if "group" in means:
        means["group"] = means["group"].combine_chunks().dictionary_encode()
    return pa.table(means, schema=schema)
