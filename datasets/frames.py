"""Pictures of failing episodes and of suspected training steps: files named by their content, and one index a set.

`frames/SET/index.json` maps what is shown to files. A file's name is the SHA-256 of its bytes (the first 32 digits), so
equal pictures are kept once and a changed one is noticed. An environment that does not draw itself but writes itself
as text (`ansi`) has text files instead.
"""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field

from .files.store import write_bytes, write_json
from .files.typed import read_model

MOST_FRAMES = 300  # of an episode; of a longer one these are chosen
MOST_BYTES = 8 << 20  # of an episode
_LARGEST_SIDE = 512  # pixels; larger pictures are reduced
_MOST_CHARACTERS = 10_000  # of a text
_LARGEST_FILE = 4 << 20
_DIGITS = 32
_COLOUR = re.compile(r"(\x1b\[[0-9;]*m)")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x09\x0b-\x1f\x7f-\x9f]")

Frame = NDArray[np.uint8] | str
FileName = Annotated[str, Field(pattern=r"^[0-9a-f]{32}\.(png|txt)$")]


class _Model(BaseModel):
    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", frozen=True)


class EpisodeStep(_Model):
    """One state of a failing episode: its step, the file that shows it, a caption, and whether it is decisive."""

    step: int = Field(ge=0)
    file: FileName
    caption: str
    decisive: bool


class DrawnFailure(_Model):
    """A failing episode: its states, or why none are shown."""

    steps: list[EpisodeStep] = Field(default_factory=list)
    why: str | None = None


class Moment(NamedTuple):
    """One training transition: where it is in the run."""

    seed: int
    env: int
    window: int
    step: int


class DrawnState(_Model):
    """The state of a training transition; no file: it could not be drawn."""

    moment: Moment
    file: FileName | None


class TrainingStep(_Model):
    """One step of a training episode: its number, the action's name, rewards, and the file that shows the state."""

    number: int
    action: str
    reward: float
    intended: float | None
    file: FileName | None


class DrawnEpisode(_Model):
    """The training episode around a transition; `length` of all of it, None if its end was not read."""

    moment: Moment
    length: int | None
    steps: list[TrainingStep]


class FrameIndex(_Model):
    """Contents of `frames/SET/index.json`.

    Attributes:
        asked: how many failures are to have pictures.
        failures: by failure, its episode.
        states, episodes: of the training, what the pages of these failures show.
    """

    asked: Annotated[int, Field(ge=0)] | Literal["all"]
    failures: dict[str, DrawnFailure] = Field(default_factory=dict)
    states: list[DrawnState] = Field(default_factory=list)
    episodes: list[DrawnEpisode] = Field(default_factory=list)

    @property
    def files(self) -> set[str]:
        """Names of all files."""
        names = [step.file for failure in self.failures.values() for step in failure.steps]
        names += [state.file for state in self.states if state.file is not None]
        names += [step.file for episode in self.episodes for step in episode.steps if step.file is not None]
        return set(names)

    def write(self, folder: Path) -> None:
        """Write the index of a folder of frames, then remove the files that it has no more."""
        write_json(folder / "index.json", self.model_dump(mode="json"))
        kept = self.files
        for pattern in ("*.png", "*.txt"):
            for path in folder.glob(pattern):
                if path.name not in kept:
                    path.unlink(missing_ok=True)

    @staticmethod
    def read(folder: Path) -> FrameIndex | None:
        """Return the index of a folder of frames; None where there is none.

        Raises:
            RunFolderError: it is damaged.
        """
        path = folder / "index.json"
        if not path.exists():
            return None
        return read_model(path, FrameIndex, "aitia illustrate")


class FrameWriter:
    """Writes pictures and texts into a folder, each once.

    Args:
        folder: `frames/SET`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[str, int]] = {}

    def write(self, frame: Frame) -> tuple[str, int]:
        """Write a picture, uint8 [height, width, 3], or a text; return the file's name and its bytes."""
        if isinstance(frame, str):
            return self._write(_plain(frame)[:_MOST_CHARACTERS].encode("utf-8", "replace"), ".txt")
        key = hashlib.sha256(frame.tobytes() + str(frame.shape).encode()).hexdigest()
        if key not in self._known:
            image, buffer = Image.fromarray(frame), io.BytesIO()
            image.thumbnail((_LARGEST_SIDE, _LARGEST_SIDE))
            image.save(buffer, format="PNG", optimize=True)
            self._known[key] = self._write(buffer.getvalue(), ".png")
        return self._known[key]

    def _write(self, data: bytes, ending: str) -> tuple[str, int]:
        name = _digest(data) + ending
        path = self._folder / name
        if not path.exists():
            write_bytes(path, data)
        return name, len(data)


def _plain(text: str) -> str:
    """Return a text whose only terminal escapes are colours: they may be all that shows where the agent is."""
    parts = _COLOUR.split(text)
    return "".join(part if position % 2 else _CONTROL.sub("", part) for position, part in enumerate(parts))


def read_frame(folder: Path, name: str) -> bytes | None:
    """Return the bytes of a file of the index; None if it is missing, or was changed."""
    path = folder / name
    if not path.is_file() or path.stat().st_size > _LARGEST_FILE:
        return None
    data = path.read_bytes()
    return data if _digest(data) == Path(name).stem else None


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGITS]
