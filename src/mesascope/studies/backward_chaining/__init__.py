"""Brinkmann et al. 2024: path finding in trees by backward chaining."""
