"""Capture and edits of encoder-decoders: two stacks of layers, and the cross-attention between them."""
