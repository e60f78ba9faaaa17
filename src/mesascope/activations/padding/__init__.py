"""Padding of sequences of unequal length: masks, and edits of padded sequences."""
