"""Analyses: functions that return a labelled Dataset from a capture, a model or its training history."""

from mesascope.analyses.algorithms.context_length import excess_risk_vs_context_length
from mesascope.analyses.algorithms.identify import which_algorithm
from mesascope.analyses.algorithms.preprocessing import preprocessing
from mesascope.analyses.base import Analysis, analysis, run_analyses
from mesascope.analyses.heads.attention import attention_patterns, positional_attention
from mesascope.analyses.heads.encoder_decoder.cross_copying import cross_copying
from mesascope.analyses.heads.encoder_decoder.lookup import lookup_heads
from mesascope.analyses.heads.label_attention import same_label_attention
from mesascope.analyses.heads.labels import label_head_roles
from mesascope.analyses.heads.natural_induction import natural_induction
from mesascope.analyses.heads.ov_circuit import ov_copying_score
from mesascope.analyses.heads.refinement import refinement_heads
from mesascope.analyses.heads.repeated_tokens import repeated_token_heads, sample_repeated_tokens
from mesascope.analyses.heads.similarity import similarity
from mesascope.analyses.heads.token_similarity import token_similarity
from mesascope.analyses.heads.value_copying import value_copying
from mesascope.analyses.inner_objectives.measure import inner, objective
from mesascope.analyses.iterations import split_iterations
from mesascope.analyses.loss import error_by_label, error_by_output, loss_vs_baselines
from mesascope.analyses.stream.attribution import direct_attribution
from mesascope.analyses.stream.clusters import clusters
from mesascope.analyses.stream.norms import norms
from mesascope.analyses.stream.probes import attn_out_probe, probe_and_logit_lens
from mesascope.analyses.stream.projections import projections, token_projections
from mesascope.analyses.stream.token_attribution import decompose_logits, token_attribution, top_tokens
from mesascope.analyses.stream.token_lenses import affine_lens, logit_lens
from mesascope.analyses.training.parameter_norms import CheckpointSeries, parameter_norms

__all__ = [
    "Analysis",
    "CheckpointSeries",
    "affine_lens",
    "analysis",
    "attention_patterns",
    "attn_out_probe",
    "clusters",
    "cross_copying",
    "decompose_logits",
    "direct_attribution",
    "error_by_label",
    "error_by_output",
    "excess_risk_vs_context_length",
    "inner",
    "label_head_roles",
    "logit_lens",
    "lookup_heads",
    "loss_vs_baselines",
    "natural_induction",
    "norms",
    "objective",
    "ov_copying_score",
    "parameter_norms",
    "positional_attention",
    "preprocessing",
    "probe_and_logit_lens",
    "projections",
    "refinement_heads",
    "repeated_token_heads",
    "run_analyses",
    "same_label_attention",
    "sample_repeated_tokens",
    "similarity",
    "split_iterations",
    "token_attribution",
    "token_projections",
    "token_similarity",
    "top_tokens",
    "value_copying",
    "which_algorithm",
]
