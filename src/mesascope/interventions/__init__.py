"""Causal interventions: ablation, steering, activation patching, path patching, attribution patching."""

from mesascope.activations.generation.apply_edits import apply_edits
from mesascope.interventions._batched import ProgressFn
from mesascope.interventions.activation_patching import patch
from mesascope.interventions.attribution_patching import attribution_patch
from mesascope.interventions.edits import knock_out_attention, mean, replace, resample, scale, steer, zero
from mesascope.interventions.head_ablation_effects import head_ablation_effects
from mesascope.interventions.head_contributions import total_head_contributions
from mesascope.interventions.metrics import Metric, log_probability, logit_difference, task_loss
from mesascope.interventions.path_patching import path_patch
from mesascope.interventions.sweep import sweep

__all__ = [
    "Metric",
    "ProgressFn",
    "apply_edits",
    "attribution_patch",
    "head_ablation_effects",
    "knock_out_attention",
    "log_probability",
    "logit_difference",
    "mean",
    "patch",
    "path_patch",
    "replace",
    "resample",
    "scale",
    "steer",
    "sweep",
    "task_loss",
    "total_head_contributions",
    "zero",
]
