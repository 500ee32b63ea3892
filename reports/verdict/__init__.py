"""From rates to the verdict, and its words; a pure function of tables and thresholds."""
