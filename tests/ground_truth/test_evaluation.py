"""Evaluation of good and bad analyses on the ground-truth models, and the page of results."""

import re

import pytest
import torch
import xarray as xr
from transformers import PreTrainedModel

from cases import spread
from mesascope.activations import UnsupportedModel
from mesascope.analyses import positional_attention, repeated_token_heads, similarity, value_copying
from mesascope.analyses.base import analysis
from mesascope.ground_truth.cases.case import NextTokenTask
from mesascope.ground_truth.cases.vectors import VECTOR_CASES
from mesascope.tasks.regression import Regression
from mesascope.testing import DETECTORS, GROUND_TRUTH, check_ground_truth, heads_where

from .table import (
    DRAWS,
    END,
    PAGE,
    START,
    WEAKER_DETECTORS,
    cache_case,
    evaluate_detectors,
    format_row,
    list_errors,
    main,
)

CASES = tuple(cache_case(case) for case in GROUND_TRUTH)
FEW_NAMES = (
    "dissimilar, added",
    "similar, subtracted",
    "early positions",
    "uniform",
    "constant",
    "language model",
    "one step",
    "softmax attention",
)
FEW_NAMES = (
    *FEW_NAMES,
    "refining",
    "adding",
    "an algorithm on half of the prompts",
    "reads the generator",
    "reads the next token",
)
FEW_CASES = tuple(case for case in CASES if case.name in FEW_NAMES)
# fast analyses, run with two draws
FAST_ANALYSES = ("value_copying", "positional_attention", "repeated_token_heads", "ov_copying_score")
TEXT = PAGE.read_text(encoding="utf-8")
HEADS = [(0, head) for head in range(4)]


def strip_draws(lines: list[str]) -> set[str]:
    """Return the lines without numbers of draws and without locations."""
    return {re.split(r", \d+ of \d+ draws", line)[0] for line in lines}


@pytest.mark.parametrize("name", spread(DETECTORS, 4))
def test_page_agrees_with_a_small_run(name):
    report = evaluate_detectors({name: DETECTORS[name]}, 2 if name in FAST_ANALYSES else 1, FEW_CASES)[name]
    for label in report.mechanisms:
        cells = format_row(name, report, label).split(" | ")
        (page_row,) = re.findall(rf"^\| {re.escape(name)} \| {re.escape(label)} \| .*$", TEXT, flags=re.M)
        for column in (6, 7):  # recall and precision
            assert page_row.split(" | ")[column] != "1.00" or cells[column] in ("1.00", "-")
        applied, refused = (int(cell.strip(" |")) for cell in page_row.split(" | ")[-2:])
        assert applied + refused == len(GROUND_TRUTH)
    page_errors = re.findall(rf"^- {re.escape(name)}: (.*)$", TEXT, flags=re.M)
    assert strip_draws(report.describe_errors()) <= strip_draws(page_errors)
    lines = re.findall(rf"^- {re.escape(name)}, \d+ cases: .*: \*(.*)\*\.$", TEXT, flags=re.M)
    assert set(report.not_applicable) == set(FEW_NAMES) & {case for cases in lines for case in cases.split("; ")}


