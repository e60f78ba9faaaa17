"""Ground-truth cases: models with mechanisms set by hand, and decoys of them."""

from mesascope.ground_truth.cases.case import GroundTruthCase
from mesascope.ground_truth.cases.generators import GENERATOR_CASES
from mesascope.ground_truth.cases.pairs import PAIR_CASES
from mesascope.ground_truth.cases.refinement import REFINEMENT_CASES
from mesascope.ground_truth.cases.tokens import TOKEN_CASES
from mesascope.ground_truth.cases.untrained import UNTRAINED_CASES
from mesascope.ground_truth.cases.vectors import VECTOR_CASES

GROUND_TRUTH: tuple[GroundTruthCase, ...] = (
    *VECTOR_CASES,
    *REFINEMENT_CASES,
    *TOKEN_CASES,
    *PAIR_CASES,
    *GENERATOR_CASES,
)

__all__ = ["GROUND_TRUTH", "UNTRAINED_CASES", "GroundTruthCase"]
