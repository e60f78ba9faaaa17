"""Interactive views of heads, attention patterns and tokens."""
