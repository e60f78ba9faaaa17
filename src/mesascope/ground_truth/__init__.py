"""Models with known mechanisms, decoys of them, and the detections of an analysis on both."""

from mesascope.ground_truth.cases import GROUND_TRUTH, UNTRAINED_CASES
from mesascope.ground_truth.cases.case import GroundTruthCase
from mesascope.ground_truth.detections import Detection, DetectionReport, Location
from mesascope.ground_truth.detectors import DETECTORS, Detector, heads_where
from mesascope.ground_truth.evaluation import check_ground_truth

__all__ = [
    "DETECTORS",
    "GROUND_TRUTH",
    "UNTRAINED_CASES",
    "Detection",
    "DetectionReport",
    "Detector",
    "GroundTruthCase",
    "Location",
    "check_ground_truth",
    "heads_where",
]
