"""Recorders: transitions and parameters of a training as they arise, into a run folder; never an edited reward."""
