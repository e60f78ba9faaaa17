"""Data-generating processes with exact oracles, one file per kind."""
