"""The chunks of recurrent transformers: their attention to the memory, and the update of the memory."""

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import ChunkSpec, LayerSpec
from mesascope.activations.sites import MEMORY_PREFIX, MEMORY_SITES
from mesascope.activations.structure._describe_layer import describe_layer
from mesascope.activations.structure._trace import ModuleCall, Trace
from mesascope.models.recurrent.model import RecurrentTransformer

_ONE_PER_CHUNK = "keys and values of the memory belong to chunks, not to positions; record memory_resid_post"
SITES_OF_CHUNKS = ("cross_key", "cross_value")


def chunk_length(model: PreTrainedModel) -> int | None:
    """Return the number of positions of a chunk; ``None`` in a model that processes all positions at once.

    Args:
        model: the model.
    """
    return model.config.chunk_length if isinstance(model, RecurrentTransformer) else None


def find_memory_keys(trace: Trace, block_calls: Sequence[ModuleCall]) -> list[Tensor]:
    """Return what modules of blocks compute outside of all calls of blocks: the keys and values of the memory.

    Args:
        trace: traced forward pass of one chunk.
        block_calls: all calls of blocks.
    """
    names = tuple(f"{call.name}." for call in block_calls)
    inside = [call for call in trace.calls if call.name.startswith(names)]
    outside = [call for call in inside if not any(block.contains_call(call) for block in block_calls)]
    return [call.output for call in outside if call.output is not None]


def without_memory_keys(layer: LayerSpec) -> LayerSpec:
    """Return the specification of a layer without the sites that have a value per chunk instead of per position.

    Args:
        layer: the specification of a layer that attends to a memory.
    """
    return replace(layer, missing=layer.missing | dict.fromkeys(SITES_OF_CHUNKS, _ONE_PER_CHUNK))


def describe_chunks(model: PreTrainedModel, trace: Trace | None) -> ChunkSpec | None:
    """Return the chunks of a model; ``None`` in a model that processes all positions at once.

    Args:
        model: the model.
        trace: a traced forward pass of two chunks; ``None`` if the inputs are one chunk.
    """
    if not isinstance(model, RecurrentTransformer) or model.config.chunk_length is None:
        return None
    update = None
    if trace is not None:
        (call,) = trace.calls_of("memory_update")
        update = describe_layer(model, trace, call)
        named = {site: site.removeprefix(MEMORY_PREFIX) for site in MEMORY_SITES}
        missing = {site: update.missing[local] for site, local in named.items() if local in update.missing}
        update = replace(update, missing=update.missing | missing)
    return ChunkSpec(length=model.config.chunk_length, num_slots=model.config.memory_slots or 0, update=update)
