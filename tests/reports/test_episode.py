"""A failing episode as a table of its steps, where nothing was drawn: what stands in it, and what folds."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_report import made_steps, write_report

from aitia.datasets.arrays import Array, pack
from aitia.datasets.errors import RunFolderError
from aitia.reports.pages.episode import Piece, episode_table, in_short, pieces
from aitia.reports.pages.write import _templates

NAMES = {"0": "left", "1": "right", "2": "wait"}


def test_equal_steps_in_a_row_fold_and_a_difference_of_any_kind_ends_the_line() -> None:
    folded = episode_table(made_steps(40), NAMES.__getitem__)
    assert [(line.first, line.last) for line in folded.lines] == [(0, 39)]
    for column, values in {
        "reward": [0.0] * 12 + [1.0] * 28,
        "value": [0.5] * 12 + [0.7] * 28,
        "action": [1] * 12 + [2] * 28,
        "probabilities": [[0.25, 0.6, 0.15]] * 12 + [[0.6, 0.25, 0.15]] * 28,
    }.items():
        found = episode_table(made_steps(40, **{column: pa.array(values)}), NAMES.__getitem__)
        assert [(line.first, line.last) for line in found.lines] == [(0, 11), (12, 39)], column
    drawn = dict(enumerate(["a"] * 3 + ["b"] * 38))
    assert [line.last for line in episode_table(made_steps(40), NAMES.__getitem__, drawn).lines] == [2, 39]


def test_a_step_has_its_action_by_name_every_probability_value_reward_and_observation() -> None:
    found = episode_table(made_steps(1, reward=pa.array([0.75])), NAMES.__getitem__)
    (line,) = found.lines
    assert found.actions == ("left", "right", "wait") == found.columns and found.complete
    assert (line.action, line.probabilities, line.value, line.reward) == ("right", (0.25, 0.6, 0.15), 0.5, 0.75)
    assert line.observation == "[0.25, 1, 0]"


def test_decisive_steps_are_marked() -> None:
    labels = pa.array([[-1, 1, 0], [0, 1, 0]], pa.list_(pa.int8()))
    found = episode_table(made_steps(2, action_labels=labels), NAMES.__getitem__)
    assert [line.decisive for line in found.lines] == [True, False], "the second has no desired action"


def test_a_table_of_an_earlier_version_is_shown_without_rewards_and_probabilities() -> None:
    old = made_steps(3).drop_columns(["reward", "probabilities"])
    found = episode_table(old, NAMES.__getitem__)
    assert not found.complete and found.actions == () and found.lines[0].reward is None
    assert found.lines[0].log_prob == -0.5


@pytest.mark.parametrize(
    "column",
    [
        {"value": pa.array([0.5, None])},
        {"probabilities": pa.array([[0.5, 0.5], [1.0]])},
        {"probabilities": pa.array([[0.5, None], [0.5, 0.5]])},
    ],
)
def test_damaged_steps_are_an_error_and_no_page(column: dict[str, pa.Array]) -> None:
    with pytest.raises(RunFolderError, match="damaged"):
        episode_table(made_steps(2, **column), NAMES.__getitem__)


def test_of_many_actions_the_unlikely_ones_are_counted() -> None:
    said = [0.5, 0.005] + [0.01] * 49 + [0.005]
    found = episode_table(made_steps(1, probabilities=pa.array([said])), lambda text: f"a{text}")
    assert found.columns == (), "too many for a column each"
    words = found.likely(found.lines[0])
    assert words.startswith("a0 50%") and "a1 0%" in words, "the action taken is always named"
    assert words.endswith("1 other under 1%")


def test_of_a_long_episode_both_ends_are_shown_and_the_rest_is_counted() -> None:
    found = episode_table(made_steps(100, reward=pa.array(np.arange(100.0))), NAMES.__getitem__, most=10)
    assert [line.first for line in found.lines] == [*range(5), *range(95, 100)]
    assert found.left_out == (0, 0, 0, 0, 0, 90, 0, 0, 0, 0) and found.decisive_left_out == 0


def test_of_a_long_episode_decisive_steps_are_shown_with_their_neighbours() -> None:
    def labelled(*decisive: int) -> pa.Array:
        return pa.array([[-1, 1, 0] if t in decisive else [0, 0, 0] for t in range(100)], pa.list_(pa.int8()))

    rewards = pa.array(np.arange(100.0))
    steps = made_steps(100, reward=rewards, action_labels=labelled(40, 60, 61))
    found = episode_table(steps, NAMES.__getitem__, most=10)
    assert [line.first for line in found.lines] == [*range(5), 39, 40, 41, 59, 60, 61, 62, *range(95, 100)]
    assert [n for n in found.left_out if n] == [34, 17, 32] and found.decisive_left_out == 0
    assert [line.first for line in found.lines if line.decisive] == [40, 60, 61]
    many = episode_table(made_steps(100, reward=rewards, action_labels=labelled(*range(20, 80))), str, most=10)
    assert len(many.lines) == 20 and many.decisive_left_out == 60 - 9, "bounded, and what is missing is counted"


def test_the_probability_of_the_action_taken_is_bold_also_where_names_repeat() -> None:
    found = episode_table(made_steps(1), lambda _: "act")
    assert [line.taken for line in found.lines] == [1]
    page = (
        _templates()
        .from_string('{% import "parts.html" as parts %}{{ parts.steps(table, "end", "..", "test") }}')
        .render(table=found)
    )
    assert re.findall(r"<strong>(.*?)</strong>", page) == ["60%"]


@pytest.mark.parametrize(
    ("observations", "said"),
    [
        (np.array([[7], [8]]), "8"),
        (np.array([[0.123456, -2.0], [0.5, 1.0]], np.float32), "[0.5, 1]"),
        (np.eye(64, dtype=np.float32)[[3, 12]], "one-hot, 12 of 64"),
        (np.arange(200.0).reshape(2, 100), "100 numbers, 100 changed"),
        (np.stack([np.zeros((3, 8, 8), np.uint8), np.full((3, 8, 8), 9, np.uint8)]), "image 3×8×8, 192 changed"),
        (pack({"at": np.array([[1], [2]]), "to": np.array([[0.5, 1.0], [1.5, 1.0]])}), "at: 2; to: [1.5, 1]"),
    ],
)
def test_an_observation_is_said_in_short(observations: Array, said: str) -> None:
    assert in_short(observations, 1) == said


def test_what_colour_sets_off_is_marked_and_no_other_escape_is_obeyed() -> None:
    frozen_lake = "  (Left)\nS\x1b[41mF\x1b[0mFF\n"
    assert pieces(frozen_lake) == (Piece("  (Left)\nS", False), Piece("F", True), Piece("FF\n", False))
    hostile = "a\x1b]0;title\x07b\x1b[2Jc\x1b[10;10Hd\x9b\u202ee\rf\x1b"
    assert "".join(piece.text for piece in pieces(hostile)) == "abcdef"
    assert pieces("x" * 5000)[-1].text == " …"


@pytest.mark.parametrize("off", ["0", "", "39", "22;39", "0;39"])
@pytest.mark.parametrize("on", ["31", "91", "38;5;39", "38;2;0;0;39"])
def test_a_colour_that_is_set_back_marks_nothing_after_it(on: str, off: str) -> None:
    """Colorama and rich set back with codes of their own: 39 and 49 (colours), 22 to 29 (styles)."""
    assert pieces(f"a\x1b[{on}mb\x1b[{off}mc") == (Piece("a", False), Piece("b", True), Piece("c", False))


def test_what_one_code_sets_back_leaves_the_others_on() -> None:
    found = pieces("\x1b[1;41mb\x1b[22mc\x1b[49md\x1b[39;49;22me")
    assert [piece.marked for piece in found] == [True, True, False, False]
    assert [
        pieces(f"\x1b[{on}ma\x1b[{off}mb")[1].marked for on, off in ((1, 22), (3, 23), (4, 24), (7, 27), (9, 29))
    ] == [False] * 5
    assert pieces("\x1b[" + "9" * 5000 + "ma")[0].text == "a", "a number of any length"


def test_text_is_cut_by_what_can_be_seen_of_it() -> None:
    coloured = "\x1b[31mx\x1b[0m" * 1000
    assert "".join(piece.text for piece in pieces(coloured)) == "x" * 1000, "10,000 characters, 1,000 of them seen"
    assert "".join(piece.text for piece in pieces("\x1b[31my\x1b[0m" * 4500)) == "y" * 4000 + " …"
    assert "".join(piece.text for piece in pieces("z" * 4000)) == "z" * 4000


class Text(HTMLParser):
    """The text of a page, without that of its elements that are closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, str]] = []
        self._tag = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._tag = tag

    def handle_data(self, data: str) -> None:
        self.found.append((self._tag, data))


def test_a_page_without_pictures_shows_the_steps_and_what_was_drawn_as_text(tmp_path: Path) -> None:
    made = write_report(tmp_path / "run", text="<i>zz", drawn=False)
    page = (made.folder / "failures" / "0-0.html").read_text()
    assert 'class="player"' not in page and 'class="strip"' not in page
    steps = page[page.index('class="scroll steps"') :]
    for word in ("π(0&lt;i&gt;zz)", "60%", "<meter", "[0.25, 1, 0]", "room 0"):
        assert word in steps, word
    marked = [data for tag, data in Text(steps).found if tag == "mark"]
    assert marked[0] == "A" and "<i>" not in steps
    assert "Every step" not in page, "nothing else shows the episode, so the table is open"


def test_a_page_with_pictures_has_the_steps_folded_away(tmp_path: Path) -> None:
    made = write_report(tmp_path / "run")
    page = (made.folder / "failures" / "0-0.html").read_text()
    assert 'class="player"' in page and re.search(r"<details><summary>Every step</summary>\s*<div", page)
    index = (made.folder / "index.html").read_text()
    assert "assets/frames/" in index
