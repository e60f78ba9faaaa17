"""Decoder layers and their sites, found from one traced forward pass, never from module names.

A layer is an element of the one `nn.ModuleList` that contains the attention modules. Its residual updates are the
module outputs that sum, up to rounding, to the change that the layer makes to the residual stream. A model may call all
its layers repeatedly, in complete iterations.
"""

from collections import Counter
from dataclasses import replace

from torch import Tensor, nn
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import LayerSpec, ModuleArgument, ResidualUpdate
from mesascope.activations.sites import UnsupportedModel
from mesascope.activations.structure._residual_updates import find_residual_updates, is_called_once
from mesascope.activations.structure._trace import ModuleCall, Trace, TracedAttention
from mesascope.activations.structure._weights_method import find_weights_method
from mesascope.activations.structure._wrapped_layers import (
    advise_on_layers,
    check_layers_given,
    check_stream_axes,
    find_named_attention,
    given_block_names,
    name_attention_functions,
)
from mesascope.activations.tolerances import bitwise_equal, terms_sum_to

ATTENTION_SITES = ("query", "key", "value", "attn_scores", "pattern", "z")
NO_RESID_MID = "no module of the MLP reads resid_pre + attn_out; attention and MLP may run in parallel"


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
    layers = [
        replace(_describe_layer(model, trace, call), traced_call=number, iteration=number if repeats else None)
        for number, calls in enumerate(by_iteration)
        for call in calls
    ]
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
    lists = Counter(_find_module_list(model, each.name) for each in trace.attentions)
    if len(lists) != 1 or "" in lists:
        raise UnsupportedModel(
            f"attention modules must all be in one nn.ModuleList of layers, but those of {name} are in "
            f"{', '.join(repr(each) for each in lists)}; {advise_on_layers(model)}"
        )
    (list_name,) = lists
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


def _describe_layer(model: PreTrainedModel, trace: Trace, block: ModuleCall) -> LayerSpec:
    name = type(model).__name__
    attentions = [each for each in trace.attentions if block.contains_call(each)]
    if len(attentions) > 1:
        raise UnsupportedModel(
            f"a layer must call attention once, but {block.name} of {name} calls it {len(attentions)} times"
        )
    if not attentions:
        named = find_named_attention(model, trace, block)
        return _describe_layer_without_attention(model, trace, block, named)
    attention = attentions[0]
    stream_argument, resid_pre = _find_stream_argument(block, name)
    attn_out, mlp_out, missing = find_residual_updates(trace, block, attention, resid_pre)
    resid_mid = _find_resid_mid(trace, block, attn_out, mlp_out, resid_pre) if attn_out and mlp_out else None
    if resid_mid is None:
        missing["resid_mid"] = missing.get("mlp_out", NO_RESID_MID)
    projection, reason = _find_output_projection(trace, block, attention, attn_out and attn_out.module)
    weights_method, weights_missing = find_weights_method(attention)
    if attention.output.shape[:3] != (*block.output_tensor.shape[:2], attention.call.query.shape[1]):
        weights_missing["z"] = f"the attention function returns shape {tuple(attention.output.shape)}"
    return LayerSpec(
        block=block.name,
        stream_argument=stream_argument,
        attention=attention.name,
        projection=projection,
        attn_out=attn_out,
        mlp_out=mlp_out,
        weights_method=weights_method,
        num_heads=attention.call.query.shape[1],
        num_kv_heads=attention.call.key.shape[1],
        missing=missing | weights_missing | ({} if projection else {"projection": reason}),
        resid_mid=resid_mid,
        parallel=mlp_out is not None and resid_mid is None,
    )


