"""`effect_value` in the tables of a run: null of an estimator that does not compute the value channel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from aitia.workflows import commands


@pytest.mark.filterwarnings("ignore:.*fast_jl.*")
def test_the_columns_of_trak_projected_are_null_and_those_of_trak_are_not(
    tmp_path: Path, write_task: Callable[..., Path]
) -> None:
    agent = {"total_timesteps": 64, "n_envs": 2, "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 1}}
    task = write_task(
        env="toy_environments:Corridor", train_kwargs={"intended_error": 1.0}, test_kwargs={}, agent=agent, seeds=1,
        outcomes={"desired": ["goal"], "misbehaved": ["pit"]}, evaluation={"episodes": 4, "repeats": 2},
    )  # fmt: skip
    run = tmp_path / "run"
    commands.train(task, run, workers=0)
    commands.evaluate(run, workers=0)
    for estimator in ("trak", "trak-projected"):
        commands.attribute(run, estimator=estimator, workers=0)
        groups = pq.read_table(run / "influence/test/groups.parquet").filter(pc.field("estimator") == estimator)
        assert groups["effect_value"].null_count == groups.num_rows > 0, "not asked for"
        commands.attribute(run, estimator=estimator, workers=0, effects=["value"])
    for table, columns in (("groups", ("effect_value", "effect")), ("transitions", ("tau_value", "tau"))):
        whole = pq.read_table(run / f"influence/test/{table}.parquet")
        projected, exact = (whole.filter(pc.field("estimator") == name) for name in ("trak-projected", "trak"))
        for found, nulls in ((projected, projected.num_rows), (exact, 0)):
            assert found.num_rows > 0 and found[columns[0]].null_count == nulls
            assert found[columns[1]].null_count == 0 and np.abs(found[columns[1]].to_numpy()).max() > 0.0
