"""Environments as a task names them: made, wrapped, checked, fingerprinted; never one family's rules."""
