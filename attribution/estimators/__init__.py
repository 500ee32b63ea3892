"""Estimators and baselines that score a window's transitions; never sums over windows."""
