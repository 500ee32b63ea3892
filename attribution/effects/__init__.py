"""Scores summed: groups, top transitions, orders of correction, clusters of failures; never a score itself."""
