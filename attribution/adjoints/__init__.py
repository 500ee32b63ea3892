"""From effects of advantages or TD targets to effects of rewards; never a gradient of a network."""
