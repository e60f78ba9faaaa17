"""Whether a model looks at what it is to predict: its loss without attention to later positions."""

import warnings

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations import Edit, NothingChanged, capture
from mesascope.analyses.instrument import instrument
from mesascope.axes import label
from mesascope.interventions.metrics import task_loss
from mesascope.tasks.base import Batch, Task

WAYS = ("as it is", "without the future")


@instrument(title="What later positions tell", steps="last", order=31)
def future(model: PreTrainedModel, task: Task, batch: Batch, sequences: int = 256) -> xr.Dataset:
    """The loss of the model as it is, and when attention to later positions is taken away in all heads and what is left
    of each row is made to sum to 1 again. Nothing changes in a causal model. The loss of a model that sees the future
    is not that of a language model.

    Args:
        model: a model that capture supports, with softmax attention.
        task: whose loss is meant.
        batch: sequences; the loss is the mean over their positions.
        sequences: at most so many of the batch are used.
    """
    batch = batch[:sequences]
    loss = task_loss(task, batch)
    hidden = Edit(site="pattern", fn=past_alone)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingChanged)  # that of causal models
        predictions = [capture(model, batch, ["prediction"], edits=edits)["prediction"] for edits in ((), (hidden,))]
    found = [float(loss(each).mean()) for each in predictions]
    unit = "units of the loss"
    return xr.Dataset(
        {
            "loss": label(found, "stat", units=unit, about="mean loss", coords={"stat": list(WAYS)}),
            "rise": label(found[1] - found[0], units=unit, about="rise of the loss without attention to the future"),
        }
    )


def past_alone(pattern: Float[Tensor, "batch head query key"]) -> Float[Tensor, "batch head query key"]:
    """Attention weights without those on later keys, the others in proportion; rows without any stay as they are, and
    those with nothing else become 0.

    >>> past_alone(torch.tensor([[[[0.5, 0.5], [0.25, 0.75]]]])).tolist()
    [[[[1.0, 0.0], [0.25, 0.75]]]]
    """
    past = pattern.tril()
    left = past.sum(-1, keepdim=True).clamp_min(torch.finfo(pattern.dtype).tiny)
    looks_ahead = pattern.triu(1).sum(-1, keepdim=True) > 0
    return torch.where(looks_ahead, past / left, pattern)
