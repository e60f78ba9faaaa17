"""Validation of captures: arguments, inputs, hook points, and the state of the model."""
