"""Comparison of models with known learning algorithms."""
