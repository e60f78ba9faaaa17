"""Opening language models on a text, and measuring what is found."""

from mesascope.inspection.algorithm_id import Answer, name_algorithms
from mesascope.inspection.inspect import Progress, inspect_model
from mesascope.inspection.passes import NAMES
from mesascope.inspection.text import prose

__all__ = ["NAMES", "Answer", "Progress", "inspect_model", "name_algorithms", "prose"]
