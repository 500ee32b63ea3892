"""Pictures that stages leave in `frames/`: also as text, bounded, and never a reason to lose an evaluation."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faults import ROOMS
from PIL import Image

from aitia.datasets import frames
from aitia.datasets.errors import RunFolderError
from aitia.datasets.frames import DrawnFailure, EpisodeStep, FrameIndex, FrameWriter, read_frame
from aitia.workflows import commands
from aitia.workflows.stages.pictures import _chosen_steps


@pytest.fixture
def make_run(tmp_path: Path, write_task: Callable[..., Path]) -> Callable[..., Path]:
    """Train and evaluate agents in an environment that draws itself in its own way, attribute, and report."""

    def make(env: str) -> Path:
        run = tmp_path / "run"
        task = write_task(**{**ROOMS, "env": f"drawn_environments:{env}", "test_kwargs": {}, "train_kwargs": {}})
        commands.train(task, run, workers=0)
        commands.evaluate(run, workers=0)
        commands.attribute(run, workers=0)
        commands.report(run)
        return run

    return make


def drawn(run: Path) -> tuple[FrameIndex, list[str]]:
    index = FrameIndex.read(run / "frames/test")
    assert index is not None and index.failures, "no failure: the test shows nothing"
    return index, [path.read_text() for path in (run / "reports/test/failures").glob("*.html")]


@pytest.mark.slow
def test_an_environment_without_pictures_is_shown_as_text(make_run: Callable[..., Path]) -> None:
    run = make_run("Written")
    index, pages = drawn(run)
    assert json.loads((run / "run.json").read_text())["environments"]["sets"]["test"]["draws"] == "ansi"
    for failure in index.failures.values():
        texts = [(run / "frames/test" / step.file).read_text() for step in failure.steps]
        assert all(text.count("A") == 1 and len(text) == 7 for text in texts) and texts[-1].startswith("A")
        assert failure.steps[-1].caption == "end: pit" and failure.steps[0].caption in ("0: left", "0: right")
    assert all("A......" in page for page in pages)
    assert index.states and all(state.file and state.file.endswith(".txt") for state in index.states)


@pytest.mark.slow
def test_a_renderer_that_fails_costs_the_pictures_only(make_run: Callable[..., Path]) -> None:
    index, pages = drawn(make_run("Broken"))
    assert {failure.why for failure in index.failures.values()} == {
        "The environment could not draw itself (RuntimeError: no display)."
    }
    assert all("no display" in page for page in pages)
    assert all(state.file is None for state in index.states)


@pytest.mark.slow
def test_what_could_not_be_drawn_is_tried_again_where_it_is_asked_for(small_run: Path, tmp_path: Path) -> None:
    """As after the package that an environment draws with was installed."""
    run, task = tmp_path / "copy", small_run.parent / "task.yaml"
    shutil.copytree(small_run, run)
    folder = run / "frames/test"
    whole = FrameIndex.read(folder)
    assert whole is not None and whole.states and whole.episodes
    steps = [[step.model_copy(update={"file": None}) for step in episode.steps] for episode in whole.episodes]
    undrawn = whole.model_copy(
        update={
            "failures": {name: DrawnFailure(why="no pygame") for name in whole.failures},
            "states": [state.model_copy(update={"file": None}) for state in whole.states],
            "episodes": [e.model_copy(update={"steps": s}) for e, s in zip(whole.episodes, steps, strict=True)],
        }
    )
    undrawn.write(folder)
    commands.train(task, run, workers=0)
    commands.evaluate(run, workers=0)
    assert FrameIndex.read(folder) == undrawn, "every command would try in vain"
    commands.illustrate(run, whole.asked, workers=0)
    assert FrameIndex.read(folder) == whole and whole.files == {p.name for p in folder.iterdir()} - {"index.json"}


@pytest.mark.slow
def test_pictures_are_bounded(make_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("Huge")
    index, _ = drawn(run)
    for path in (run / "frames/test").glob("*.png"):
        with Image.open(path) as image:
            assert image.size == (512, 256)
    for failure in index.failures.values():
        sizes = [(run / "frames/test" / step.file).stat().st_size for step in failure.steps]
        assert sum(sizes) <= frames.MOST_BYTES and failure.steps[-1].caption.startswith("end")


def test_of_a_long_episode_the_end_and_decisive_steps_are_chosen() -> None:
    decisive = [step in (17, 500, 777) for step in range(1001)]
    chosen = _chosen_steps(decisive, 300)
    assert len(chosen) <= 300 and {0, 17, 500, 777, 1000} <= set(chosen) and chosen == sorted(chosen)
    assert max(np.diff(chosen)) <= 5
    assert _chosen_steps([True] * 1001, 300)[-1] == 1000 and len(_chosen_steps([True] * 1001, 300)) <= 300
    assert _chosen_steps([False] * 4, 300) == [0, 1, 2, 3]


def test_texts_keep_colours_and_no_other_terminal_escapes(tmp_path: Path) -> None:
    lake = "  (Right)\n\x1b[41mS\x1b[0mFF\nF\x1b]0;title\x07HG\r\n"
    name, size = FrameWriter(tmp_path).write(lake)
    text = (tmp_path / name).read_text()
    assert text == "  (Right)\n\x1b[41mS\x1b[0mFF\nF]0;titleHG\n" and size == len(text)
    assert FrameWriter(tmp_path).write("x" * 100_000)[1] == 10_000


def test_equal_pictures_are_kept_once_and_a_changed_one_is_noticed(tmp_path: Path) -> None:
    writer = FrameWriter(tmp_path)
    frame = np.full((4, 4, 3), 7, np.uint8)
    names = {writer.write(frame)[0], writer.write(frame.copy())[0], FrameWriter(tmp_path).write(frame)[0]}
    assert len(names) == 1 and len(list(tmp_path.iterdir())) == 1
    name = names.pop()
    data = read_frame(tmp_path, name)
    assert data is not None and Image.open(io.BytesIO(data)).size == (4, 4)
    (tmp_path / name).write_bytes(data + b"\0")
    assert read_frame(tmp_path, name) is None and read_frame(tmp_path, "0" * 32 + ".png") is None


@pytest.mark.parametrize("name", ["../../run.json", "x.png", "/etc/passwd", "0" * 32 + ".svg", "0" * 32 + ".png\n"])
def test_an_index_names_only_files_of_its_folder(tmp_path: Path, name: str) -> None:
    good = FrameIndex(
        asked=1,
        failures={"0-1": DrawnFailure(steps=[EpisodeStep(step=0, file="0" * 32 + ".png", caption="", decisive=False)])},
    )
    good.write(tmp_path)
    assert FrameIndex.read(tmp_path) == good
    values: dict[str, Any] = good.model_dump(mode="json")
    values["failures"]["0-1"]["steps"][0]["file"] = name
    (tmp_path / "index.json").write_text(json.dumps(values))
    with pytest.raises(RunFolderError, match=r"index\.json was not written by aitia"):
        FrameIndex.read(tmp_path)
