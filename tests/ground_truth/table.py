"""Write docs/ground-truth.md: ``python -m tests.ground_truth.table`` (``make ground-truth``)."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import torch

from mesascope.analyses import refinement_heads, similarity, which_algorithm
from mesascope.analyses.algorithms.identify import NO_ALGORITHM
from mesascope.ground_truth.adapters import attribution_patching
from mesascope.ground_truth.cases.untrained import HEADS as UNTRAINED_HEADS
from mesascope.ground_truth.cases.untrained import LAYERS as UNTRAINED_LAYERS
from mesascope.ground_truth.detections import format_fraction
from mesascope.testing import (
    DETECTORS,
    GROUND_TRUTH,
    UNTRAINED_CASES,
    DetectionReport,
    Detector,
    GroundTruthCase,
    check_ground_truth,
    heads_where,
)

PAGE = Path(__file__).parents[2] / "docs" / "ground-truth.md"
DRAWS, FEW_DRAWS = 20, 4  # draws of the detectors, and of the weaker criteria
MODERATE_CORRELATION = 0.3  # a correlation that is often called moderate
START, END = "<!-- results -->", "<!-- end of results -->"
UNTRAINED_TEXT = (
    "Heads with random weights have learned nothing, so every role that is reported for them is a false positive. A "
    "role of a trained head is evidence only where untrained models have it more rarely: the attention score of scalar "
    "terms contains their product with a random factor, which is a correlation with similarity of random sign. The "
    "table shows the fraction of heads, by layer, and the fraction of models for which a role is reported."
)
WEAKER_DETECTORS: Mapping[str, Detector] = {
    "similarity, over keys": Detector(
        analysis=similarity,
        detect=lambda dataset: {
            "attends to similar inputs": heads_where(dataset["over_keys"] > MODERATE_CORRELATION),
            "attends to dissimilar inputs": heads_where(dataset["over_keys"] < -MODERATE_CORRELATION),
        },
        description=(
            f"correlation of score and similarity over the keys of a query above {MODERATE_CORRELATION} or below "
            f"-{MODERATE_CORRELATION}"
        ),
    ),
    "similarity, position fixed": Detector(
        analysis=similarity,
        detect=lambda dataset: {
            "attends to similar inputs": heads_where(dataset["fixed_position"] > dataset["fixed_position_null_high"]),
            "attends to dissimilar inputs": heads_where(dataset["fixed_position"] < dataset["fixed_position_null_low"]),
        },
        description="correlation at fixed positions outside its null interval, main effects of query and key included",
    ),
    "refinement_heads, joint slopes": Detector(
        analysis=refinement_heads,
        detect=lambda dataset: {
            "refines the estimate": heads_where(
                (
                    (dataset["stream_slope"] < dataset["stream_slope_null_low"])
                    & (dataset["target_slope"] > dataset["target_slope_null_high"])
                ).all("stat")
            )
        },
        description="both slopes of the joint regression outside their null intervals, whatever their size",
    ),
    "attribution_patch, first order": Detector(
        analysis=partial(attribution_patching, steps=0),
        detect=DETECTORS["attribution_patch"].detect,
        description="as for attribution_patch, with the gradient at the original activations only",
    ),
    "which_algorithm, any name": Detector(
        analysis=which_algorithm.using(layers=False, shifted=False),
        detect=lambda dataset: {"algorithm": {dataset["named"].item()} - {NO_ALGORITHM}},
        description="the reported algorithm, whatever variance it explains",
    ),
}


ROLE_DETECTORS = ("similarity", "value_copying", "similarity and value_copying", "refinement_heads")


def evaluate_detectors(
    detectors: Mapping[str, Detector], draws: int, cases: tuple[GroundTruthCase, ...] = GROUND_TRUTH
) -> dict[str, DetectionReport]:
    """Return the report of every detector."""
    return {
        name: check_ground_truth(detector.analysis, detector.detect, draws, cases)
        for name, detector in detectors.items()
    }


def evaluate_untrained(draws: int) -> dict[str, DetectionReport]:
    """Return the reports of the roles of heads on untrained models, where every detection is a false positive."""
    cases = tuple(cache_case(case) for case in UNTRAINED_CASES)
    return evaluate_detectors({name: DETECTORS[name] for name in ROLE_DETECTORS}, draws, cases)


def cache_case(case: GroundTruthCase) -> GroundTruthCase:
    """Return a case that caches its models and batches."""
    return replace(case, build_model=cache(case.build_model), sample_batch=cache(case.sample_batch))


def format_cases() -> str:
    """Return a table of all cases with the mechanisms of their first draw."""
    rows = [f"| {case.name} | {case.description} | {_format_mechanisms(case)} |" for case in GROUND_TRUTH]
    return "\n".join(["| case | description | mechanisms |", "|---|---|---|", *rows])


def format_reports(reports: Mapping[str, DetectionReport], detectors: Mapping[str, Detector]) -> str:
    """Return a table with a row for each analysis and mechanism, and the criteria."""
    head = (
        "| analysis | mechanism | planted | true positives | false negatives | false positives | recall | precision "
        "| cases | not applicable |"
    )
    rows = [format_row(name, report, label) for name, report in reports.items() for label in report.mechanisms]
    criteria = [f"- {name}: {detectors[name].description}." for name in reports]
    return "\n".join([head, "|---" * 10 + "|", *rows, "", "Criteria for a detection:", "", *criteria])


def format_untrained(reports: Mapping[str, DetectionReport]) -> str:
    """Return a table with the fraction of heads, and of models, in which a role is reported without training."""
    rows = [
        f"| {case} | {name} | {label} | {_format_rates(report.select(mechanism=label, case=case))} |"
        for case in (case.name for case in UNTRAINED_CASES)
        for name, report in reports.items()
        for label in report.mechanisms
    ]
    head = "| case | analysis | mechanism | heads of layer 0 | layer 1 | layer 2 | models with such a head in layer 2 |"
    return "\n".join([head, "|---" * 7 + "|", *rows])


def _format_rates(report: DetectionReport) -> str:
    locations = [mark.location for mark in report.false_positives]
    heads = report.draws * UNTRAINED_HEADS
    by_layer = [sum(location[0] == layer for location in locations) / heads for layer in range(UNTRAINED_LAYERS)]
    models = {mark.draw for mark in report.false_positives if mark.location[0] == UNTRAINED_LAYERS - 1}
    return " | ".join(f"{rate:.2f}" for rate in (*by_layer, len(models) / report.draws))


def list_errors(reports: Mapping[str, DetectionReport]) -> str:
    """Return the false negatives and false positives as a list."""
    lines = [f"- {name}: {line}." for name, report in reports.items() for line in report.describe_errors()]
    return "\n".join(lines or ["There are no false negatives and no false positives."])


def list_false_positives(reports: Mapping[str, DetectionReport]) -> str:
    """Return the components that are false positives, over all cases."""
    lines = []
    for name, report in reports.items():
        for label in report.mechanisms:
            heads = sorted(
                {
                    mark.component.removeprefix("the head ") or mark.case
                    for mark in report.select(mechanism=label).false_positives
                }
            )
            lines.append(f"- {name}, false positives for {label!r}: {', '.join(heads) or 'none'}.")
    return "\n".join(lines)


def format_row(name: str, report: DetectionReport, mechanism: str) -> str:
    """Return the table row of one mechanism."""
    selected = report.select(mechanism=mechanism)
    planted = len(selected.true_positives) + len(selected.false_negatives)
    numbers = [
        planted,
        len(selected.true_positives),
        len(selected.false_negatives),
        len(selected.false_positives),
        format_fraction(selected.recall),
        format_fraction(selected.precision),
    ]
    cells = [name, mechanism, *numbers, len(report.cases), len(report.not_applicable)]
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def list_not_applicable(reports: Mapping[str, DetectionReport]) -> str:
    """Return the cases to which each analysis does not apply, by reason."""
    lines = []
    for name, report in reports.items():
        reasons: dict[str, list[str]] = {}
        for case, reason in report.not_applicable.items():
            reasons.setdefault(_shorten_reason(reason), []).append(case)
        lines += [f"- {name}, {len(cases)} cases: {reason}: *{'; '.join(cases)}*." for reason, cases in reasons.items()]
    return "\n".join(lines)


def _shorten_reason(reason: str) -> str:
    # the first clause, without the parts that differ between models
    return reason.split(", but ")[0].split(";")[0].split(": ")[0]


def _format_mechanisms(case: GroundTruthCase) -> str:
    locations, components = case.true_locations(0), case.components(0)
    algorithm = sorted(str(name) for name in locations.get("algorithm", ()))
    mechanisms = [label for label, at in locations.items() if any(components.get(place) != "noise" for place in at)]
    return "; ".join([*algorithm, *(label for label in mechanisms if label != "algorithm")])


def format_page(
    text: str,
    reports: Mapping[str, DetectionReport],
    weaker_reports: Mapping[str, DetectionReport],
    untrained_reports: Mapping[str, DetectionReport],
) -> str:
    """Return the page with updated results."""
    before, rest = text.split(START)
    after = rest.split(END)[1]
    draws = next(iter(reports.values())).draws
    parts = [
        f"## Ground-truth models\n\n{format_cases()}",
        f"## Results\n\n{draws} draws of every case.\n\n{format_reports(reports, DETECTORS)}",
        f"## False negatives and false positives\n\n{list_errors(reports)}",
        f"## Weaker criteria\n\nThe models distinguish good criteria from bad ones. {FEW_DRAWS} draws.\n\n"
        f"{format_reports(weaker_reports, WEAKER_DETECTORS)}",
        list_false_positives(weaker_reports),
        f"## Untrained models\n\n{UNTRAINED_TEXT} {draws} draws.\n\n{format_untrained(untrained_reports)}",
        f"## Not applicable\n\n{list_not_applicable(reports)}",
    ]
    return before + START + "\n\n" + "\n\n".join(parts) + "\n\n" + END + after


def main(draws: int = DRAWS) -> str:
    """Return the page with results computed anew."""
    cases = tuple(cache_case(case) for case in GROUND_TRUTH)
    return format_page(
        PAGE.read_text(encoding="utf-8"),
        evaluate_detectors(DETECTORS, draws, cases),
        evaluate_detectors(WEAKER_DETECTORS, FEW_DRAWS, cases),
        evaluate_untrained(draws),
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    PAGE.write_text(main(), encoding="utf-8")
