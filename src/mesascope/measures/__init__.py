"""Instruments: each reads a capture and returns a labelled Dataset."""

from mesascope.measures.attribution import attribution
from mesascope.measures.base import Measure, measure, measure_all
from mesascope.measures.behaviour import behaviour
from mesascope.measures.heads import copying, patterns, position
from mesascope.measures.inner import inner, objective
from mesascope.measures.lens import estimate, lens
from mesascope.measures.norms import norms
from mesascope.measures.similarity import similarity
from mesascope.measures.token_lens import affine_lens, logit_lens

__all__ = [
    "Measure",
    "affine_lens",
    "attribution",
    "behaviour",
    "copying",
    "estimate",
    "inner",
    "lens",
    "logit_lens",
    "measure",
    "measure_all",
    "norms",
    "objective",
    "patterns",
    "position",
    "similarity",
]
