"""Tasks whose sequences are expressions, with an answer that is computed from the bottom up."""
