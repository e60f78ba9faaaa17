"""Data-generating processes with exact baselines, one file per kind."""
