"""Linear attention models with known weights that preprocess their inputs, and decoys with other uses of heads."""

from dataclasses import replace

import torch

from mesascope.ground_truth.cases.case import GroundTruthCase, replace_targets
from mesascope.ground_truth.models.descent import attention_parameters, build_gradient_descent_model
from mesascope.ground_truth.models.preprocessing import build_preprocessing_model
from mesascope.models.transformer import Decoder
from mesascope.tasks.base import Batch
from mesascope.tasks.functions import LinearFunctions
from mesascope.tasks.regression import Regression

DIM, NUM_EXAMPLES = 4, 12
TASK = Regression(dim=DIM, num_examples=NUM_EXAMPLES, layout="joined", functions=LinearFunctions())
SEQUENCES = 400


def build_split_descent_model(split_layer: int) -> Decoder:
    """Build two steps of plain gradient descent, one of which is split over one head per coordinate."""
    model = build_preprocessing_model(DIM, NUM_EXAMPLES)
    rate, head_width = 0.3 / NUM_EXAMPLES, model.config.hidden_size // DIM
    with torch.no_grad():
        for layer in range(2):
            query, key, value, output = attention_parameters(model, layer)
            for weight in (query, key, value, output):
                weight.zero_()
            for j in range(DIM):
                row = j * head_width if layer == split_layer else j
                query[row, j] = key[row, j] = 1.0
            for head in range(DIM if layer == split_layer else 1):
                value[head * head_width, DIM], output[DIM, head * head_width] = 1.0, -rate
    return model


def sample_batch(count: int = SEQUENCES, seed: int = 0) -> Batch:
    return TASK.sample(count, torch.Generator().manual_seed(seed))


def make_case(name, build_model, truth) -> GroundTruthCase:
    """Make a case whose targets are the model's predictions plus a little noise."""

    def sample_sequences(draw: int) -> Batch:
        batch = sample_batch(seed=draw)
        return replace_targets(build_model(draw), batch, torch.Generator().manual_seed(draw))

    task = replace(TASK)
    return GroundTruthCase(
        name=name,
        description=name,
        task=task,
        build_model=build_model,
        sample_batch=sample_sequences,
        true_locations=lambda draw: truth,
    )


CASES = (
    make_case(
        "preprocesses, then descends",
        lambda draw: build_preprocessing_model(DIM, NUM_EXAMPLES, 1, 0.3 - 0.05 * draw),
        {"first layer needs many heads, later ones one": {(0,)}, "preprocesses": {(0,)}},
    ),
    make_case(
        "two descent steps, one head each", lambda draw: build_gradient_descent_model(DIM, NUM_EXAMPLES, 2, 0.3), {}
    ),
    make_case("two descent steps, many heads in the second", lambda draw: build_split_descent_model(1), {}),
    make_case(
        "two descent steps, many heads in the first",
        lambda draw: build_split_descent_model(0),
        {"first layer needs many heads, later ones one": {(0,)}},
    ),
)
