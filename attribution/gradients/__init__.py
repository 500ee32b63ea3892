"""Per-sample gradients and their kernel, exact and factored; never which rewards they are credited to."""
