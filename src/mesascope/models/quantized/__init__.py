"""Quantised weights: how they are made, and how they are read as floating-point numbers."""
