"""Analyses of training: attention over the training history, and parameter norms."""
