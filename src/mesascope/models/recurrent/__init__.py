"""Transformers that apply the same layers repeatedly, over depth or over chunks, with dynamic halting."""
