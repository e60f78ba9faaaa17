"""Edits of forward passes that the user runs, with or without a key-value cache."""
