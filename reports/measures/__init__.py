"""What is measured next to the verdict: curves, budgets, calibration, learning; never a figure or a page."""
