"""Merrill et al. 2021: parameter norm growth."""
