"""A policy as attribution asks it: probabilities, values, latent features; never a target, never a gradient."""
