"""Pages without the seconds of drawing them: empty stills, and the figures' library made once a session."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import vl_convert
from filelock import FileLock

KEPT = "AITIA_TESTS_BUNDLE"  # names the file that keeps the library
_bundle = vl_convert.javascript_bundle


def empty_still(*_: Any, **__: Any) -> str:
    """Stand for `vl_convert.vegalite_to_svg`, 0.1 s a figure: what it shows is in the specification beside it."""
    return '<svg xmlns="http://www.w3.org/2000/svg"/>\n'


def kept_bundle(snippet: str, vl_version: str | None = None) -> str:
    """Stand for `vl_convert.javascript_bundle`, a second a process: what it returns, made once."""
    path = Path(os.environ[KEPT])
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            path.write_text(_bundle(snippet, vl_version), encoding="utf-8")
        return path.read_text(encoding="utf-8")


def draw_nothing() -> None:
    """Let this process, which a test started, draw no stills and take the library as it is kept."""
    vl_convert.vegalite_to_svg, vl_convert.javascript_bundle = empty_still, kept_bundle
