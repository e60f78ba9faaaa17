"""Loss of a model without attention to later positions."""

import warnings

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Edit, EditHadNoEffect, capture
from mesascope.analyses.base import analysis
from mesascope.axes import to_data_array
from mesascope.interventions.metrics import task_loss
from mesascope.tasks.base import Batch, Task

MASKING_NAMES = ("intact", "causal mask")


@analysis(
    title="Ablation of attention to later positions",
    description="""
        Loss of the intact model, and when attention to later positions is set to zero in all heads and the rest of
        each row is renormalised to sum to 1. A causal model is unaffected. The loss of a model that attends to later
        positions is not comparable with that of a language model, because it may read the tokens that it predicts.
    """,
    input="model",
    steps="last",
)
def lookahead_ablation(model: PreTrainedModel, task: Task, batch: Batch, sequences: int = 256) -> xr.Dataset:
    """Compute the loss of a model with and without attention to later positions.

    Args:
        model: a model that capture supports, with softmax attention.
        task: task whose loss is computed.
        batch: sequences; the loss is the mean over their positions.
        sequences: maximum number of sequences of the batch that are used.

    Returns:
        ``loss`` of both, and ``loss_increase``.
    """
    batch = batch[:sequences]
    loss = task_loss(task, batch)
    edit = Edit(site="pattern", fn=mask_lookahead)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EditHadNoEffect)  # the edit has no effect on causal models
        predictions = [capture(model, batch, ["output"], edits=edits)["output"] for edits in ((), (edit,))]
    losses = [float(loss(each).mean()) for each in predictions]
    unit = "units of the loss"
    return xr.Dataset(
        {
            "loss": to_data_array(
                losses, "stat", units=unit, description="mean loss", coords={"stat": list(MASKING_NAMES)}
            ),
            "loss_increase": to_data_array(
                losses[1] - losses[0],
                units=unit,
                description="increase of the loss without attention to later positions",
            ),
        }
    )


def mask_lookahead(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
    """Set attention to later keys to zero and renormalise the rest of each row.

    Rows without attention to later keys stay as they are, and rows with attention to later keys only become 0.

    Args:
        pattern: attention weights of one layer.

    Returns:
        the masked weights.

    >>> mask_lookahead(torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]])).tolist()
    [[[[1.0, 0.0], [0.25, 0.75]]]]
    """
    past = pattern.tril()
    total = past.sum(-1, keepdim=True).clamp_min(torch.finfo(pattern.dtype).tiny)
    looks_ahead = pattern.triu(1).sum(-1, keepdim=True) > 0
    return torch.where(looks_ahead, past / total, pattern)
