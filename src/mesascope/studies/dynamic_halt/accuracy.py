"""Accuracy of answers over training, and on shifted distributions at its end."""

from collections.abc import Mapping, Sequence

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.analyses.base import analysis
from mesascope.analyses.uncertainty import with_standard_error
from mesascope.axes import to_data_array
from mesascope.statistics import ratio_of_sums
from mesascope.studies.dynamic_halt.answers import find_correct, score_baselines
from mesascope.studies.dynamic_halt.shifts import TRAINING, list_distributions
from mesascope.tasks.base import Batch, Task, seed_by_batch

MODEL = "model"
DESCRIPTION = "fraction of sequences whose last answer is right"
Scores = Float[Tensor, " batch"]


@analysis(
    title="Accuracy over training",
    description="""
        Fraction of held-out sequences whose last answer has the largest logit of all tokens, and the same for the
        baselines of the task. The last answer is the bit after the last read, the value of the expression, or the
        relation of two formulas. Baselines of flip-flop are exact (closed form); those of other tasks are measured on
        the same sequences. For expressions also the fraction among nested ones: a baseline that ignores nested lists is
        right on all others.
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
        ``accuracy`` by predictor, with its standard error; for tasks with the latent ``depth``, also
        ``nested_accuracy``, over sequences with a depth of at least 2.
    """
    scores = _score_answers(model, task, batch)
    results = _label_accuracy("accuracy", DESCRIPTION, [scores], {})
    if "depth" in batch.latents:
        nested = batch.latents["depth"].cpu() > 1
        scores = {name: value[nested] for name, value in scores.items()}
        results |= _label_accuracy("nested_accuracy", f"{DESCRIPTION}, among nested expressions", [scores], {})
    return xr.Dataset(results)


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
    generator = seed_by_batch(batch)
    distributions = list_distributions(task)
    scores = []
    for name, shifted in distributions.items():
        drawn = batch if name == TRAINING else shifted.sample(len(batch), generator).to(batch.inputs.device)
        scores.append(_score_answers(model, shifted, drawn))
    return xr.Dataset(_label_accuracy("accuracy", DESCRIPTION, scores, {"distribution": list(distributions)}))


def _score_answers(model: PreTrainedModel, task: Task, batch: Batch) -> dict[str, Scores]:
    """Return whether the answer of the model is right, and the probability that those of the baselines are."""
    return {MODEL: find_correct(model, batch).double().cpu(), **score_baselines(task, batch)}


def _label_accuracy(
    name: str, description: str, scores: Sequence[Mapping[str, Scores]], coords: Mapping[str, list[str]]
) -> dict[str, xr.DataArray]:
    """Label the accuracy by predictor, and by distribution where there are several."""
    rows = [ratio_of_sums(torch.stack(list(row.values())), torch.ones(1)) for row in scores]
    coords = {**coords, "predictor": list(scores[0])}
    shape = [len(labels) for labels in coords.values()]
    accuracy, standard_error = (torch.stack(parts).reshape(shape) for parts in zip(*rows, strict=True))
    array = to_data_array(accuracy, *coords, units="1", description=description, coords=coords)
    return with_standard_error(name, array, standard_error)
