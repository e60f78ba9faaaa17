"""A cache of model structures, readouts and validated hook points, valid until the model changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.hooks.attention_interface import attn_implementation
from mesascope.activations.readout._readout import Readout
from mesascope.activations.structure._trace import Trace

ModelStructure = tuple[Trace, tuple[LayerSpec, ...]]
ModelState = tuple[object, ...]


@dataclass
class _CacheEntry:
    """Cached results for one state of a model: structures by kind of input, readouts by layers, validated sites."""

    state: ModelState
    structures: dict[tuple[object, ...], ModelStructure] = field(default_factory=dict)
    readouts: dict[tuple[object, ...], Readout] = field(default_factory=dict)
    validated: set[tuple[str, int]] = field(default_factory=set)


_CACHE: WeakKeyDictionary[PreTrainedModel, _CacheEntry] = WeakKeyDictionary()


def cached_structure(model: PreTrainedModel, trace_input: Shaped[Tensor, "batch pos *d_in"]) -> ModelStructure | None:
    """Return the cached structure of a model.

    Args:
        model: the model.
        trace_input: the trace input (batch, pos) or (batch, pos, d_in).

    Returns:
        The structure, or ``None`` if there is none for the model's present state and this kind of input.
    """
    return _cache_entry(model).structures.get(_input_kind(trace_input))


def cache_structure(
    model: PreTrainedModel, trace_input: Shaped[Tensor, "batch pos *d_in"], structure: ModelStructure
) -> ModelStructure:
    """Cache the structure of a model.

    Args:
        model: the model.
        trace_input: the trace input (batch, pos) or (batch, pos, d_in).
        structure: the trace and the layers.

    Returns:
        The structure.
    """
    _cache_entry(model).structures[_input_kind(trace_input)] = structure
    return structure


def cached_readout(model: PreTrainedModel, layers: Sequence[int], make_readout: Callable[[], Readout]) -> Readout:
    """Return the cached readout for some layers of a model, and make it if there is none.

    Args:
        model: the model.
        layers: the layers.
        make_readout: makes the readout.

    Returns:
        The readout.
    """
    readouts = _cache_entry(model).readouts
    if tuple(layers) not in readouts:
        readouts[tuple(layers)] = make_readout()
    return readouts[tuple(layers)]


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
