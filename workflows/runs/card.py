"""How runs, sets and verdicts show themselves in a console or a notebook: a title and a few lines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape

from ...datasets.plain import one_line, without_secrets


@dataclass(frozen=True)
class Card:
    """A title, and what there is to say under it.

    Attributes:
        title: what it is, and its name.
        lines: by their headings; text of a task or an environment is shown as it is, and steers nothing.
    """

    title: str
    lines: Mapping[str, str]

    @property
    def text(self) -> str:
        """For a console."""
        width = max(map(len, self.lines), default=0)
        lines = [f"  {_plain(name).ljust(width)}  {_plain(value)}" for name, value in self.lines.items()]
        return "\n".join([_plain(self.title), *lines])

    @property
    def html(self) -> str:
        """For a notebook."""
        rows = [f"<tr><th>{_escaped(name)}</th><td>{_escaped(value)}</td></tr>" for name, value in self.lines.items()]
        return f"<table><caption>{_escaped(self.title)}</caption>{''.join(rows)}</table>"


def _plain(text: str) -> str:
    return one_line(without_secrets(text))


def _escaped(text: str) -> str:
    return escape(_plain(text))
