"""The public conformance suite for new tasks, analyses, toy models and studies.

Each check raises ``AssertionError`` with one line that says what must hold. :func:`check_ground_truth` returns a report
instead, whose ``assert_exact`` raises.
"""

from mesascope.ground_truth import (
    DETECTORS,
    GROUND_TRUTH,
    UNTRAINED_CASES,
    Detection,
    DetectionReport,
    Detector,
    GroundTruthCase,
    Location,
    check_ground_truth,
    heads_where,
)
from mesascope.testing._checks import check_analysis, check_study, check_task, check_toy_model

__all__ = [
    "DETECTORS",
    "GROUND_TRUTH",
    "UNTRAINED_CASES",
    "Detection",
    "DetectionReport",
    "Detector",
    "GroundTruthCase",
    "Location",
    "check_analysis",
    "check_ground_truth",
    "check_study",
    "check_task",
    "check_toy_model",
    "heads_where",
]
