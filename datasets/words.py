"""Counts in words: `1 group`, `2 groups`; for messages and pages alike."""

from __future__ import annotations


def counted(number: float, noun: str) -> str:
    """Return a whole number (a mean is rounded) with its noun, in the plural unless it is 1: `1,234 reward events`."""
    whole = round(number)
    return f"{whole:,} {noun}" if whole == 1 else f"{whole:,} {noun}s"
