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


# one entry for each attention implementation, so that a model that alternates between two is not traced again
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
    entries, implementation = _CACHE.setdefault(model, {}), attn_implementation(model)
    entry = entries.get(implementation)
    if entry is None or entry.state != state:
        entry = entries[implementation] = _CacheEntry(state)
        for other in [name for name, each in entries.items() if each.state[0] != state[0]]:
            del entries[other]  # of other weights
    if kind not in entry.structures:
        (weights, *_) = state
        entry.structures[kind] = find_structure(weights)  # pyright: ignore[reportArgumentType] a fingerprint of tensors
    return entry.structures[kind]
