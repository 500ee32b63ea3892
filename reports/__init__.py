"""Verdicts as pure functions of tables, figures, and the pages people read."""
