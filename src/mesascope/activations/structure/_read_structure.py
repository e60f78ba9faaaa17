"""The structure of a model, read once and cached."""

from functools import partial

from jaxtyping import Int, Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._cache import cached_structure
from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.forward import first_position_id, forget_first_position_id, run_forward, run_model
from mesascope.activations.structure._chunks import chunk_length, describe_chunks
from mesascope.activations.structure._find_layers import find_layers
from mesascope.activations.structure._trace import Trace, trace_forward
from mesascope.activations.structure._wrapped_layers import check_attention_axes
from mesascope.activations.validation.fingerprint import Fingerprint
from mesascope.activations.validation.identities import check_output_unchanged
from mesascope.activations.validation.inputs import validate_weights_loaded

TRACE_LENGTH = 8  # positions of the first sequence that are traced to find the model structure


def read_structure(
    model: PreTrainedModel, inputs: Shaped[Tensor, "batch pos *d_in"], mask: Int[Tensor, "batch pos"] | None = None
) -> ModelStructure:
    """Trace a model on up to 8 inputs of the longest sequence, and find its layers.

    A model with chunks is traced on one chunk at most, and on one more input than a chunk to find the update of its
    memory.

    Args:
        model: the model.
        inputs: tokens or vectors, on the model's device.
        mask: 1 where an input is not padding.

    Returns:
        The structure.

    Raises:
        UnsupportedModel: the structure cannot be found, or tracing changes the output.
        ValueError: the mask is 0 everywhere.
    """
    longest = 0 if mask is None else int(mask.bool().sum(1).argmax())
    row = inputs[0] if mask is None else inputs[longest, mask[longest].bool()]
    length = chunk_length(model)
    trace_input = row[None, : TRACE_LENGTH if length is None else min(TRACE_LENGTH, length)]
    two_chunks = None
    if length is not None and inputs.shape[1] > length:  # with padding, the inputs of two chunks may fit into one
        two_chunks = row.repeat(1 + length // len(row), *[1] * (row.ndim - 1))[None, : length + 1]
    if trace_input.shape[1] == 0:
        raise ValueError(
            "inputs must not be all padding, but the attention mask is 0 everywhere; pass a mask with ones"
        )
    kind = (trace_input.shape, trace_input.dtype, two_chunks is not None)
    structure = cached_structure(model, kind, partial(_find_structure, model, trace_input, two_chunks))
    if mask is not None:
        first_position_id(model, row[0])
    return structure


def _find_structure(
    model: PreTrainedModel,
    trace_input: Shaped[Tensor, "batch pos *d_in"],
    two_chunks: Shaped[Tensor, "batch longer *d_in"] | None,
    weights: Fingerprint,
) -> ModelStructure:
    validate_weights_loaded(model)
    forget_first_position_id(model)
    expected = run_model(model, trace_input)
    model_trace = trace_forward(model, lambda: run_forward(model, trace_input))
    check_attention_axes(model, model_trace, partial(_trace_shorter, model, trace_input))
    layers = find_layers(model, model_trace)
    check_output_unchanged(type(model).__name__, expected, model_trace.logits)
    chunks_trace = None if two_chunks is None else trace_forward(model, lambda: run_forward(model, two_chunks))
    return ModelStructure(
        layers=layers, trace=model_trace, weights=weights, chunks=describe_chunks(model, chunks_trace)
    )


def _trace_shorter(model: PreTrainedModel, trace_input: Shaped[Tensor, "batch pos *d_in"]) -> Trace:
    return trace_forward(model, lambda: run_forward(model, trace_input[:, :-1]))
