"""Cases on pairs (x, y): gradient descent, other learning algorithms, and decoys that run none."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.ground_truth.cases.case import GroundTruthCase, TrueLocations, replace_targets
from mesascope.ground_truth.detections import Location
from mesascope.ground_truth.models.descent import build_context_blind_model, build_gradient_descent_model
from mesascope.ground_truth.models.function import PlantedFunction
from mesascope.ground_truth.models.pairs import PAIR_DECOYS, build_pair_decoy
from mesascope.tasks import algorithms
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch
from mesascope.tasks.regression import Regression

DIM, NUM_EXAMPLES, NUM_SEQUENCES = 3, 8, 64  # input dimensions; in-context examples; sequences
NUISANCE_STD = 0.02  # standard deviation of nuisance weights
TASK = Regression(dim=DIM, num_examples=NUM_EXAMPLES, layout="joined")
BASELINES: tuple[tuple[str, Algorithm, int, dict[str, float]], ...] = (
    ("least squares", algorithms.least_squares(), 1, {}),
    ("3 neighbours of nearest neighbours", algorithms.nearest_neighbours(), 3, {}),
    ("ridge regression", algorithms.ridge_regression(), 1, {"ridge": 2.0}),
    ("3 steps of Newton's iteration", algorithms.newton_iteration(), 3, {"start": 1.0}),
)


def _make_case(
    name: str,
    description: str,
    build_model: Callable[[int, float], PreTrainedModel],
    true_locations: Callable[[int], TrueLocations],
) -> GroundTruthCase:
    def sample_batch(draw: int) -> Batch:
        generator = torch.Generator().manual_seed(draw)
        return replace_targets(build_model(draw, 0.0), TASK.sample(NUM_SEQUENCES, generator), generator)

    return GroundTruthCase(
        name=name,
        description=description,
        task=TASK,
        build_model=lambda draw: build_model(draw, NUISANCE_STD),
        sample_batch=sample_batch,
        true_locations=true_locations,
        components=lambda draw: {
            (layer, head): "noise" if head else f"the head {name!r}" for layer in range(3) for head in range(2)
        },
    )


def _draw_step_size(draw: int) -> float:
    # from 0.3 to 0.5: one step of size 1 is averaging, and two larger steps leave too little error for a third
    return 0.3 + 0.2 * float(torch.rand(1, generator=torch.Generator().manual_seed(draw)))


def _choose_num_steps(draw: int) -> int:
    return 2 + draw % 2


def _locate_algorithm(name: str, layers: int = 1) -> TrueLocations:
    """Return the truth of an algorithm that head 0 of every layer computes one step of."""
    locations: set[Location] = {(layer, 0) for layer in range(layers)}
    return {"algorithm": {name}, "affects the prediction": locations}


def _make_decoy_case(name: str) -> GroundTruthCase:
    attention, set_head = PAIR_DECOYS[name]
    mechanisms: dict[str, set[Location]] = {"affects the prediction": {(0, 0)}}
    if attention == "softmax":
        mechanisms["attends uniformly"] = {(0, 0), (0, 1)} if name == "averages the targets" else {(0, 1)}
        mechanisms["attends to similar inputs"] = {(0, 0)} if name == "softmax attention" else set()
        mechanisms["attends to the previous position"] = {(0, 0)} if name == "copies the last target" else set()
    return _make_case(
        name,
        f"Decoy of gradient descent. {' '.join((set_head.__doc__ or '').split())}",
        lambda draw, nuisance: build_pair_decoy(name, DIM, NUM_EXAMPLES, _draw_step_size(draw), nuisance, draw),
        lambda draw: mechanisms,
    )


def _make_predictor(draw: int) -> Callable[[Tensor], Tensor]:
    """Return one of the algorithms as a function from inputs to predictions."""
    _, algorithm, iteration, parameters = BASELINES[draw % len(BASELINES)]

    def predict_targets(inputs: Tensor) -> Tensor:
        context = TASK.extract_examples(inputs)
        (predictions,) = algorithm.predict(context, (iteration,), **parameters)
        return context.scatter_to_positions(predictions, inputs.shape[1]).to(inputs.dtype)

    return predict_targets


def _build_half_least_squares(draw: int) -> PreTrainedModel:
    least_squares = _make_predictor(0)
    return PlantedFunction(lambda inputs: least_squares(inputs) * (inputs[:, -1:, :1] > 0))


PAIR_CASES: tuple[GroundTruthCase, ...] = (
    _make_case(
        "one step",
        "One step of gradient descent by a linear attention head (von Oswald et al. 2023). The step size is random.",
        lambda draw, nuisance: build_gradient_descent_model(
            DIM, NUM_EXAMPLES, 1, _draw_step_size(draw), nuisance, draw
        ),
        lambda draw: _locate_algorithm("1 step of gradient descent"),
    ),
    _make_case(
        "one step of size 1",
        "The mean of input times target. It has no fitted hyperparameter and is reported as averaging.",
        lambda draw, nuisance: build_gradient_descent_model(DIM, NUM_EXAMPLES, 1, 1.0, nuisance, draw),
        lambda draw: _locate_algorithm("averaging"),
    ),
    _make_case(
        "two or three steps",
        "Gradient descent with one step per layer.",
        lambda draw, nuisance: build_gradient_descent_model(
            DIM, NUM_EXAMPLES, _choose_num_steps(draw), _draw_step_size(draw), nuisance, draw
        ),
        lambda draw: _locate_algorithm(f"{_choose_num_steps(draw)} steps of gradient descent", _choose_num_steps(draw)),
    ),
    _make_case(
        "another algorithm",
        "A function without layers. It predicts, depending on the draw, by "
        f"{', '.join(name for name, *_ in BASELINES)}.",
        lambda draw, nuisance: PlantedFunction(_make_predictor(draw)),
        lambda draw: {"algorithm": {BASELINES[draw % len(BASELINES)][0]}},
    ),
    _make_case(
        "an algorithm on half of the prompts",
        "Decoy of least squares: least squares where the first coordinate of the query input is positive, else 0.",
        lambda draw, nuisance: _build_half_least_squares(draw),
        lambda draw: {},
    ),
    _make_case(
        "ignores its context",
        "Decoy of all algorithms: a function of the query input only, linear or constant depending on the draw.",
        lambda draw, nuisance: build_context_blind_model(DIM, "constant" if draw % 2 else "linear", draw),
        lambda draw: {},
    ),
    *(_make_decoy_case(name) for name in PAIR_DECOYS),
)
