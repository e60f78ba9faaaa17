"""Instruments: each reads a capture and returns a labelled Dataset."""

from mesascope.analyses.algorithms.context_length import excess_by_examples
from mesascope.analyses.algorithms.identify import which_algorithm
from mesascope.analyses.algorithms.preprocessing import preprocessing
from mesascope.analyses.base import Measure, measure, measure_all
from mesascope.analyses.heads.attention import copying, patterns, position
from mesascope.analyses.heads.label_attention import matching
from mesascope.analyses.heads.labels import role_names
from mesascope.analyses.heads.natural_induction import repeats
from mesascope.analyses.heads.ov_circuit import token_copying
from mesascope.analyses.heads.repeated_tokens import repeated_tokens, roles
from mesascope.analyses.heads.similarity import similarity
from mesascope.analyses.heads.token_similarity import token_similarity
from mesascope.analyses.inner_objectives.measure import inner, objective
from mesascope.analyses.loss import behaviour, error_by_label, error_by_output
from mesascope.analyses.stream.attribution import attribution
from mesascope.analyses.stream.clusters import clusters
from mesascope.analyses.stream.norms import norms
from mesascope.analyses.stream.probes import estimate, lens
from mesascope.analyses.stream.projections import pictures, token_pictures
from mesascope.analyses.stream.token_attribution import contributions_to, token_attribution, top_tokens
from mesascope.analyses.stream.token_lenses import affine_lens, logit_lens
from mesascope.analyses.training.parameter_norms import Trail, growth

__all__ = [
    "Measure",
    "Trail",
    "affine_lens",
    "attribution",
    "behaviour",
    "clusters",
    "contributions_to",
    "copying",
    "error_by_label",
    "error_by_output",
    "estimate",
    "excess_by_examples",
    "growth",
    "inner",
    "lens",
    "logit_lens",
    "matching",
    "measure",
    "measure_all",
    "norms",
    "objective",
    "patterns",
    "pictures",
    "position",
    "preprocessing",
    "repeated_tokens",
    "repeats",
    "role_names",
    "roles",
    "similarity",
    "token_attribution",
    "token_copying",
    "token_pictures",
    "token_similarity",
    "top_tokens",
    "which_algorithm",
]
