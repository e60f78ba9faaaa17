"""Models whose mechanism is known, because their weights were set by hand."""
