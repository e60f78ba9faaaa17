"""Changing what happens inside a forward pass, and what it costs."""

from mesascope.interventions.ablation import ablation

__all__ = ["ablation"]
