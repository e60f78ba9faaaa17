"""Accuracy of answers over training, and on shifted distributions at its end."""

import zlib
from collections.abc import Mapping, Sequence

import torch
import xarray as xr
from transformers import PreTrainedModel

from mesascope.analyses.base import analysis
from mesascope.analyses.uncertainty import with_standard_error
from mesascope.axes import to_data_array
from mesascope.statistics import ratio_of_sums
from mesascope.studies.dynamic_halt.answers import find_correct, measure_baselines
from mesascope.studies.dynamic_halt.shifts import TRAINING, list_distributions
from mesascope.tasks.base import Batch, Task

MODEL = "model"
DESCRIPTION = "fraction of sequences whose last answer is right"


@analysis(
    title="Accuracy over training",
    description="""
        Fraction of held-out sequences whose last answer has the largest logit of all tokens, and the same for the
        baselines of the task. The last answer is the bit after the last read, the value of the expression, or the
        relation of two formulas. Baselines of flip-flop are exact (closed form); those of other tasks are measured on
        the same sequences.
    """,
    input="model",
)
def answer_accuracy(model: PreTrainedModel, task: Task, batch: Batch) -> xr.Dataset:
    """Compute the accuracy of a model and of the baselines.

    Args:
        model: a decoder or a recurrent transformer.
        task: its task.
        batch: sequences of the task.

    Returns:
        ``accuracy`` by predictor, with its standard error.
    """
    row = _measure_accuracy(model, task, batch)
    return _label_accuracy([row], {"predictor": list(row[0])})


@analysis(
    title="Accuracy on shifted distributions",
    description="""
        Fraction of sequences whose last answer is right, on the training distribution and on shifted ones, which the
        model has not been trained on. Flip-flop: dense (10 % of the pairs are ignored), sparse (98 %), and twice the
        length. ListOps: longer expressions than in training, up to half as many tokens again; and wider ones, all of
        whose lists have one or two arguments more than the largest number in training. Logical inference: formulas with
        more operators than in training, up to twice as many.
    """,
    input="model",
    steps="last",
)
def shifted_answer_accuracy(model: PreTrainedModel, task: Task, batch: Batch) -> xr.Dataset:
    """Compute the accuracy of a model and of the baselines on the training distribution and on shifted ones.

    Args:
        model: a decoder or a recurrent transformer.
        task: its task.
        batch: sequences of the task; they seed the shifted ones, so that each training replicate gets its own.

    Returns:
        ``accuracy`` by distribution and predictor, each on as many sequences as the batch has, with its standard error.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(batch.inputs.cpu().contiguous().numpy().tobytes()))
    distributions = list_distributions(task)
    rows = []
    for name, shifted in distributions.items():
        drawn = batch if name == TRAINING else shifted.sample(len(batch), generator).to(batch.inputs.device)
        rows.append(_measure_accuracy(model, shifted, drawn))
    return _label_accuracy(rows, {"distribution": list(distributions), "predictor": list(rows[0][0])})


def _measure_accuracy(model: PreTrainedModel, task: Task, batch: Batch) -> tuple[dict[str, float], float]:
    """Return the accuracy of the model and of the baselines, and the standard error of that of the model."""
    ratio, standard_error = ratio_of_sums(find_correct(model, batch).double(), torch.ones(1))
    return {MODEL: float(ratio), **measure_baselines(task, batch)}, float(standard_error)


def _label_accuracy(rows: Sequence[tuple[dict[str, float], float]], coords: Mapping[str, list[str]]) -> xr.Dataset:
    """Label one row of accuracies, or one per distribution; baselines have no standard error."""
    values = torch.tensor([list(accuracy.values()) for accuracy, _ in rows], dtype=torch.float64)
    standard_error = torch.full_like(values, torch.nan)
    standard_error[:, 0] = torch.tensor([error for _, error in rows])
    shape = [len(labels) for labels in coords.values()]
    array = to_data_array(values.reshape(shape), *coords, units="1", description=DESCRIPTION, coords=coords)
    return xr.Dataset(with_standard_error("accuracy", array, standard_error.reshape(shape)))
