"""A configurable decoder, and loading of checkpoints and pretrained models."""
