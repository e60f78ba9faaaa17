"""A cache of model structures, valid until the model changes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from mesascope.activations.hooks.attention_interface import attn_implementation
from mesascope.activations.validation.fingerprint import Fingerprint, fingerprint_model

_Structure = TypeVar("_Structure")


@dataclass
class _CacheEntry:
    """Structures by kind of input, for one state of a model."""

    state: Fingerprint
    structures: dict[tuple[object, ...], Any] = field(default_factory=dict)


# of the last two attention implementations, so that a model that alternates is not traced again
_CACHE: WeakKeyDictionary[PreTrainedModel, dict[str, _CacheEntry]] = WeakKeyDictionary()


def cached_structure(
    model: PreTrainedModel, kind: tuple[object, ...], find_structure: Callable[[Fingerprint], _Structure]
) -> _Structure:
    """Return the cached structure of a model, and find it if there is none or the model has changed.

    Args:
        model: the model.
        kind: the kind of input: shapes and dtypes of what is traced.
        find_structure: finds the structure, given the fingerprint of the weights.

    Returns:
        The structure for the model's present state and this kind of input.
    """
    state = fingerprint_model(model)
    entries, implementation = _CACHE.get(model, {}), attn_implementation(model)
    entry = entries.pop(implementation, None)
    if entry is None or entry.state != state:
        entry = _CacheEntry(state)
    others = [(name, other) for name, other in entries.items() if other.state[0] == state[0]]  # of the same weights
    _CACHE[model] = dict([*others[-1:], (implementation, entry)])
    if kind not in entry.structures:
        (weights, *_) = state
        entry.structures[kind] = find_structure(weights)  # pyright: ignore[reportArgumentType] a fingerprint of tensors
    return entry.structures[kind]
