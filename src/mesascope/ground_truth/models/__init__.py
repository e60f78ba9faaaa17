"""Models with known mechanisms: their weights are set by hand."""
