"""Comparisons of one model with the in-context algorithms of a task."""
