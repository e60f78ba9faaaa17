"""Analyses of the attention heads of encoder-decoders."""
