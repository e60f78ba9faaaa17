"""Inspection of language models: analyses of one model, or of several checkpoints, on a text."""

from mesascope.inspection._algorithm_id import AlgorithmReport, identify_algorithms
from mesascope.inspection._inspect import get_model_name, inspect_model
from mesascope.inspection._inspection import StageProgressFn
from mesascope.inspection._passes import ANALYSIS_NAMES
from mesascope.inspection._text import load_prose

__all__ = [
    "ANALYSIS_NAMES",
    "AlgorithmReport",
    "StageProgressFn",
    "get_model_name",
    "identify_algorithms",
    "inspect_model",
    "load_prose",
]
