"""Models of our own: one configurable decoder, planted ones with weights set by hand, and loading any other."""
