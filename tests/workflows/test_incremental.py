"""More episodes, further sets, failures named one after the other: only what is new is computed, to the same values."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from small_task import SMALL_TASK

import aitia
from aitia.datasets.errors import RunFolderError
from aitia.datasets.plays import episodes_at, with_earlier
from aitia.workflows import commands
from aitia.workflows.workers.pool import InProcess

pytestmark = pytest.mark.slow

WriteTask = Callable[..., Path]
MORE = {"episodes": 18, "repeats": 4}
KEYS = {
    "groups": ("failure", "seed", "lambda", "group", "estimator"),
    "transitions": ("failure", "seed", "window", "step", "env", "estimator"),
    "windows": ("failure", "seed", "window", "estimator"),
    "null": ("group", "seed", "draw", "estimator"),
    "units": ("group", "seed", "estimator"),
    "direction": ("group", "seed", "estimator"),
    "scores": ("seed", "window", "row", "estimator"),
    "masses": ("seed", "window", "lambda", "estimator"),
}


def stamps(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Return inode and time of every file below: a file that is written again changes both."""
    files = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def sorted_rows(run: Path, table: str, set_name: str = "test") -> pa.Table:
    found = pq.read_table(run / f"influence/{set_name}/{table}.parquet").replace_schema_metadata(None)
    plain = [pa.field(f.name, pa.string()) if pa.types.is_dictionary(f.type) else f for f in found.schema]
    return found.cast(pa.schema(plain)).sort_by([(name, "ascending") for name in KEYS[table]])


def require_same_influence(first: Path, second: Path, relative: float = 1e-12) -> None:
    """Check that all influence tables of two runs hold the same rows, up to their order and `relative`."""
    relative_of = dict.fromkeys(("scores",), 1e-5)  # float32
    for name in KEYS:
        relative = relative_of.get(name, relative)
        one, two = sorted_rows(first, name), sorted_rows(second, name)
        assert one.num_rows == two.num_rows > 0, name
        for column in one.column_names:
            if pa.types.is_floating(one.schema.field(column).type):
                a, b = (np.nan_to_num(t[column].to_numpy(zero_copy_only=False)) for t in (one, two))
                np.testing.assert_allclose(a, b, rtol=relative, atol=relative * np.abs(a).max(), err_msg=column)
            else:
                assert one[column].equals(two[column]), f"{name}.{column}"
        about = [pq.read_schema(run / f"influence/test/{name}.parquet").metadata for run in (first, second)]
        for metadata in about:
            metadata.pop(b"formed_by", None)
        assert about[0] == about[1], "they must say that they cover the same failures"


def forget_influence(run: Path) -> None:
    """Remove all influence but what windows are divided by: so that later effects are in the same unit."""
    for path in (run / "influence/test").iterdir():
        if path.name != "masses.parquet":
            path.unlink()


class Calls:
    """Counts what is given to workers, by function; and which failures each block of windows was attributed for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pieces: dict[str, list[Any]] = {}
        self.failures: list[tuple[str, ...]] = []
        original = InProcess.map

        def counted(workers: InProcess, function: Any, pieces: Any, label: str) -> list[Any]:
            self.pieces.setdefault(function.__name__, []).extend(pieces)
            if function.__name__ == "_attribute_block":
                self.failures += [tuple(json.loads((p.folder / "failures.json").read_text())) for p in pieces]
            return original(workers, function, pieces, label)

        monkeypatch.setattr(InProcess, "map", counted)

    def __getitem__(self, function: str) -> list[Any]:
        return self.pieces.get(function, [])


@pytest.fixture(scope="module")
def grown(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small run with 6 episodes more, and what each function was given in `calls.json`: read it only."""
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(small_run, folder / "run")
    task = folder / "task.yaml"
    task.write_text(json.dumps({**SMALL_TASK, "evaluation": MORE}))
    with pytest.MonkeyPatch.context() as patch:
        calls = Calls(patch)
        commands.run(task, folder / "run", workers=0)
    new = sorted({name for failures in calls.failures for name in failures})
    counts = Counter({name: len(pieces) for name, pieces in calls.pieces.items()})
    counts["_train_members"] = sum(len(stack) for stack in calls["_train_members"])
    (folder / "calls.json").write_text(json.dumps({"counts": counts, "failures": new}))
    return folder / "run"


