"""What a reward is corrected to, and which rewards are corrected together; never who is trained with it."""
