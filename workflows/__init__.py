"""The stages as functions on Dask, the task file, and the command line."""
