"""The bench: models whose mechanisms were planted by hand, and decoys that look alike."""

from mesascope.testing.bench.case import Case
from mesascope.testing.bench.generators import GENERATORS
from mesascope.testing.bench.pairs import PAIRS
from mesascope.testing.bench.tokens import TOKENS
from mesascope.testing.bench.vectors import VECTORS

BENCH: tuple[Case, ...] = (*VECTORS, *TOKENS, *PAIRS, *GENERATORS)
