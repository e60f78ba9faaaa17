"""Decoders, training configs, selectors and claims that several studies use."""
