"""Exact match of outputs over training, with the rules of the sentence and with those of another one."""

from dataclasses import replace

import torch
import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses.base import analysis
from mesascope.analyses.uncertainty import with_standard_error
from mesascope.axes import to_data_array
from mesascope.statistics import ratio_of_sums
from mesascope.studies.syntactic_transformations.exact_match import (
    match_outputs,
    sample_seen_pairs,
    validate_model_and_task,
)
from mesascope.tasks.base import Batch, Task

SEEN, UNSEEN = "pairs seen in training", "unseen pairs"
OWN, OTHER = "own rules", "rules of another sentence"


@analysis(
    title="Exact match",
    description="""
        Fraction of sentences in which every word of the output is predicted, with the true output so far as the input.
        Unseen pairs: a rule that changes the output has a pair of a label and a function that does not occur in
        training. The rules of every sentence change its output, so that a model that repeats the sentence has an exact
        match of 0. Sentences with seen pairs are drawn anew, too. Control: every sentence has the rules of another one.
    """,
    input="model",
)
def transformation_accuracy(model: PreTrainedModel, task: Task, batch: Batch) -> xr.Dataset:
    """Compute the exact match of a model on pairs that are seen in training, and on unseen ones.

    Args:
        model: an `EncoderDecoder`.
        task: `SyntacticTransformations`.
        batch: sequences with unseen pairs; they seed those with seen ones.

    Returns:
        ``exact_match`` by distribution and predictor, with its standard error.

    Raises:
        UnsupportedModel: the model is of another type.
        ValueError: the task is another one.
    """
    model, task = validate_model_and_task(model, task)
    seen = sample_seen_pairs(task, batch)
    matches = [
        torch.stack([match_outputs(model, one) for one in (drawn, exchange_rules(drawn, task.max_rules))])
        for drawn in (seen, batch)
    ]
    fraction, standard_error = ratio_of_sums(torch.stack(matches).double(), torch.ones(1))
    coords = {"distribution": [SEEN, UNSEEN], "predictor": [OWN, OTHER]}
    array = to_data_array(
        fraction, *coords, units="1", description="fraction of sentences with the right output", coords=coords
    )
    return xr.Dataset(with_standard_error("exact_match", array, standard_error))


def exchange_rules(batch: Batch, num_rules: int) -> Batch:
    """Return the batch with the rules of every sentence replaced by those of the one before it.

    Args:
        batch: the sequences.
        num_rules: number of positions of rules.
    """
    inputs = batch.inputs.clone()
    inputs[:, :num_rules] = batch.inputs[:, :num_rules].roll(1, 0)
    return replace(batch, inputs=inputs)
