"""Instruments: each reads a capture and returns a labelled Dataset."""
