"""What a model is made of, found by tracing one forward pass."""
