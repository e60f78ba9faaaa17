"""Inspection of language models: analyses of one model, or of several checkpoints, on a text."""

from mesascope.inspection._algorithm_id import identify_algorithms
from mesascope.inspection._circuit_inputs import RunModel, open_language_model, open_run, open_run_model
from mesascope.inspection._find_circuit import CircuitSearch, find_circuit
from mesascope.inspection._inspect import DTYPES, get_model_name, inspect_model
from mesascope.inspection._inspection import StageProgressFn
from mesascope.inspection._pair_file import MIN_PAIRS
from mesascope.inspection._passes import ANALYSIS_NAMES
from mesascope.inspection._text import encode_prompt, find_text_prefix, load_sample_text
from mesascope.inspection._token_ids import TokenIdsLike, find_token_task
from mesascope.inspection._token_text import TokenDecoder
from mesascope.inspection.comparisons._ranking_run import describe_ranking, write_rankings
from mesascope.inspection.comparisons._report import AlgorithmReport

__all__ = [
    "ANALYSIS_NAMES",
    "DTYPES",
    "MIN_PAIRS",
    "AlgorithmReport",
    "CircuitSearch",
    "RunModel",
    "StageProgressFn",
    "TokenDecoder",
    "TokenIdsLike",
    "describe_ranking",
    "encode_prompt",
    "find_circuit",
    "find_text_prefix",
    "find_token_task",
    "get_model_name",
    "identify_algorithms",
    "inspect_model",
    "load_sample_text",
    "open_language_model",
    "open_run",
    "open_run_model",
    "write_rankings",
]
