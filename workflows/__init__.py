"""Opened runs, the stages on Dask workers or in one process, the task file, and the command line."""
