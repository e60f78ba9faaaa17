"""A small encoder-decoder, whose input is a source and a target in one sequence."""
