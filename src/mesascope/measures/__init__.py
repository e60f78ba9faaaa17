"""Instruments: each reads a capture and returns a labelled Dataset."""

from mesascope.measures.algorithms import which_algorithm
from mesascope.measures.attribution import attribution
from mesascope.measures.base import Measure, measure, measure_all
from mesascope.measures.behaviour import behaviour, error_by_label, error_by_output
from mesascope.measures.clusters import clusters
from mesascope.measures.fewer import excess_by_examples
from mesascope.measures.growth import Trail, growth
from mesascope.measures.heads import copying, patterns, position
from mesascope.measures.inner import inner, objective
from mesascope.measures.lens import estimate, lens
from mesascope.measures.matching import matching
from mesascope.measures.names import role_names
from mesascope.measures.norms import norms
from mesascope.measures.ov import token_copying
from mesascope.measures.pictures import pictures, token_pictures
from mesascope.measures.preprocessing import preprocessing
from mesascope.measures.repeats import repeats
from mesascope.measures.roles import repeated_tokens, roles
from mesascope.measures.similarity import similarity
from mesascope.measures.token_attribution import contributions_to, token_attribution, top_tokens
from mesascope.measures.token_lens import affine_lens, logit_lens
from mesascope.measures.token_similarity import token_similarity

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
