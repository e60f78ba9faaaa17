"""Decoder layers and their sites, found from one traced forward pass, never from module names.

A layer is an element of the one `nn.ModuleList` that contains the attention modules. Its residual updates are the
module outputs that sum, up to rounding, to the change that the layer makes to the residual stream. A model may call all
its layers repeatedly, in complete iterations.
"""

from collections import Counter
from dataclasses import replace

from torch import nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._chunks import chunk_length, find_memory_keys, without_memory_keys
from mesascope.activations.structure._describe_layer import describe_layer
from mesascope.activations.structure._trace import ModuleCall, Trace
from mesascope.activations.structure._wrapped_layers import (
    advise_on_layers,
    check_layers_given,
    check_stream_axes,
    given_block_names,
)


def find_layers(model: PreTrainedModel, trace: Trace) -> tuple[LayerSpec, ...]:
    """Find the decoder layers of a model and the sites of each.

    Args:
        model: any causal language model of transformers, or one of this package.
        trace: its traced forward pass.

    Returns:
        One specification per layer and iteration, in the order of the calls. If the number of iterations depends on the
        inputs, there are as many as the model may take, those that the trace lacks like the last one.

    Raises:
        UnsupportedModel: If attention is not called through the attention interface of transformers, or the layers
            are not a plain sequence of modules that is run once or repeatedly.
    """
    name = type(model).__name__
    if not trace.attentions:
        check_layers_given(model)
    by_iteration = _find_block_calls(model, trace, name)
    check_stream_axes(model, trace, by_iteration[0])
    repeats = len(by_iteration) > 1 or trace.max_iterations is not None
    has_chunks = chunk_length(model) is not None
    memory_keys = find_memory_keys(trace, [call for calls in by_iteration for call in calls]) if has_chunks else ()
    layers = [
        replace(
            describe_layer(model, trace, call, memory_keys), traced_call=number, iteration=number if repeats else None
        )
        for number, calls in enumerate(by_iteration)
        for call in calls
    ]
    layers = [without_memory_keys(layer) for layer in layers] if has_chunks else layers
    return tuple(layers if trace.max_iterations is None else _extend_layers(layers, trace.max_iterations, name))


def get_logit_softcap(model: PreTrainedModel) -> float | None:
    """Return the soft cap of the logits in the model's configuration, or ``None``.

    Args:
        model: any causal language model of transformers.

    Returns:
        The cap c of ``c * tanh(logits / c)``.
    """
    return getattr(model.config.get_text_config(), "final_logit_softcapping", None)


def _find_block_calls(model: PreTrainedModel, trace: Trace, name: str) -> list[tuple[ModuleCall, ...]]:
    """Return the calls of the decoder blocks, in order, by iteration."""
    names = given_block_names(model)
    if names is not None:
        return _collect_iterations([trace.calls_of(each) for each in names], f"{name}, given as layers=,", name)
    lists = list_layer_lists(model, trace)
    if len(lists) != 1 or "" in lists:
        raise UnsupportedModel(
            f"attention modules must all be in one nn.ModuleList of layers, but those of {name} are in "
            f"{', '.join(repr(each) for each in lists)}; {advise_on_layers(model)}"
        )
    return find_list_calls(model, trace, *lists)


def list_layer_lists(model: PreTrainedModel, trace: Trace) -> list[str]:
    """Return the names of the lists of layers with attention, in the order of their first call; empty if in none.

    Args:
        model: the model.
        trace: its traced forward pass.
    """
    return list(Counter(_find_module_list(model, each.name) for each in trace.attentions))


def find_list_calls(model: PreTrainedModel, trace: Trace, list_name: str) -> list[tuple[ModuleCall, ...]]:
    """Return the calls of the blocks of a list, in order, by iteration.

    Args:
        model: the model.
        trace: its traced forward pass.
        list_name: the name of the list.

    Raises:
        UnsupportedModel: the calls are not in the order of the list.
    """
    name = type(model).__name__
    elements = model.get_submodule(list_name)
    by_layer = [trace.calls_of(f"{list_name}.{number}") for number, _ in elements.named_children()]
    return _collect_iterations([each for each in by_layer if each], list_name, name)


def _collect_iterations(by_layer: list[list[ModuleCall]], list_name: str, name: str) -> list[tuple[ModuleCall, ...]]:
    """Return the calls of blocks by iteration; ``by_layer`` has the calls of each block."""
    in_order = sorted((call for each in by_layer for call in each), key=lambda call: call.start)
    iterations = list(zip(*by_layer, strict=False))
    if not iterations or in_order != [call for calls in iterations for call in calls]:
        order = ", ".join(call.name.removeprefix(f"{list_name}.") for call in in_order) or "none"
        raise UnsupportedModel(
            f"layers must be called as modules in the order of their list, once or in complete iterations, but {name} "
            f"calls those of {list_name} in the order {order}"
        )
    return iterations


def _extend_layers(layers: list[LayerSpec], max_iterations: int, name: str) -> list[LayerSpec]:
    """Add the specifications of iterations that the trace lacks; all iterations are optional, and must be alike."""
    num_iterations = layers[-1].traced_call + 1
    num_blocks = len(layers) // num_iterations
    if num_iterations > max_iterations:
        raise UnsupportedModel(
            f"halting probabilities must have an entry for every iteration, but {name} takes {num_iterations} "
            f"iterations and returns {max_iterations}"
        )
    for number, layer in enumerate(layers):
        if _describe_sites(layer) != _describe_sites(layers[number % num_blocks]):
            raise UnsupportedModel(
                "the iterations of a model that halts must have the same sites, but those of "
                f"{layer.block} in {name} differ in iterations 0 and {layer.iteration}"
            )
    last = layers[-num_blocks:]
    added = [replace(layer, iteration=n) for n in range(num_iterations, max_iterations) for layer in last]
    return [replace(layer, is_optional=True) for layer in (*layers, *added)]


def _describe_sites(layer: LayerSpec) -> tuple[LayerSpec, set[str]]:
    """Return what must agree in all iterations: all but the reasons why sites are missing, which have numbers."""
    return replace(layer, missing={}, iteration=None, traced_call=0), set(layer.missing)


def _find_module_list(model: PreTrainedModel, name: str) -> str:
    """Return the name of the outermost `nn.ModuleList` that contains a module; empty if there is none."""
    parts = name.split(".")
    for length in range(1, len(parts)):
        parent = ".".join(parts[:length])
        if isinstance(model.get_submodule(parent), nn.ModuleList):
            return parent
    return ""
