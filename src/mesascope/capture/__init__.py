"""Recording and editing what happens inside a forward pass: one path for every model."""
