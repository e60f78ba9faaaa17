"""Algorithms on pairs (x, y): steps of gradient descent, others, and models that run none."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.ground_truth.cases.case import Case, Truth, answered
from mesascope.ground_truth.findings import Place
from mesascope.ground_truth.models.descent import planted_blind, planted_descent
from mesascope.ground_truth.models.function import PlantedFunction
from mesascope.ground_truth.models.pairs import DECOYS, planted_pairs
from mesascope.tasks import algorithms
from mesascope.tasks.algorithms import Algorithm
from mesascope.tasks.base import Batch
from mesascope.tasks.regression import Regression

DIM, SHOWN, COUNT = 3, 8, 64  # of an input; pairs; sequences
NUISANCE = 0.02
TASK = Regression(dim=DIM, examples_shown=SHOWN, layout="joined")
ORACLES: tuple[tuple[str, Algorithm, int, dict[str, float]], ...] = (
    ("least squares", algorithms.least_squares(), 1, {}),
    ("3 neighbours of nearest neighbours", algorithms.nearest_neighbours(), 3, {}),
    ("ridge regression", algorithms.ridge(), 1, {"ridge": 2.0}),
    ("3 steps of Newton's iteration", algorithms.newton(), 3, {"start": 1.0}),
)


def _case(name: str, about: str, build: Callable[[int, float], PreTrainedModel], truth: Callable[[int], Truth]) -> Case:
    """A model, its nuisance weights of the given size."""

    def sequences(draw: int) -> Batch:
        generator = torch.Generator().manual_seed(draw)
        return answered(build(draw, 0.0), TASK.sample(COUNT, generator), generator)

    return Case(
        name=name,
        about=about,
        task=TASK,
        build=lambda draw: build(draw, NUISANCE),
        sequences=sequences,
        truth=truth,
        called=lambda draw: {
            (layer, head): "noise" if head else f"the head {name!r}" for layer in range(3) for head in range(2)
        },
    )


def _step(draw: int) -> float:
    """From 0.3 to 0.5: one step of size 1 would be averaging, and after two larger ones little is left for a third."""
    return 0.3 + 0.2 * float(torch.rand(1, generator=torch.Generator().manual_seed(draw)))


def _steps(draw: int) -> int:
    """Two or three."""
    return 2 + draw % 2


def _carried(name: str, layers: int = 1) -> Truth:
    """An algorithm that head 0 of every layer takes a step of."""
    heads: set[Place] = {(layer, 0) for layer in range(layers)}
    return {"algorithm": {name}, "carries the prediction": heads}


def _decoy(name: str) -> Case:
    """A model that looks like a step of gradient descent."""
    attention, set_head = DECOYS[name]
    looks: dict[str, set[Place]] = {"carries the prediction": {(0, 0)}}
    if attention == "softmax":
        looks["attends alike to all"] = {(0, 0), (0, 1)} if name == "averages the answers" else {(0, 1)}
        looks["prefers the like"] = {(0, 0)} if name == "through a softmax" else set()
        looks["attends to the previous position"] = {(0, 0)} if name == "the last answer" else set()
    return _case(
        name,
        f"Decoy of gradient descent. {' '.join((set_head.__doc__ or '').split())}",
        lambda draw, nuisance: planted_pairs(name, DIM, SHOWN, _step(draw), nuisance, draw),
        lambda draw: looks,
    )


def _algorithm(draw: int) -> Callable[[Tensor], Tensor]:
    """One of the algorithms as a function from inputs to predictions."""
    _, algorithm, iteration, parameters = ORACLES[draw % len(ORACLES)]

    def predict(inputs: Tensor) -> Tensor:
        shown = TASK.examples(inputs)
        (answers,) = algorithm.predict(shown, (iteration,), **parameters)
        return shown.spread(answers, inputs.shape[1]).to(inputs.dtype)

    return predict


def _half(draw: int) -> PreTrainedModel:
    """Least squares where the first coordinate of what is asked is positive; elsewhere 0."""
    exact = _algorithm(0)
    return PlantedFunction(lambda inputs: exact(inputs) * (inputs[:, -1:, :1] > 0))


PAIRS: tuple[Case, ...] = (
    _case(
        "one step",
        "One step of gradient descent by a head of linear attention (von Oswald et al. 2023); its size is drawn.",
        lambda draw, nuisance: planted_descent(DIM, SHOWN, 1, _step(draw), nuisance, draw),
        lambda draw: _carried("1 step of gradient descent"),
    ),
    _case(
        "one step of size 1",
        "It is the mean of input times answer, which is called averaging: nothing about it is fitted.",
        lambda draw, nuisance: planted_descent(DIM, SHOWN, 1, 1.0, nuisance, draw),
        lambda draw: _carried("averaging"),
    ),
    _case(
        "two or three steps",
        "As many steps of gradient descent as there are layers.",
        lambda draw, nuisance: planted_descent(DIM, SHOWN, _steps(draw), _step(draw), nuisance, draw),
        lambda draw: _carried(f"{_steps(draw)} steps of gradient descent", _steps(draw)),
    ),
    _case(
        "another algorithm",
        f"Nothing inside, but predictions by turns of {', '.join(name for name, *_ in ORACLES)}.",
        lambda draw, nuisance: PlantedFunction(_algorithm(draw)),
        lambda draw: {"algorithm": {ORACLES[draw % len(ORACLES)][0]}},
    ),
    _case(
        "an algorithm on half of the prompts",
        "Decoy of least squares: its predictions where the first number asked is positive, elsewhere 0.",
        lambda draw, nuisance: _half(draw),
        lambda draw: {},
    ),
    _case(
        "ignores its context",
        "Decoy of all algorithms: a function of what is asked alone, by turns linear and constant.",
        lambda draw, nuisance: planted_blind(DIM, "constant" if draw % 2 else "linear", draw),
        lambda draw: {},
    ),
    *(_decoy(name) for name in DECOYS),
)
