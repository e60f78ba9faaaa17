"""Evaluation of an analysis on models with known mechanisms."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence

import xarray as xr

from mesascope.activations import EditHadNoEffect
from mesascope.analyses.base import Analysis, run_analyses
from mesascope.ground_truth.cases import GROUND_TRUTH
from mesascope.ground_truth.cases.case import GroundTruthCase
from mesascope.ground_truth.detections import Detection, DetectionReport, Location

DetectedLocations = Mapping[str, Iterable[Location]]
Detected = Mapping[tuple[str, int], Mapping[str, set[Location]]]  # by (case, draw) and by mechanism


def check_ground_truth(
    analysis: Analysis | Callable[..., xr.Dataset],
    detect: Callable[[xr.Dataset], DetectedLocations],
    draws: int = 20,
    cases: Sequence[GroundTruthCase] = GROUND_TRUTH,
) -> DetectionReport:
    """Compare the detections of an analysis with the true mechanisms of ground-truth models and their decoys.

    A case for which the analysis raises ``ValueError`` (such as ``UnsupportedModel``) in every draw is not applicable.
    The report lists it with the reason.

    Args:
        analysis: an analysis of a capture or of a model, or a function of a model and a batch.
        detect: function of the returned dataset that gives the detected locations of every mechanism, by the names of
            :class:`mesascope.testing.GroundTruthCase`. Give a mechanism without detections an empty set.
        draws: number of draws per case. Nuisance weights, head indices and sequences differ between draws.
        cases: ground-truth models, all of :data:`GROUND_TRUTH` by default.

    Returns:
        True positives, false negatives and false positives.

    Raises:
        ValueError: a case is not applicable in some draws only.

    >>> from mesascope.analyses import similarity
    >>> from mesascope.testing import heads_where
    >>> def detect(data):
    ...     return {"attends to dissimilar inputs": heads_where(data["role"] == -1)}
    >>> print(check_ground_truth(similarity, detect, draws=1, cases=GROUND_TRUTH[:5]).assert_exact())
    similarity: 1 draws of 5 cases, 0 not applicable
    mechanism                     planted    TP    FN    FP  recall  precision
    attends to dissimilar inputs        1     1     0     0    1.00       1.00
    """
    detected, not_applicable = _detect_locations(analysis, detect, draws, cases)
    mechanisms = tuple(dict.fromkeys(mechanism for claims in detected.values() for mechanism in claims))
    applicable = [case for case in cases if case.name not in not_applicable]
    outcomes: list[list[Detection]] = [[], [], []]
    for case, draw, label in itertools.product(applicable, range(draws), mechanisms):
        for outcome, new in zip(outcomes, _compare_locations(case, draw, label, detected), strict=True):
            outcome += new
    return DetectionReport(
        analysis=_get_name(analysis),
        draws=draws,
        mechanisms=mechanisms,
        cases=tuple(case.name for case in applicable),
        not_applicable=not_applicable,
        true_positives=tuple(outcomes[0]),
        false_negatives=tuple(outcomes[1]),
        false_positives=tuple(outcomes[2]),
    )


def _detect_locations(
    analysis: Analysis | Callable[..., xr.Dataset],
    detect: Callable[[xr.Dataset], DetectedLocations],
    draws: int,
    cases: Sequence[GroundTruthCase],
) -> tuple[Detected, dict[str, str]]:
    """Return the detected locations by case and draw, and the reason why each other case is not applicable."""
    not_applicable, detected = {}, {}
    for case in cases:
        reasons = {}
        for draw in range(draws):
            try:
                detected[case.name, draw] = {k: set(v) for k, v in detect(_run_analysis(analysis, case, draw)).items()}
            except ValueError as error:
                reasons[draw] = str(error)
        if reasons and len(reasons) < draws:
            raise ValueError(f"{case.name} must be refused in all draws or in none, but was refused in: {reasons}")
        if reasons:
            not_applicable[case.name] = reasons[0]
    return detected, not_applicable


def _compare_locations(case: GroundTruthCase, draw: int, mechanism: str, detected: Detected) -> list[list[Detection]]:
    """Return true positives, false negatives and false positives of a mechanism in one draw of a case."""
    planted, components = set(case.true_locations(draw).get(mechanism, ())), case.components(draw)
    found = detected[case.name, draw].get(mechanism, set())
    return [
        [
            Detection(case=case.name, draw=draw, mechanism=mechanism, location=one, component=components.get(one, ""))
            for one in sorted(locations)
        ]
        for locations in (planted & found, planted - found, found - planted)
    ]


def _run_analysis(analysis: Analysis | Callable[..., xr.Dataset], case: GroundTruthCase, draw: int) -> xr.Dataset:
    model, batch = case.build_model(draw), case.sample_batch(draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditHadNoEffect)  # some decoys are heads without any effect
        if not isinstance(analysis, Analysis):
            return analysis(model, batch)
        if analysis.input == "model":
            return analysis(model, case.task, batch)
        return run_analyses(model, batch, [analysis])[analysis.name]


def _get_name(analysis: Analysis | Callable[..., xr.Dataset]) -> str:
    return analysis.name if isinstance(analysis, Analysis) else getattr(analysis, "__name__", "analysis")
