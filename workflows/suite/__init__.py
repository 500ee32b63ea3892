"""The suite of planted causes: its cases, its truths, its stage; never a rule of the verdict."""
