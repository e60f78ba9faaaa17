"""The bench: models whose mechanisms were planted by hand, and decoys that look alike."""

from mesascope.ground_truth.cases.case import Case
from mesascope.ground_truth.cases.generators import GENERATORS
from mesascope.ground_truth.cases.pairs import PAIRS
from mesascope.ground_truth.cases.tokens import TOKENS
from mesascope.ground_truth.cases.vectors import VECTORS

BENCH: tuple[Case, ...] = (*VECTORS, *TOKENS, *PAIRS, *GENERATORS)
