"""The public conformance suite: what a new task, measure or study must satisfy before anyone relies on it.

Each check raises ``AssertionError`` with one line that says what does not hold; `check_instrument` returns what was
found, and its ``must_hold`` raises.
"""

from mesascope.testing.bench import BENCH
from mesascope.testing.bench.case import Case
from mesascope.testing.checks import check_measure, check_reduced, check_study, check_task
from mesascope.testing.findings import Findings, Mark
from mesascope.testing.instruments import check_instrument
from mesascope.testing.readings import READINGS, Reading, heads_where

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
