"""From rates to the verdict, and its words: pure functions of tables and thresholds; never a score of influence."""
