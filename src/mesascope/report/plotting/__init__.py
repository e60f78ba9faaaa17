"""Plots of a single labelled variable."""