def test_more_episodes_attribute_play_and_train_only_what_is_new(small_run: Path, grown: Path) -> None:
    calls = json.loads((grown.parent / "calls.json").read_text())
    failures = {entry["failure"] for entry in json.loads((grown / "reports/test/verdicts.json").read_text())}
    before = {entry["failure"] for entry in json.loads((small_run / "reports/test/verdicts.json").read_text())}
    assert before < failures and set(calls["failures"]) == failures - before
    assert all(int(name.partition("-")[2]) >= 12 for name in calls["failures"])
    assert calls["counts"].get("_train_seed", 0) == 0 and calls["counts"]["_evaluate_seed"] == 6

    def trained(run: Path) -> set[tuple[Any, ...]]:
        rows = pq.read_table(run / "bank/test/masks.parquet").to_pylist()
        return {(r["seed"], r["order"] == "all", *sorted(r["groups"])) for r in rows if r["order"] != "none"}

    added = trained(grown) - trained(small_run)  # another order of attribution corrects other groups
    assert calls["counts"]["_train_members"] == len(added) <= 10, "five seeds for the order of each of two clusters"
    kept, after = (len(list((run / ".parts/policies").glob("*.safetensors"))) for run in (small_run, grown))
    assert kept == len(trained(small_run)), "an agent for each edit and seed"
    assert after == kept + len(added)


