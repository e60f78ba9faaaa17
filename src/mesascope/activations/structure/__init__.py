"""Model structure, found by tracing one forward pass."""
