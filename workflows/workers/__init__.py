"""Dask: workers, schedulers, progress; besides the options of the command line, the only room that imports it."""
