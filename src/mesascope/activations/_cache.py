"""A cache of model structures, valid until the model changes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.validation.fingerprint import Fingerprint, fingerprint_model


@dataclass
class _CacheEntry:
    """Structures by kind of input, for one state of a model."""

    state: Fingerprint
    structures: dict[tuple[object, ...], ModelStructure] = field(default_factory=dict)


_CACHE: WeakKeyDictionary[PreTrainedModel, _CacheEntry] = WeakKeyDictionary()


def cached_structure(
    model: PreTrainedModel,
    trace_input: Shaped[Tensor, "batch pos *d_in"],
    find_structure: Callable[[Fingerprint], ModelStructure],
) -> ModelStructure:
    """Return the cached structure of a model, and find it if there is none or the model has changed.

    Args:
        model: the model.
        trace_input: the trace input (batch, pos) or (batch, pos, d_in).
        find_structure: finds the structure, given the fingerprint of the weights.

    Returns:
        The structure for the model's present state and this kind of input.
    """
    kind = (trace_input.shape, trace_input.dtype)
    state = fingerprint_model(model)
    entry = _CACHE.get(model)
    if entry is None or entry.state != state:
        entry = _CACHE[model] = _CacheEntry(state)
    if kind not in entry.structures:
        (weights, *_) = state
        entry.structures[kind] = find_structure(weights)  # pyright: ignore[reportArgumentType] a fingerprint of tensors
    return entry.structures[kind]
