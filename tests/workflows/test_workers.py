"""Where pieces run: without processes they take turns in this one, which stays as it was."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from aitia.attribution.estimators.registry import estimators
from aitia.datasets.errors import InputError
from aitia.workflows.workers.cluster import DaskWorkers
from aitia.workflows.workers.pool import InProcess
from aitia.workflows.workers.start import start_workers


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


_begun: list[int] = []


def _fail_at_two(number: int) -> None:
    _begun.append(number)
    if number == 2:
        raise ValueError("two")


def _look(number: int) -> tuple[int, int, int]:
    torch.rand(3), np.random.rand()  # noqa: NPY002
    return number, torch.get_num_threads(), os.getpid()


def test_pieces_take_turns_on_one_thread_and_leave_threads_and_draws_as_they_were(two_threads: None) -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    expected = torch.rand(1).item(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002
    with start_workers(0) as workers:
        assert isinstance(workers, InProcess) and workers.count == 1
        assert workers.map(_look, [3, 1, 2], "look") == [(number, 1, os.getpid()) for number in (3, 1, 2)]
        assert workers.map(_look, [], "look") == []
    assert torch.get_num_threads() == 2
    assert (torch.rand(1).item(), np.random.rand()) == expected, "a caller's draws must not depend on pieces"  # noqa: NPY002


def test_the_first_failure_is_raised_and_no_later_piece_begins() -> None:
    _begun.clear()
    with start_workers(0) as workers, pytest.raises(ValueError, match="two"):
        workers.map(_fail_at_two, [1, 2, 3], "fail")
    assert _begun == [1, 2]


def test_other_numbers_of_workers_are_dask_and_negative_ones_are_refused() -> None:
    for workers, scheduler in ((None, None), (1, None), (0, "tcp://127.0.0.1:1")):
        assert isinstance(start_workers(workers, scheduler), DaskWorkers)
    with pytest.raises(InputError, match=r"--workers -1 was given, expected 0"):
        start_workers(-1)


def test_every_estimator_goes_to_workers_with_its_parameters() -> None:
    """Other tests compute in this process, where nothing is pickled."""
    for estimator in estimators().values():
        there = pickle.loads(pickle.dumps(estimator))
        assert type(there) is type(estimator) and (there.label, vars(there)) == (estimator.label, vars(estimator))
