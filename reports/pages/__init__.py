"""Pages people read, and the texts and entries on them; never a rule of the verdict."""
