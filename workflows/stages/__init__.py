"""The stages of the pipeline, one file each; never the arithmetic that they call."""
