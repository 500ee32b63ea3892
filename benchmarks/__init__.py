"""Measurements against baselines; never part of the tests."""
