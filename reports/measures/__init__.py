"""What is measured beside the verdict: curves, budgets, calibration, learning; never a figure or a page."""
