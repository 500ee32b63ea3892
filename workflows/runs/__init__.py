"""A run folder, opened: its task, the code it names, its evaluation sets; never a stage that computes."""
