"""Accuracy of a decoder on shifted prompts, with its own attention and with uniform attention."""

import warnings
from collections.abc import Sequence

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Edit, EditHadNoEffect, capture
from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array
from mesascope.studies.multi_concept.task import NEAREST, SWAPPED_LABELS, TRAINING_PROMPTS, ConceptPrompts
from mesascope.tasks.base import Batch, Task, seed_by_batch

INTACT, UNIFORM = "intact", "uniform attention"
PREDICTORS = [INTACT, UNIFORM, NEAREST]
CHUNK = 512  # prompts of a forward pass
PROMPTS_PER_SEQUENCE = 4  # prompts of each distribution, over the sequences of the batch


@analysis(
    title="Accuracy on shifted prompts",
    description="""
        Fraction of prompts with the right sign, on prompts of the training distribution and of others. Uniform
        attention: the attention weights of all heads are replaced by equal ones over the same positions. With swapped
        labels, every demonstration has the label of the other word of the concept; the right answer is then the
        opposite of that in training, so that a model that reads the sign of the query without the labels of the
        demonstrations has an accuracy of 0.
    """,
    input="model",
    steps="ends",
)
def shifted_accuracy(model: PreTrainedModel, task: Task, batch: Batch) -> xr.Dataset:
    """Compute the accuracy on each distribution of prompts, with intact and with uniform attention.

    Args:
        model: a model that capture supports.
        task: a task of concept prompts.
        batch: prompts of the task; they seed the other prompts, so that each training replicate gets its own.

    Returns:
        ``accuracy`` by distribution and predictor: the intact model, the model with uniform attention, and the label of
        the most similar demonstration; each on four times as many prompts as the batch has.

    Raises:
        ValueError: the task is another one.
    """
    if not isinstance(task, ConceptPrompts):
        raise ValueError(f"shifted_accuracy needs a task of concept prompts, but {type(task).__name__} is not one")
    generator = seed_by_batch(batch)
    tasks = {TRAINING_PROMPTS: task, **task.distribution_shifts(), SWAPPED_LABELS: task.with_swapped_labels()}
    prompts, device = PROMPTS_PER_SEQUENCE * len(batch), batch.inputs.device
    accuracy = [_measure_accuracy(model, one, prompts, generator, device) for one in tasks.values()]
    array = to_data_array(
        torch.tensor(accuracy, dtype=torch.float64),
        "distribution",
        "predictor",
        units="1",
        description="fraction of prompts with the right sign",
        coords={"distribution": list(tasks), "predictor": PREDICTORS},
    )
    return xr.Dataset({"accuracy": array.assign_attrs(view="bars")})


def flatten_attention(
    pattern: Float[Tensor, "batch head query key"],
) -> Float[Tensor, "batch head query key"]:
    """Return equal attention to the query's own position and all earlier ones.

    Args:
        pattern: attention weights of one layer.

    >>> flatten_attention(torch.zeros(1, 1, 2, 2)).tolist()
    [[[[1.0, 0.0], [0.5, 0.5]]]]
    """
    visible = torch.ones_like(pattern).tril()
    return visible / visible.sum(-1, keepdim=True)


def _measure_accuracy(
    model: PreTrainedModel, task: ConceptPrompts, prompts: int, generator: torch.Generator, device: torch.device
) -> list[float]:
    """Return the accuracy of each predictor."""
    flat, right = Edit(site="pattern", fn=flatten_attention), torch.zeros(len(PREDICTORS))
    for start in range(0, prompts, CHUNK):
        batch = task.sample(min(CHUNK, prompts - start), generator).to(device)
        predictions = [*(_predict(model, batch, edits) for edits in ((), (flat,))), task.baselines(batch)[NEAREST]]
        right += torch.tensor([_count_right(each, batch) for each in predictions])
    return (right / prompts).tolist()


def _predict(model: PreTrainedModel, batch: Batch, edits: Sequence[Edit]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditHadNoEffect)  # attention may be uniform already
        return capture(model, batch, ["output"], edits=edits)["output"]


def _count_right(prediction: Float[Tensor, "batch pos d_out"], batch: Batch) -> int:
    return int((prediction[:, -1].argmax(-1) == batch.targets[:, -1]).sum())
