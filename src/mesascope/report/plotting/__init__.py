"""Plots of one labelled variable."""
