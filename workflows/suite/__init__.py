"""The suite of planted causes: its cases, its truths, its stage."""
