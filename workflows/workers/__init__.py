"""Dask: workers, schedulers, progress, and the same in one process; never what a piece of work is."""
