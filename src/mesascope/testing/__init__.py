"""The public conformance suite: what a new task, measure or study must satisfy before anyone relies on it.

Each check raises ``AssertionError`` with one line that says what does not hold; `check_instrument` returns what was
found, and its ``must_hold`` raises.
"""

from mesascope.ground_truth.cases import BENCH
from mesascope.ground_truth.cases.case import Case
from mesascope.ground_truth.check_instrument import check_instrument
from mesascope.ground_truth.findings import Findings, Mark
from mesascope.ground_truth.readings import READINGS, Reading, heads_where
from mesascope.testing.checks import check_measure, check_reduced, check_study, check_task

__all__ = [
    "BENCH",
    "READINGS",
    "Case",
    "Findings",
    "Mark",
    "Reading",
    "check_instrument",
    "check_measure",
    "check_reduced",
    "check_study",
    "check_task",
    "heads_where",
]
