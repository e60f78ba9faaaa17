"""A cache of model structures and validated hook points, valid until the model changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._model_structure import ModelStructure
from mesascope.activations.hooks.attention_interface import attn_implementation

ModelState = tuple[object, ...]


@dataclass
class _CacheEntry:
    """Cached results for one state of a model: structures by kind of input, and validated sites."""

    state: ModelState
    structures: dict[tuple[object, ...], ModelStructure] = field(default_factory=dict)
    validated: set[tuple[str, int]] = field(default_factory=set)


_CACHE: WeakKeyDictionary[PreTrainedModel, _CacheEntry] = WeakKeyDictionary()


def cached_structure(
    model: PreTrainedModel, trace_input: Shaped[Tensor, "batch pos *d_in"], find_structure: Callable[[], ModelStructure]
) -> ModelStructure:
    """Return the cached structure of a model, and find it if there is none.

    Args:
        model: the model.
        trace_input: the trace input (batch, pos) or (batch, pos, d_in).
        find_structure: finds the structure.

    Returns:
        The structure for the model's present state and this kind of input.
    """
    kind = _input_kind(trace_input)
    structure = _cache_entry(model).structures.get(kind)
    if structure is None:
        structure = _cache_entry(model).structures[kind] = find_structure()
    return structure


def is_validated(model: PreTrainedModel, layers_by_site: Mapping[str, Sequence[int]]) -> bool:
    """Return whether all hook points have been validated for the model's present state.

    Args:
        model: the model.
        layers_by_site: layers by site.

    Returns:
        ``True`` if all of them have been validated.
    """
    return {(site, layer) for site, layers in layers_by_site.items() for layer in layers} <= _cache_entry(
        model
    ).validated


def mark_validated(model: PreTrainedModel, layers_by_site: Mapping[str, Sequence[int]]) -> None:
    """Record that hook points have been validated for the model's present state.

    Args:
        model: the model.
        layers_by_site: layers by site.
    """
    _cache_entry(model).validated |= {(site, layer) for site, layers in layers_by_site.items() for layer in layers}


def _cache_entry(model: PreTrainedModel) -> _CacheEntry:
    state = _model_state(model)
    entry = _CACHE.get(model)
    if entry is None or entry.state != state:
        entry = _CACHE[model] = _CacheEntry(state)
    return entry


def _model_state(model: PreTrainedModel) -> ModelState:
    """Return a value that changes with the weights, the modules, their hooks, and the attention implementation."""
    weights = tuple((id(p), p._version, p.dtype, p.device) for p in model.parameters())
    modules = tuple((id(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules())
    return attn_implementation(model), weights, modules


def _input_kind(trace_input: Shaped[Tensor, "batch pos *d_in"]) -> tuple[object, ...]:
    """Return the properties of a trace input on which the structure may depend."""
    return trace_input.shape, trace_input.dtype
