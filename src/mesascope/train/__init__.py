"""Training: one loop that one reads top to bottom."""
