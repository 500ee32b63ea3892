"""Groups of `transition`: distinct transitions have distinct names, however many there are."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from aitia.datasets.arrays import array_format_of, array_metadata, encode_arrays
from aitia.datasets.schema import with_metadata
from aitia.training.edits.groups import ByTransition
from aitia.training.environments.spec import EnvSpec

ROWS = 300_000


def test_300_000_distinct_transitions_have_as_many_names() -> None:
    """A digest of 32 bits gives about ten pairs of them one name (n^2 / 2^33), and 10^7 transitions 12,000 pairs."""
    states = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)
    table = with_metadata(
        pa.table({"observation": encode_arrays(states), "action": np.zeros(ROWS, np.int64), "context": ["a"] * ROWS}),
        array_metadata("observation", array_format_of(states)),
    )
    names = ByTransition(EnvSpec("toy_environments:Corridor")).of_table(table)
    assert len(np.unique(names)) == ROWS
