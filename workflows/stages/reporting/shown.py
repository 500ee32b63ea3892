"""What a failure's page shows of the training: the rewards chosen for it, and what was drawn of them and of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ....datasets.files.store import write_bytes
from ....datasets.frames import DrawnEpisode, FrameIndex, Moment, read_frame
from ....reports.pages.views import EpisodeView, FrameView, RewardView, StepView
from ...runs.recorded import NOT_RECORDED, EnvironmentRecord

_SHOWN_REWARDS = 6
_SHOWN_EPISODES = 3


class ShownRewards(NamedTuple):
    """Rows of the top-k table that a failure's page shows."""

    corrections: list[dict[str, Any]]
    influential: list[dict[str, Any]]


def shown_rewards(top: pa.Table) -> ShownRewards:
    """Choose the rewards for a failure's page among its top-k rows; of each group and action the most influential."""
    rows = top.to_pylist()
    for row in rows:
        intended = row["intended_reward"]
        row["effect"] = None if intended is None else (intended - row["reward"]) * row["tau"]
    helpful = sorted(
        (row for row in rows if row["effect"] is not None and row["effect"] < 0), key=lambda r: r["effect"]
    )
    strongest = sorted(rows, key=lambda row: -abs(row["tau"]))
    return ShownRewards(_distinct(helpful), _distinct(strongest))


def _distinct(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    seen: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        seen.setdefault((row["group"], row["action"]), row)
    return list(seen.values())[:_SHOWN_REWARDS]


def moment_of(row: Mapping[str, Any]) -> Moment:
    """Return where a row of the top-k table is in the run."""
    return Moment(row["seed"], row["env"], row["window"], row["step"])


def episode_rows(shown: ShownRewards) -> list[dict[str, Any]]:
    """Choose the rewards whose whole episodes are drawn: wrong ones, else those with the largest influence."""
    seen: dict[tuple[int, int, int], dict[str, Any]] = {}
    for row in shown.corrections or shown.influential:
        seen.setdefault((row["seed"], row["window"], row["env"]), row)
    return list(seen.values())[:_SHOWN_EPISODES]


class TrainingViews(NamedTuple):
    """Of the training, what a failure's page shows."""

    corrections: list[RewardView]
    influential: list[RewardView]
    episodes: list[EpisodeView]


class Drawn:
    """What was drawn of a set's failures, on its way into a report: files are copied as pages ask for them.

    Args:
        frames: `frames/SET` of the run.
        index: its index; None: nothing was drawn.
        assets: where pages have their pictures.
        record: what is known of the environment; None: nothing.
    """

    def __init__(self, frames: Path, index: FrameIndex | None, assets: Path, record: EnvironmentRecord | None) -> None:
        self._frames, self._index, self._assets, self._record = frames, index, assets, record
        known = index or FrameIndex(asked=0)
        self._states = {state.moment: state.file for state in known.states}
        self._episodes = {episode.moment: episode for episode in known.episodes}
        self._copied: dict[str, bytes | None] = {}

    @property
    def damaged(self) -> list[str]:
        """Files of the index that are missing or were changed, of those that were asked for."""
        return sorted(name for name, data in self._copied.items() if data is None)

    def episode(self, failure: str) -> tuple[list[FrameView], str]:
        """Return the states of a failing episode, and why there are none where there are none."""
        if self._index is None:
            return [], f"Pictures were {NOT_RECORDED}, or none were drawn; aitia illustrate RUN draws them."
        drawn = self._index.failures.get(failure)
        if drawn is None:
            return [], "This failure was not chosen for pictures; aitia illustrate RUN all draws every one."
        views = [(self._asset(step.file), self._text(step.file), step) for step in drawn.steps]
        frames = [
            FrameView(asset or "", step.caption, step.decisive, text, step.step)
            for asset, text, step in views
            if asset is not None or text is not None
        ]
        return frames, drawn.why or "The pictures of this failure are missing or were changed by hand: none is shown."

    def training(self, failure: str, shown: ShownRewards) -> TrainingViews:
        """Return what a failure's page shows of the training; pictures only where the failure itself has some."""
        drawn = self._index is not None and failure in self._index.failures
        corrections, influential = ([self._reward(row, drawn) for row in rows] for rows in shown)
        episodes = [
            EpisodeView(self._reward(row, drawn), self._steps(self._episodes[moment_of(row)]), length)
            for row in episode_rows(shown)
            if drawn and moment_of(row) in self._episodes
            for length in [self._episodes[moment_of(row)].length]
        ]
        return TrainingViews(corrections, influential, episodes)

    def action_name(self, text: str) -> str:
        """Return the name of an action given as text; the text itself where no name is known."""
        return text if self._record is None else self._record.action_name(text)

    def _reward(self, row: Mapping[str, Any], drawn: bool) -> RewardView:
        return RewardView(
            row["group"], self.action_name(row["action"]), row["seed"], row["window"], row["env"], row["step"],
            row["reward"], row["intended_reward"], row["tau"], row["effect"],
            self._asset(self._states.get(moment_of(row))) if drawn else None,
        )  # fmt: skip

    def _steps(self, episode: DrawnEpisode) -> list[StepView]:
        return [
            StepView(step.number, step.action, step.reward, step.intended, self._asset(step.file))
            for step in episode.steps
        ]

    def _asset(self, name: str | None) -> str | None:
        """Copy a picture into the report and return its name; None where it is none."""
        return None if name is None or not name.endswith(".png") or self._bytes(name) is None else name

    def _text(self, name: str) -> str | None:
        data = self._bytes(name) if name.endswith(".txt") else None
        return None if data is None else data.decode("utf-8", "replace")

    def _bytes(self, name: str) -> bytes | None:
        if name not in self._copied:
            data = self._copied[name] = read_frame(self._frames, name)
            if data is not None and name.endswith(".png"):
                write_bytes(self._assets / name, data)
                self._copied[name] = b""  # it stands in its file now
        return self._copied[name]
