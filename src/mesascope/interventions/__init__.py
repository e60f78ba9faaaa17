"""Changing what happens inside a forward pass, and what it costs."""

from mesascope.interventions.ablation import ablation
from mesascope.interventions.attribution import attribution_patch
from mesascope.interventions.changes import mean, replace, resample, scale, steer, zero
from mesascope.interventions.effects import head_effects
from mesascope.interventions.future import future
from mesascope.interventions.metrics import Metric, log_probability, logit_difference, task_loss
from mesascope.interventions.paths import path_patch
from mesascope.interventions.pruning import pruning
from mesascope.interventions.saturation import saturation
from mesascope.interventions.sweep import patch, sweep

__all__ = [
    "Metric",
    "ablation",
    "attribution_patch",
    "future",
    "head_effects",
    "log_probability",
    "logit_difference",
    "mean",
    "patch",
    "path_patch",
    "pruning",
    "replace",
    "resample",
    "saturation",
    "scale",
    "steer",
    "sweep",
    "task_loss",
    "zero",
]
