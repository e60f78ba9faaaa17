"""Which algorithm a model is nearest to."""
