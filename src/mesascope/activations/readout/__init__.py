"""The linear algebra around a capture: output projections, final norm and unembedding."""
