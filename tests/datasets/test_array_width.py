"""A binary column and the shape that its metadata tell must agree: else rows would be decoded from others' bytes."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from aitia.datasets.arrays import ArrayFormat, array_format, array_metadata, decode_arrays, encode_arrays
from aitia.datasets.errors import RunFolderError
from aitia.datasets.schema import with_metadata

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


def table(form: ArrayFormat, column: pa.Array | None = None) -> pa.Table:
    values = encode_arrays(VALUES) if column is None else column
    return with_metadata(pa.table({"observation": values}), array_metadata("observation", form))


@pytest.mark.parametrize(("form", "width"), [(ArrayFormat((3,), "float32"), 12), (ArrayFormat((6,), "float64"), 48)])
def test_a_shape_that_disagrees_with_the_width_is_an_error_that_names_both(form: ArrayFormat, width: int) -> None:
    with pytest.raises(RunFolderError, match=f"column `observation` holds 24 bytes a row.* take {width} bytes"):
        array_format(table(form).schema, "observation")
    with pytest.raises(RunFolderError, match=f"24 bytes a row.* take {width} bytes"):
        decode_arrays(encode_arrays(VALUES), form)


def test_a_column_without_a_fixed_width_is_an_error() -> None:
    loose = pa.array([row.tobytes() for row in VALUES], pa.binary())
    with pytest.raises(RunFolderError, match="holds values of type binary"):
        array_format(table(ArrayFormat((6,), "float32"), loose).schema, "observation")


def test_another_shape_of_as_many_bytes_is_read_as_that_shape() -> None:
    form = array_format(table(ArrayFormat((2, 3), "float32")).schema, "observation")
    np.testing.assert_array_equal(decode_arrays(encode_arrays(VALUES), form), VALUES.reshape(4, 2, 3))


@pytest.mark.parametrize(
    "changed",
    [
        {"observation_shape": "[6"}, {"observation_shape": "7"}, {"observation_shape": "[" * 5000},
        {"observation_dtype": "f9"},
    ],
)  # fmt: skip
def test_metadata_that_tell_no_shape_are_an_error(changed: dict[str, str]) -> None:
    form = ArrayFormat((6,), "float32")
    damaged = with_metadata(table(form), {**array_metadata("observation", form), **changed})
    with pytest.raises(RunFolderError, match="tell no shape"):
        array_format(damaged.schema, "observation")