@pytest.fixture(scope="module")
def at_once(small_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with all episodes from the beginning; the ensemble is shared, and the windows' masses: read it only."""
    folder = tmp_path_factory.mktemp("at_once")
    run, task = folder / "run", folder / "task.yaml"
    task.write_text(json.dumps({**SMALL_TASK, "evaluation": MORE}))
    run.mkdir()
    for name in ("transitions", "checkpoints"):
        shutil.copytree(small_run / name, run / name)
    shutil.copy(small_run / "run.json", run)
    (run / "influence/test").mkdir(parents=True)
    shutil.copy(small_run / "influence/test/masses.parquet", run / "influence/test")
    commands.run(task, run, workers=0)
    return run


def test_a_run_that_grew_equals_one_that_had_all_episodes_from_the_beginning(grown: Path, at_once: Path) -> None:
    for name in ("episodes", "steps", "references"):
        one, two = (pq.read_table(run / f"evaluations/test/{name}.parquet") for run in (grown, at_once))
        assert one.equals(two, check_metadata=True), f"{name}: every bit of every play must be the same"
    for name in ("masks", "outcomes"):
        one, two = (pq.read_table(run / f"bank/test/{name}.parquet") for run in (grown, at_once))
        assert one.equals(two), name
    require_same_influence(grown, at_once)
    said = [json.loads((run / "reports/test/summary.json").read_text()) for run in (grown, at_once)]
    for name in ("verdict", "rule", "misbehaviour_rate", "outer_share", "correction_curve", "trainings", "failures"):
        assert said[0][name] == said[1][name], name


def test_failures_named_one_after_the_other_give_what_all_at_once_give(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, calls = tmp_path / "copy", Calls(monkeypatch)
    shutil.copytree(small_run, copy)
    forget_influence(copy)
    names = [entry["failure"] for entry in json.loads((copy / "reports/test/verdicts.json").read_text())]
    for named in (names[3:7], names[5:9], []):
        commands.attribute(copy, failure=named, workers=0)
    rest = tuple(name for name in names if name not in names[3:9])
    assert Counter(calls.failures) == dict.fromkeys([tuple(names[3:7]), tuple(names[7:9]), rest], 40), (
        "each failure once"
    )
    require_same_influence(copy, small_run)
    before = stamps(copy / "influence")
    commands.attribute(copy, workers=0)
    assert stamps(copy / "influence") == before


def test_tables_of_a_call_that_ended_half_way_are_made_again(
    small_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums of some failures were added, means over failures were not, or the other way round."""
    copy, calls = tmp_path / "copy", Calls(monkeypatch)
    shutil.copytree(small_run, copy)
    names = [entry["failure"] for entry in json.loads((copy / "reports/test/verdicts.json").read_text())]
    forget_influence(copy)
    commands.attribute(copy, failure=names[:2], workers=0)
    for name in ("null", "groups"):
        shutil.copy(small_run / f"influence/test/{name}.parquet", copy / "influence/test")
    commands.attribute(copy, workers=0)
    assert calls.failures[-1] == tuple(names), "nothing can be said to be done"
    require_same_influence(copy, small_run)


def test_later_failures_keep_the_masses_that_the_first_ones_gave_the_windows(small_run: Path, tmp_path: Path) -> None:
    """Effects on the first ones stay, bit for bit; before the division all are those of a run that had them at once."""
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    shutil.rmtree(copy / "influence")
    names = [entry["failure"] for entry in json.loads((copy / "reports/test/verdicts.json").read_text())]
    commands.attribute(copy, failure=names[:3], workers=0)
    first, masses = sorted_rows(copy, "groups"), sorted_rows(copy, "masses")
    commands.attribute(copy, workers=0)
    table = copy / "influence/test/masses.parquet"
    assert sorted_rows(copy, "masses").equals(masses) and not masses.equals(sorted_rows(small_run, "masses"))
    assert json.loads(pq.read_schema(table).metadata[b"formed_by"]) == {"trak": names[:3]}
    grown = sorted_rows(copy, "groups")
    assert grown.filter(pc.field("failure").isin(names[:3])).equals(first)
    for name in ("windows", "units", "direction", "transitions"):
        one, two = sorted_rows(copy, name), sorted_rows(small_run, name)
        column = "effect" if "effect" in one.column_names else "tau"
        values = two[column].to_numpy()
        np.testing.assert_allclose(one[column].to_numpy(), values, rtol=1e-9, atol=1e-12 * np.abs(values).max())
    # masses of further dampings are formed when these are asked for, those of the estimator's own never again
    commands.attribute(copy, workers=0, effects=["lambdas"])
    further = sorted_rows(copy, "masses")
    assert further.num_rows == 3 * masses.num_rows and further.filter(pc.field("lambda") == 1e-3).equals(masses)
    assert json.loads(pq.read_schema(table).metadata[b"formed_by"]) == {"trak": names[:3]}
    again = sorted_rows(copy, "groups").filter(pc.field("lambda") == 1e-3)["effect"].to_numpy()
    np.testing.assert_allclose(again, grown["effect"].to_numpy(), rtol=1e-9, atol=1e-12)


def test_effects_of_a_call_that_ended_half_way_are_not_called_done(small_run: Path, tmp_path: Path) -> None:
    """One table has them, another has not: asked for again they are computed."""
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)
    commands.attribute(copy, workers=0, effects=["raw"])
    transitions = "influence/test/transitions.parquet"
    assert pq.read_table(copy / transitions)["tau_raw"].null_count == 0
    shutil.copy(small_run / transitions, copy / transitions)  # as if killed before it was written
    commands.attribute(copy, workers=0, effects=["raw"])
    assert pq.read_table(copy / transitions)["tau_raw"].null_count == 0


def test_predicted_sets_are_of_the_attribution_that_is_there(small_run: Path, tmp_path: Path) -> None:
    """Another estimator's rows change nothing; other masses, or damage, make them unknown and end nothing."""
    copy = tmp_path / "copy"
    shutil.copytree(small_run, copy)

    def known() -> dict[str, float] | None:
        evaluated = aitia.open(copy)["test"]
        return evaluated.set_effects(evaluated.whole)

    before, path = known(), copy / "bank/test/sets.parquet"
    assert before
    commands.attribute(copy, workers=0, estimator="size")
    assert known() == before
    table = pq.read_table(path)
    damaged = pa.array([float("nan")] * table.num_rows)
    place = table.column_names.index("effect")
    pq.write_table(table.set_column(place, "effect", damaged), path)
    assert known() == {}
    commands.report(copy, out=tmp_path / "out", workers=0)
    pq.write_table(table, path)
    shutil.rmtree(copy / "influence")
    names = [entry["failure"] for entry in json.loads((copy / "reports/test/verdicts.json").read_text())]
    commands.attribute(copy, failure=names[:3], workers=0)
    commands.attribute(copy, workers=0)
    assert known() == {}, "in another unit"


def test_further_sets_do_only_what_is_theirs(
    small_run: Path, tmp_path: Path, write_task: WriteTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`same` is the test set once more: its agents are there, and what they do is known."""
    copy, calls = tmp_path / "copy", Calls(monkeypatch)
    shutil.copytree(small_run, copy)
    levels = SMALL_TASK["test_kwargs"]
    kept = [copy / name for name in ("evaluations/test", "influence/test", "transitions", "checkpoints")]
    kept += [copy / ".parts" / name for name in ("evaluations/test", "bank/test", "policies")]
    before = stamps(*kept)
    assert len(before) > 100
    task = write_task(sets={"same": levels, "other": {**levels, "level_seed": 2}})
    commands.run(task, copy, workers=0)
    after = stamps(*kept)
    assert {path: after[path] for path in before} == before, "something of the first set was done again"
    assert {path.parent.name for path in after if path not in before} <= {"policies"}
    assert not calls["_train_seed"] and {piece.set_name for piece in calls["_evaluate_seed"]} == {"same", "other"}
    assert {piece.set_name for piece in calls["_play_member"]} == {"same", "other"}
    assert {piece.set_name for stack in calls["_train_members"] for piece in stack} <= {"other"}
    trained = [piece.mask for stack in calls["_train_members"] for piece in stack]
    assert {mask.order for mask in trained} <= {"attribution"}, "only the set's own orders are new"
    assert len(trained) <= 5 * len({mask.cluster for mask in trained})
    for name in ("masks", "outcomes"):
        tables = [pq.read_table(copy / f"bank/{set_name}/{name}.parquet") for set_name in ("test", "same")]
        assert tables[0].equals(tables[1]), name
    verdicts = [json.loads((copy / f"reports/{name}/summary.json").read_text()) for name in ("test", "same", "other")]
    assert verdicts[0]["correction_curve"] == verdicts[1]["correction_curve"]
    assert verdicts[2]["verdict"] == "outer", "the cause of the small task, whatever the rooms"


def test_a_run_that_kept_no_agents_trains_them_again_once_and_says_so(
    small_run: Path, grown: Path, tmp_path: Path, write_task: WriteTask,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    copy, calls = tmp_path / "copy", Calls(monkeypatch)
    shutil.copytree(small_run, copy)
    shutil.rmtree(copy / ".parts/policies")
    commands.train(write_task(evaluation=MORE), copy, workers=0)
    with pytest.raises(RunFolderError, match=r"played with 12 episodes, the task has 18.*aitia evaluate"):
        commands.verify(copy, workers=0)
    with caplog.at_level(logging.INFO, "aitia"):
        for stage in (commands.evaluate, commands.attribute, commands.verify):
            stage(copy, workers=0)
    assert "kept no trained agents" in caplog.text
    rows = pq.read_table(copy / "bank/test/masks.parquet").to_pylist()
    assert sum(len(stack) for stack in calls["_train_members"]) == sum(row["order"] != "none" for row in rows)
    one, two = (pq.read_table(run / "bank/test/outcomes.parquet") for run in (copy, grown))
    assert one.equals(two), "agents trained again must be those that were trained before"


def test_plays_that_were_added_and_not_finished_are_played_again(tmp_path: Path) -> None:
    """The steps of a piece are written before its episodes: a call that ended in between leaves some too many."""
    path = tmp_path / "steps.parquet"
    plays = {part: pa.table({"part": [part] * 5, "episode": list(range(5))}) for part in ("test", "train")}
    pq.write_table(pa.concat_tables(plays.values()), path)
    assert episodes_at(path) == 5 and episodes_at(tmp_path / "none.parquet") == 0
    for table in plays.values():
        whole = with_earlier(path, table.filter(pc.field("episode") >= 3), 3)
        assert whole.equals(table), "each episode once, of one part"
