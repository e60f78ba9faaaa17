"""Models of linear attention of known weights that preprocess, and decoys that spread their heads otherwise."""

from dataclasses import replace

import torch

from mesascope.ground_truth.cases.case import Case, answered
from mesascope.ground_truth.models.descent import maps_of, planted_descent
from mesascope.ground_truth.models.preprocessing import planted_preprocessing
from mesascope.models.transformer import Decoder
from mesascope.tasks.base import Batch
from mesascope.tasks.functions import Linear
from mesascope.tasks.regression import Regression

DIM, SHOWN = 4, 12
TASK = Regression(dim=DIM, examples_shown=SHOWN, layout="joined", functions=Linear())
SEQUENCES = 400


def split_descent(split: int) -> Decoder:
    """Two steps of plain descent, one of which is split over as many heads as there are coordinates."""
    model = planted_preprocessing(DIM, SHOWN)
    rate, wide = 0.3 / SHOWN, model.config.hidden_size // DIM
    with torch.no_grad():
        for layer in range(2):
            query, key, value, output = maps_of(model, layer)
            for weight in (query, key, value, output):
                weight.zero_()
            for j in range(DIM):
                row = j * wide if layer == split else j
                query[row, j] = key[row, j] = 1.0
            for head in range(DIM if layer == split else 1):
                value[head * wide, DIM], output[DIM, head * wide] = 1.0, -rate
    return model


def batch(count: int = SEQUENCES, seed: int = 0) -> Batch:
    return TASK.sample(count, torch.Generator().manual_seed(seed))


def case(name, build, truth) -> Case:
    """What it predicts is right, but for a little noise."""

    def sequences(draw: int) -> Batch:
        drawn = batch(seed=draw)
        return answered(build(draw), drawn, torch.Generator().manual_seed(draw))

    task = replace(TASK)
    return Case(name=name, about=name, task=task, build=build, sequences=sequences, truth=lambda draw: truth)


CASES = (
    case(
        "preprocesses, then descends",
        lambda draw: planted_preprocessing(DIM, SHOWN, 1, 0.3 - 0.05 * draw),
        {"first layer needs many heads, later ones one": {(0,)}, "preprocesses": {(0,)}},
    ),
    case("descends twice, by one head each", lambda draw: planted_descent(DIM, SHOWN, 2, 0.3), {}),
    case("descends twice, later by many heads", lambda draw: split_descent(1), {}),
    case(
        "descends twice, first by many heads",
        lambda draw: split_descent(0),
        {"first layer needs many heads, later ones one": {(0,)}},
    ),
)
