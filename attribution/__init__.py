"""Influence of training rewards on a failure: targets, TRAK in exact dual form, the reward adjoint."""
