"""Changing what happens inside a forward pass, and what it costs."""
