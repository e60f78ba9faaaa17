"""Reduced models: what theories study in place of a transformer, each with the training that the theory is about."""

from mesascope.reduced.base import Progress, Reduced

__all__ = ["Progress", "Reduced"]
