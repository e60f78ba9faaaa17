"""Names of the conditions of the norm-growth study, and the sources that its claims share."""

import xarray as xr

from mesascope.studies.base import Results
from mesascope.studies.norm_growth.citation import CITATION

MAIN = ""
INVERSE_SQRT, ADAFACTOR, LINEAR_DECAY, LARGE_DECAY = "inverse", "adapted", "linear", "decayed"
OUTPUT_NORM, MULTIPLICATIVE, OUTPUT_NORM_MULTIPLICATIVE = "output", "zeroed", "both"
SGD_SHUFFLED, ADAMW_SHUFFLED = "random", "shuffled"

PAPER, OURS = CITATION.short, "ours"
OUR_THRESHOLD = f"{PAPER}; the threshold is ours"
OUTPUT_FORM = "x + norm(f(x))"


def condition_result(results: Results, analysis: str, condition: str) -> xr.Dataset:
    """Return the result of an analysis in one condition.

    Args:
        results: of a run.
        analysis: name of the analysis.
        condition: name of the condition; empty for the main one.
    """
    return results[f"{condition}_{analysis}" if condition else analysis]