def _find_resid_mid(
    trace: Trace, block: ModuleCall, attn_out: ResidualUpdate, mlp_out: ResidualUpdate, resid_pre: Tensor
) -> ModuleArgument | None:
    """Return the first argument between attention and the end of the MLP that equals resid_pre + attn_out."""
    attn_call, mlp_call = (trace.call_within(block, update.module) for update in (attn_out, mlp_out))
    update = attn_out.gain * attn_call.output_tensor.reshape(resid_pre.shape)
    stream_shapes = (resid_pre.shape, resid_pre.flatten(0, 1).shape)
    for call in sorted(trace.calls_within(block), key=lambda call: call.start):
        if attn_call.end < call.start < mlp_call.end and is_called_once(trace, call, block):
            for argument, x in call.inputs.items():
                if x.shape not in stream_shapes or x.dtype != resid_pre.dtype:
                    continue
                if terms_sum_to(x.reshape(resid_pre.shape), resid_pre, update):
                    return ModuleArgument(module=call.name, argument=argument)
    return None


def _describe_layer_without_attention(
    model: PreTrainedModel, trace: Trace, block: ModuleCall, named: ModuleCall | None
) -> LayerSpec:
    """Describe a layer without attention calls: only its residual stream is available.

    The residual updates are, too, if the call of the attention module is known (``named``).
    """
    reason = f"the layer has no softmax attention that is called through {name_attention_functions(model)}"
    missing = dict.fromkeys((*ATTENTION_SITES, "attn_out", "resid_mid", "mlp_out", "projection"), reason)
    stream_argument, resid_pre = _find_stream_argument(block, type(model).__name__)
    attn_out = mlp_out = resid_mid = None
    if named is not None:
        attn_out, mlp_out, missing_updates = find_residual_updates(trace, block, named, resid_pre)
        resid_mid = _find_resid_mid(trace, block, attn_out, mlp_out, resid_pre) if attn_out and mlp_out else None
        found = {"attn_out": attn_out, "mlp_out": mlp_out, "resid_mid": resid_mid}
        missing = {site: why for site, why in (missing | missing_updates).items() if not found.get(site)}
        if "resid_mid" in missing and "mlp_out" not in missing:
            missing["resid_mid"] = NO_RESID_MID
    return LayerSpec(
        block=block.name,
        stream_argument=stream_argument,
        attention=None,
        projection=None,
        attn_out=attn_out,
        mlp_out=mlp_out,
        weights_method=None,
        num_heads=0,
        num_kv_heads=0,
        missing=missing,
        resid_mid=resid_mid,
        parallel=mlp_out is not None and resid_mid is None,
    )


def _find_stream_argument(block: ModuleCall, name: str) -> tuple[int | str, Tensor]:
    """Return the block argument that is the residual stream: the first with the shape of the block's output."""
    out = block.output
    if out is not None and out.ndim == 3:
        for argument, value in block.inputs.items():
            if value.shape == out.shape and value.dtype == out.dtype:
                return argument, value
    shape = None if out is None else tuple(out.shape)
    raise UnsupportedModel(
        "a decoder layer must return hidden states (batch, pos, d_model) of the same shape as its input, but "
        f"{block.name} of {name} returns {shape}"
    )


def _find_output_projection(
    trace: Trace, block: ModuleCall, attention: TracedAttention, attn_out_module: str | None
) -> tuple[str | None, str]:
    """Return the module that alone maps ``z`` to ``attn_out``, or the reason why there is none."""
    z = attention.output.flatten(2)
    later = [call for call in trace.calls_within(block) if call.start > attention.end]
    reading_calls = [
        call
        for call in later
        if any(given.shape == z.shape and bitwise_equal(given, z) for given in call.inputs.values())
    ]
    if not reading_calls:
        return None, "z passes through another operation before the output projection"
    if attn_out_module is None:
        return None, "attn_out is not available"
    attn_out = trace.call_within(block, attn_out_module).output
    for call in reversed(reading_calls):  # the outermost: an adapter of zeros leaves the output of the map inside it
        if (
            call.output is not None
            and attn_out is not None
            and call.output.numel() == attn_out.numel()
            and bitwise_equal(call.output.reshape(attn_out.shape), attn_out)
        ):
            return call.name, ""
    return None, "a norm or a gate separates the output projection and the residual stream"
