"""Dask: workers, schedulers, progress; the only room that imports it."""
