"""Tasks that are learned in context."""
