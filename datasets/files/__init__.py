"""Files of a run folder: where each is, and reading and writing that is whole or absent; never what a column means."""
