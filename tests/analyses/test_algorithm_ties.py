"""Which algorithm: ties are broken by weights and by other inputs, or reported; steps; edges of grids."""

import functools

import pytest
import torch
import xarray as xr
from torch import Tensor

from mesascope.analyses import which_algorithm
from mesascope.analyses.algorithms._ties import TIE_NOTE, Evidence, break_ties
from mesascope.analyses.algorithms.agreement import STEP_STAT
from mesascope.analyses.algorithms.identify import TRAINING_DISTRIBUTION
from mesascope.ground_truth.models.descent import build_gradient_descent_model
from mesascope.statistics import bootstrap_counts
from mesascope.tasks.affine import Affine
from mesascope.tasks.base import Batch
from mesascope.tasks.icl.base import InContextTask
from mesascope.tasks.regression import Regression

JOINED = Regression(dim=3, num_examples=8, layout="joined")
ALTERNATING = Regression(dim=3, num_examples=8)


def drawn(task: InContextTask, n: int = 64) -> Batch:
    return task.sample(n, torch.Generator().manual_seed(3))


def dressed(task: InContextTask, name: str, tick: int = 1, **parameters: float):
    """An algorithm as a function from inputs to predictions."""
    (algorithm,) = (each for each in task.candidate_algorithms() if each.name == name)

    def predict(inputs: Tensor) -> Tensor:
        shown = task.extract_examples(inputs)
        answers = algorithm.predict(shown, (tick,), **parameters)[0]
        return shown.scatter_to_positions(answers, inputs.shape[1]).to(inputs.dtype)

    return predict


@functools.cache
def found_of_descent() -> xr.Dataset:
    return which_algorithm(build_gradient_descent_model(3, 8, 4, step=0.7), JOINED, drawn(JOINED), shifted=False)


LAST_PAIRS = "least squares on the last 2 pairs"


@pytest.mark.parametrize("name", ["least squares", LAST_PAIRS])
def test_algorithms_with_equal_predictions_are_distinguished_by_weights_and_noise(name):
    """Without noise, both are exact from the second pair on; rounding must not decide between them."""
    task = Affine(length=8)
    found = which_algorithm(dressed(task, name), task, drawn(task), shifted=False)
    assert found["distinguishable"].sel(predictor=["least squares", LAST_PAIRS]).values.tolist() == [0, 0]
    assert found["named"].item() == name
    assert found["tied"].sel(predictor=["least squares", LAST_PAIRS]).values.tolist() == [
        int(name == "least squares"),
        int(name == LAST_PAIRS),
    ]


def test_algorithms_that_nothing_distinguishes_are_named_together():
    """A decoy: answers from a table of the rules, so that the context has no weight, and noise is not seen."""
    task = Affine(length=8)
    batch = drawn(task)

    def recall(inputs: Tensor) -> Tensor:
        known = len(inputs) == len(batch) // 2 and any(torch.equal(inputs, half.inputs) for half in halves)
        if not known:
            raise ValueError("only known sequences are answered")
        return dressed(task, "least squares")(inputs.detach()) + 0 * inputs

    halves = [batch[slice(0, 32)], batch[slice(32, 64)]]
    found = which_algorithm(recall, task, batch, shifted=False)
    assert found["named"].item() == f"{LAST_PAIRS} or least squares ({TIE_NOTE})"
    assert found["tied"].sel(predictor=["least squares", LAST_PAIRS, "copying"]).values.tolist() == [1, 1, 0]


def test_contradictory_or_uninformative_evidence_breaks_no_tie():
    counts = bootstrap_counts(16, 200, torch.Generator().manual_seed(0))
    good, bad, zero = (torch.full((16,), value, dtype=torch.float64) for value in (0.8, 0.2, 0.0))

    def weigh(first: Tensor, second: Tensor, uninformative: Tensor = zero) -> Evidence:
        return Evidence(score=torch.stack([first, second]), uninformative=uninformative, scale=good)

    assert break_ties([0, 1], [weigh(good, bad)], counts) == [0]
    assert break_ties([0, 1], [weigh(good, bad), weigh(good, good)], counts) == [0]
    assert break_ties([0, 1], [weigh(good, bad), weigh(bad, good)], counts) == [0, 1]
    assert break_ties([0, 1], [weigh(good, bad, uninformative=good)], counts) == [0, 1]
    assert break_ties([0, 1], [weigh(good, good - 1e-4)], counts) == [0, 1]


def test_similarity_relative_to_steps_is_0_for_a_copy_of_the_last_term():
    task = Affine(length=20)
    found = which_algorithm(dressed(task, "least squares"), task, drawn(task), shifted=False)
    trained = found["similarity"].sel(distribution=TRAINING_DISTRIBUTION)
    assert float(trained.sel(stat="predictions", predictor="copying")) > 0.5
    assert float(trained.sel(stat=STEP_STAT, predictor="copying")) == pytest.approx(0.0, abs=1e-9)
    assert float(trained.sel(stat=STEP_STAT, predictor="least squares")) == pytest.approx(1.0, abs=1e-5)
    assert STEP_STAT not in found_of_descent()["stat"]


def test_hyperparameters_at_the_edge_of_their_grid_are_marked():
    """Least squares is the limit of a ridge of 0 and of many steps; a planted step size lies inside."""
    found = which_algorithm(dressed(ALTERNATING, "least squares"), ALTERNATING, drawn(ALTERNATING), shifted=False)
    edges = {name: found["edges"].sel(predictor=name).item() for name in ("ridge regression", "least squares")}
    assert edges == {"ridge regression": "ridge", "least squares": ""}
    assert "iterations" in found["edges"].sel(predictor="gradient descent").item()
    assert int(found["at_edge"].sel(predictor="ridge regression")) == 1
    planted = found_of_descent().sel(predictor="gradient descent")
    assert (int(planted["at_edge"]), planted["edges"].item()) == (0, "")
    assert set(planted["layer_at_edge"].values.ravel().tolist()) <= {0, 1}


def test_two_steps_of_different_sizes_are_named():
    predict = dressed(JOINED, "variable-step gradient descent", 2, step=0.4, ratio=2.5)
    found = which_algorithm(predict, JOINED, drawn(JOINED), shifted=False, tuned=True)
    assert found["named"].item() == "2 steps of variable-step gradient descent"
    tuned = found["tuned_error"].sel(predictor="least squares")
    assert float(tuned) == pytest.approx(float(found["error"].sel(predictor="least squares").item()), abs=1e-12)
    assert int(found["tuned_at_edge"].sel(predictor="ridge regression")) == 1
