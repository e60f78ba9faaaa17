"""Models whose mechanism is known, decoys, and what instruments find in them."""
