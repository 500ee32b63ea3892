"""Text of a run, a task or an environment as it is shown: it cannot steer a terminal, reorder a line or tell a secret.

Names come from whoever wrote them. What a terminal, a page or a log shows of them is what they hold, letter by letter.
"""

from __future__ import annotations

import logging
import re
import unicodedata

# Control characters, marks of direction, tags, and halves of characters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ud800-\udfff\U000e0000-\U000e007f]"
)
_LINE_ENDS = str.maketrans({"\n": "\\n", "\t": "\\t", "\u2028": "\\u2028", "\u2029": "\\u2029"})
_RIGHT_TO_LEFT = ("R", "AL", "AN")
ISOLATED, ISOLATED_END = "\u2068", "\u2069"  # what the element `bdi` stands for, where there are no elements
_USER = re.compile(r"(\w[\w+.-]*:/{1,2})(?:[^\s/@'\"]+|[^\s/@'\"]+:[^\s@'\"]*)@")
_SIGNED = re.compile(r"(\w[\w+.-]*://[^\s?#'\"<>]+)\?[^\s'\"<>)]+")


def plain(text: str, backslash: str = "\\") -> str:
    r"""Return text with what cannot be seen written as an escape, such as `\x1b`; tabs and line ends stay."""
    return _UNSEEN.sub(lambda match: backslash + match[0].encode("unicode_escape").decode("ascii")[1:], text)


def one_line(text: str) -> str:
    """Return plain text on one line."""
    return plain(text).translate(_LINE_ENDS)


def isolated(text: str) -> str:
    """Return plain text; one that is written from right to left does not reorder what stands next to it."""
    text = plain(text)
    if text.isascii() or not any(unicodedata.bidirectional(letter) in _RIGHT_TO_LEFT for letter in text):
        return text
    return f"{ISOLATED}{text}{ISOLATED_END}"


def without_secrets(text: str) -> str:
    """Return text without user names, passwords and signatures of the addresses in it."""
    return _SIGNED.sub(r"\1?...", _USER.sub(r"\1...@", text))


class PlainFormatter(logging.Formatter):
    """Log lines that only say something: one line a message, without secrets."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        return one_line(without_secrets(super().formatMessage(record)))
