"""The spectra of a model's linear maps from the model itself: what its maps read is sampled, sinks left out."""

from collections.abc import Sequence
from dataclasses import replace

import xarray as xr
from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.capturing import capture
from mesascope.capturing.sample import sample_maps
from mesascope.capturing.vectors import MapSamples
from mesascope.instruments import instrument
from mesascope.measures.norms import at_depths, norms, sinks
from mesascope.measures.spectra import spectra
from mesascope.tasks.base import Batch, Task


def sample_without_sinks(
    model: PreTrainedModel,
    inputs: Shaped[Tensor, "batch pos *d_in"],
    *,
    layers: Sequence[int] | None = None,
    seed: int = 0,
) -> MapSamples:
    """What every linear map reads, at a random sample of the tokens that are no sinks.

    Args:
        model: any model that capture supports.
        inputs: tokens or vectors.
        layers: which layers; all by default.
        seed: of the choice of tokens.
    """
    apart = sinks(at_depths(capture(model, inputs, [], reduce=norms.reductions, layers=layers)))
    return sample_maps(model, inputs, counted=~apart, layers=layers, seed=seed)


@instrument(title=spectra.title, order=spectra.order)
def _gram(model: PreTrainedModel, task: Task, batch: Batch, seed: int = 0) -> xr.Dataset:
    """The spectra of all maps on these sequences."""
    return spectra(sample_without_sinks(model, batch.inputs, seed=seed))


gram = replace(_gram, name="gram", about=spectra.about)
