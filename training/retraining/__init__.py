"""Training again with edited rewards: live, as stacked networks, or on the record; never which edits, or why."""
