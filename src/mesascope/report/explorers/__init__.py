"""Interactive views: heads, attention patterns, tokens."""