def test_page_covers_all_cases_and_detectors():
    page_results = TEXT.split(START)[1].split(END)[0]
    assert f"{DRAWS} draws of every case" in page_results
    for case in GROUND_TRUTH:
        assert f"| {case.name} | {case.description} |" in page_results
    page_names = set(re.findall(r"^\| ([\w ,]+) \| [\w ,]+ \| \d+ \|", page_results, flags=re.M))
    assert page_names == set(DETECTORS) | set(WEAKER_DETECTORS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_page_agrees_with_a_full_run():
    assert main() == TEXT


def test_criterion_that_confuses_position_with_similarity_has_false_positives():
    worse = WEAKER_DETECTORS["similarity, over keys"]
    found = check_ground_truth(worse.analysis, worse.detect, 1, VECTOR_CASES[2:7])
    assert found.precision < 0.5
    assert ("early positions", "the head 'early positions'") in {
        (mark.case, mark.component) for mark in found.false_positives
    }
    assert "false positive 'attends to dissimilar inputs' for the head 'early positions' in 'early positions'" in str(
        found
    )
    with pytest.raises(
        AssertionError, match=r"similarity must detect every planted mechanism and nothing else, but .*early positions"
    ):
        found.assert_exact()


def test_detecting_every_head_has_full_recall_and_low_precision():
    found = check_ground_truth(value_copying, lambda data: {"copies inputs": HEADS}, 1, VECTOR_CASES)
    assert found.recall == 1
    assert found.precision == pytest.approx(8 / (4 * len(VECTOR_CASES)))
    assert {(mark.case, mark.component) for mark in found.false_positives} >= {
        ("constant", "the head 'constant'"),
        ("dissimilar, added", "noise"),
    }


def test_detecting_nothing_has_zero_recall():
    found = check_ground_truth(value_copying, lambda data: {"copies inputs": []}, 1, VECTOR_CASES)
    assert found.recall == 0
    assert found.precision != found.precision
    assert len(found.false_negatives) == 8
    assert "copies inputs        8     0     8     0    0.00          -" in str(found)


def test_constant_detection_fails_because_head_indices_change():
    found = check_ground_truth(
        similarity, lambda data: {"attends to dissimilar inputs": [(0, 0)]}, 2, [VECTOR_CASES[2]]
    )
    assert (found.recall, found.precision) == (0.5, 0.5)


def test_mechanism_that_is_planted_nowhere_raises():
    found = check_ground_truth(positional_attention, lambda data: {"telepathy": []}, 1, VECTOR_CASES[:2])
    with pytest.raises(
        AssertionError, match=r"'telepathy' must be planted in a case that positional_attention applies to"
    ):
        found.assert_exact()


def test_report_lists_cases_that_are_not_applicable():
    found = check_ground_truth(repeated_token_heads, DETECTORS["repeated_token_heads"].detect, 1, FEW_CASES)
    assert set(found.not_applicable) == set(FEW_NAMES) - {"language model"}
    assert "repeated_token_heads: 1 draws of 1 cases, 12 not applicable" in str(found)
    assert (
        "not applicable to dissimilar, added, similar, subtracted, early positions, uniform, constant, refining, "
        "adding, one step" in str(found)
    )
    nothing = check_ground_truth(repeated_token_heads, DETECTORS["repeated_token_heads"].detect, 1, VECTOR_CASES[:2])
    with pytest.raises(
        AssertionError, match=r"repeated_token_heads must apply to a ground-truth model, but applies to none: .* needs"
    ):
        nothing.assert_exact()


def test_analysis_may_be_a_function_of_model_and_batch():
    def weights(model: PreTrainedModel, batch) -> xr.Dataset:
        if getattr(model.config, "d_in", None) != 1:
            raise UnsupportedModel("no planted numbers")
        output = model.get_parameter("layers.0.attention.o_proj.weight")[4].unflatten(0, (4, 8)).abs().amax(1)
        return xr.Dataset({"writes": (("layer", "head"), output[None].detach().numpy())})

    found = check_ground_truth(weights, lambda data: {"copies inputs": heads_where(data["writes"] > 0.3)}, 1)
    assert found.analysis == "weights"
    assert {mark.case for mark in found.false_positives} == {"similar, subtracted", "constant", "copies position"}
    assert not found.false_negatives
    assert len(found.cases) == len(VECTOR_CASES)


def test_analysis_may_be_a_sweep():
    task_types = []

    @analysis(title="Nothing", description="Nothing.", input="model")
    def nothing(model, task, batch) -> xr.Dataset:
        task_types.append(type(task))
        return xr.Dataset({"x": ("layer", [0.0])})

    check_ground_truth(nothing, lambda data: {"averages inputs": ()}, 1)
    assert len(task_types) == len(GROUND_TRUTH)
    assert {NextTokenTask, Regression} == set(task_types)


def test_case_refused_in_some_draws_raises():
    calls = iter([True, False])

    def fail_once(model, batch) -> xr.Dataset:
        if next(calls):
            raise ValueError("not today")
        return xr.Dataset()

    with pytest.raises(
        ValueError, match=r"previous must be refused in all draws or in none, but was refused in: \{0: 'not today'\}"
    ):
        check_ground_truth(fail_once, lambda data: {}, 2, VECTOR_CASES[:1])


def test_other_errors_propagate():
    def raise_type_error(model, batch) -> xr.Dataset:
        raise TypeError("a mistake")

    with pytest.raises(TypeError, match="a mistake"):
        check_ground_truth(raise_type_error, lambda data: {}, 1, VECTOR_CASES[:1])


@pytest.mark.parametrize("case", GROUND_TRUTH, ids=lambda case: case.name)
def test_draws_are_reproducible_and_differ(case):
    one, again, other = case.sample_batch(0), case.sample_batch(0), case.sample_batch(1)
    assert torch.equal(one.inputs, again.inputs)
    assert torch.equal(one.targets, again.targets)
    assert not torch.equal(one.inputs, other.inputs)
    model = case.build_model(0)
    assert case.task.loss(model(one.inputs).logits, one).shape == one.weight.shape
    for place in (place for at in case.true_locations(0).values() for place in at if isinstance(place, tuple)):
        sizes = (model.config.num_hidden_layers, model.config.num_attention_heads)
        assert all(index < size for index, size in zip(place, sizes, strict=False))


def test_every_mechanism_has_a_detector():
    planted = {
        label for case in GROUND_TRUTH for draw in (0, 1) for label, at in case.true_locations(draw).items() if at
    }
    page_mechanisms = set(re.findall(r"^\| [\w ,]+ \| ([\w ,]+) \| \d+ \|", TEXT, flags=re.M))
    assert planted == page_mechanisms


def test_table_without_errors():
    found = {"value_copying": check_ground_truth(value_copying, DETECTORS["value_copying"].detect, 1, VECTOR_CASES)}
    assert list_errors(found) == "There are no false negatives and no false positives."
