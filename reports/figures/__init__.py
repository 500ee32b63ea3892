"""Figures: their grammar, their specifications and their files; never a number that is not handed in."""
