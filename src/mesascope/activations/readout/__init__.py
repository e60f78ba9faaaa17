"""Linear maps around the activations: output projections, value projections, output head, embeddings."""
