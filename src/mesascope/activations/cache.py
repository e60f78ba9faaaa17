"""What was found out about a model, for as long as it stays the same model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from jaxtyping import Shaped
from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations.layer_spec import Layer
from mesascope.activations.readout.readout import Frame
from mesascope.activations.structure.trace import Trace

Anatomy = tuple[Trace, tuple[Layer, ...]]
State = tuple[object, ...]


@dataclass
class _Known:
    """What was found in one state of a model: anatomies by the kind of input, and places that were checked."""

    state: State
    anatomies: dict[tuple[object, ...], Anatomy] = field(default_factory=dict)
    frames: dict[tuple[object, ...], Frame] = field(default_factory=dict)
    checked: set[tuple[str, int]] = field(default_factory=set)


_KNOWN: WeakKeyDictionary[PreTrainedModel, _Known] = WeakKeyDictionary()


def remembered(model: PreTrainedModel, probe: Shaped[Tensor, "batch pos *d_in"]) -> Anatomy | None:
    """The anatomy that was read from this model on such a probe, if it has not changed since."""
    return _known(model).anatomies.get(_kind(probe))


def remember(model: PreTrainedModel, probe: Shaped[Tensor, "batch pos *d_in"], anatomy: Anatomy) -> Anatomy:
    """Keep an anatomy for the next time, and return it."""
    _known(model).anatomies[_kind(probe)] = anatomy
    return anatomy


def framed(model: PreTrainedModel, chosen: Sequence[int], make: Callable[[], Frame]) -> Frame:
    """The frame of these layers, made only if there is none yet."""
    frames = _known(model).frames
    if tuple(chosen) not in frames:
        frames[tuple(chosen)] = make()
    return frames[tuple(chosen)]


def checked(model: PreTrainedModel, places: Mapping[str, Sequence[int]]) -> bool:
    """Whether all these places of this model were checked and it has not changed since."""
    return {(site, layer) for site, layers in places.items() for layer in layers} <= _known(model).checked


def note_checked(model: PreTrainedModel, places: Mapping[str, Sequence[int]]) -> None:
    """Take note that these places were checked."""
    _known(model).checked |= {(site, layer) for site, layers in places.items() for layer in layers}


def _known(model: PreTrainedModel) -> _Known:
    """What is known of a model in its present state."""
    state = _state(model)
    found = _KNOWN.get(model)
    if found is None or found.state != state:
        found = _KNOWN[model] = _Known(state)
    return found


def _state(model: PreTrainedModel) -> State:
    """What changes when weights are written to or replaced, modules or hooks exchanged, or another kernel chosen."""
    weights = tuple((id(p), p._version, p.dtype, p.device) for p in model.parameters())
    modules = tuple((id(m), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules())
    return str(model.config._attn_implementation), weights, modules


def _kind(probe: Shaped[Tensor, "batch pos *d_in"]) -> tuple[object, ...]:
    """What of a probe an anatomy may depend on."""
    return probe.shape, probe.dtype
