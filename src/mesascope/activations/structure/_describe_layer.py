"""The specification of one layer, found from the traced call of its block: its attentions, MLP and streams."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

from torch import Tensor
from transformers import PreTrainedModel

from mesascope.activations._layer_spec import (
    AttentionWeightsMethod,
    CrossAttentionSpec,
    LayerSpec,
    ModuleArgument,
    ResidualUpdate,
)
from mesascope.activations.sites import CROSS_PREFIX, CROSS_SITES, UnsupportedModel
from mesascope.activations.structure._mlp_hidden import find_mlp_hidden
from mesascope.activations.structure._residual_updates import find_residual_updates, is_called_once
from mesascope.activations.structure._trace import ModuleCall, Trace, TracedAttention
from mesascope.activations.structure._weights_method import find_weights_method
from mesascope.activations.structure._wrapped_layers import find_named_attention, name_attention_functions
from mesascope.activations.tolerances import bitwise_equal, terms_sum_to

NO_RESID_MID = "no module of the MLP reads resid_pre + attn_out; attention and MLP may run in parallel"
ATTENTION_SITES = ("query", "key", "value", "attn_scores", "pattern", "z")


@dataclass(frozen=True, kw_only=True)
class _AttentionSpec:
    """Specification of one attention of a layer, with the fields of `CrossAttentionSpec`."""

    projection: str | None
    weights_method: AttentionWeightsMethod | None
    num_heads: int
    num_kv_heads: int
    missing: dict[str, str]


def describe_layer(
    model: PreTrainedModel, trace: Trace, block: ModuleCall, source_states: Sequence[Tensor] = ()
) -> LayerSpec:
    """Return the specification of one call of a block.

    Args:
        model: the model.
        trace: its traced forward pass.
        block: the call.
        source_states: states of an encoder or a memory, in all forms in which cross-attention may read them, also as
            keys (batch, source, kv_head * d_head).

    Raises:
        UnsupportedModel: the block calls attention more than once, besides cross-attention.
    """
    name = type(model).__name__
    within = [each for each in trace.attentions if block.contains_call(each)]
    cross = [each for each in within if _reads_source(trace, block, each, source_states)]
    own = [each for each in within if each not in cross]
    if len(own) > 1 or len(cross) > 1:
        raise UnsupportedModel(
            f"a layer must call attention once, but {block.name} of {name} calls it {len(own)} times"
            + (f", and cross-attention {len(cross)} times" if cross else "")
        )
    if not own:
        named = find_named_attention(model, trace, block)
        return _describe_layer_without_attention(model, trace, block, named, source_states)
    if cross and cross[0].start < own[0].start:
        raise UnsupportedModel(
            f"a decoder layer must call self-attention before cross-attention, but {block.name} of {name} does not"
        )
    stream_argument, resid_pre = _find_stream_argument(block, name, source_states)
    attn_updates, mlp_out, missing = find_residual_updates(trace, block, [*own, *cross], resid_pre)
    streams = _find_streams_between(trace, block, [*attn_updates, mlp_out], resid_pre)
    missing |= _explain_missing_streams(streams, missing, bool(cross))
    attention = _describe_attention(trace, block, own[0], attn_updates[0])
    mlp_hidden, reason = find_mlp_hidden(model, trace, block, mlp_out)
    missing |= {} if mlp_hidden else {"mlp_hidden": missing.get("mlp_out", reason)}
    spec = LayerSpec(
        block=block.name,
        stream_argument=stream_argument,
        attention=own[0].name,
        projection=attention.projection,
        attn_out=attn_updates[0],
        mlp_out=mlp_out,
        weights_method=attention.weights_method,
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_kv_heads,
        missing=missing | attention.missing,
        resid_mid=streams[0],
        mlp_hidden=mlp_hidden,
        parallel=mlp_out is not None and streams[-1] is None,
    )
    return _add_cross_attention(spec, trace, block, cross, attn_updates, streams)


def _add_cross_attention(
    spec: LayerSpec,
    trace: Trace,
    block: ModuleCall,
    cross: Sequence[TracedAttention],
    attn_updates: Sequence[ResidualUpdate | None],
    streams: Sequence[ModuleArgument | None],
) -> LayerSpec:
    """Return the specification of a layer with its cross-attention, or with the reason why it has none."""
    if not cross:
        reason = "the layer has no cross-attention"
        return replace(spec, missing=spec.missing | dict.fromkeys(CROSS_SITES, reason))
    described = _describe_attention(trace, block, cross[0], attn_updates[1])
    cross_spec = CrossAttentionSpec(
        module=cross[0].name,
        projection=described.projection,
        attn_out=attn_updates[1],
        weights_method=described.weights_method,
        num_heads=described.num_heads,
        num_kv_heads=described.num_kv_heads,
        resid_mid=streams[1],
    )
    missing = {f"{CROSS_PREFIX}{site}": reason for site, reason in described.missing.items()}
    return replace(spec, cross=cross_spec, missing=spec.missing | missing)


def _reads_source(trace: Trace, block: ModuleCall, attention: TracedAttention, source_states: Sequence[Tensor]) -> bool:
    """Return whether a call of attention reads states of the source, in a module of the block around it or as keys."""
    if not source_states:
        return False
    around = [call for call in trace.calls_within(block) if call.contains_call(attention)]
    keys = attention.call.key.transpose(1, 2).flatten(2)
    return any(
        bitwise_equal(keys, states) or any(call.reads_tensor(states) for call in around) for states in source_states
    )


def _describe_attention(
    trace: Trace, block: ModuleCall, attention: TracedAttention, attn_out: ResidualUpdate | None
) -> _AttentionSpec:
    projection, reason = _find_output_projection(trace, block, attention, attn_out and attn_out.module)
    weights_method, missing = find_weights_method(attention)
    num_heads = attention.call.query.shape[1]
    if attention.output.shape[:3] != (*block.output_tensor.shape[:2], num_heads):
        missing["z"] = f"the attention function returns shape {tuple(attention.output.shape)}"
    return _AttentionSpec(
        projection=projection,
        weights_method=weights_method,
        num_heads=num_heads,
        num_kv_heads=attention.call.key.shape[1],
        missing=missing | ({} if projection else {"projection": reason}),
    )


def _find_streams_between(
    trace: Trace, block: ModuleCall, updates: Sequence[ResidualUpdate | None], resid_pre: Tensor
) -> list[ModuleArgument | None]:
    """Return for each update but the last where the stream after it is read, before the next; ``None`` if it is not."""
    leading = list(takewhile(lambda update: update is not None, updates))
    calls = [trace.call_within(block, update.module) for update in leading if update is not None]
    terms = [
        update.gain * call.output_tensor.reshape(resid_pre.shape)
        for update, call in zip(leading, calls, strict=True)
        if update is not None
    ]
    readers = [
        _find_stream_reader(trace, block, (calls[n], calls[n + 1]), [resid_pre, *terms[: n + 1]])
        for n in range(len(calls) - 1)
    ]
    return readers + [None] * (len(updates) - 1 - len(readers))


def _find_stream_reader(
    trace: Trace, block: ModuleCall, between: tuple[ModuleCall, ModuleCall], terms: Sequence[Tensor]
) -> ModuleArgument | None:
    """Return the first argument between two calls that equals a sum of terms."""
    (earlier, later), stream = between, terms[0]
    stream_shapes = (stream.shape, stream.flatten(0, 1).shape)
    for call in sorted(trace.calls_within(block), key=lambda call: call.start):
        if earlier.end < call.start < later.end and is_called_once(trace, call, block):
            for argument, x in call.inputs.items():
                if x.shape not in stream_shapes or x.dtype != stream.dtype:
                    continue
                if terms_sum_to(x.reshape(stream.shape), *terms):
                    return ModuleArgument(module=call.name, argument=argument)
    return None


def _explain_missing_streams(
    streams: Sequence[ModuleArgument | None], missing: dict[str, str], has_cross: bool
) -> dict[str, str]:
    """Return why the streams between updates are missing."""
    reasons = {}
    last = NO_RESID_MID
    if has_cross:
        last = "no module of the MLP reads resid_pre + attn_out + cross_attn_out"
        if streams[0] is None:
            reasons["resid_mid"] = missing.get(
                "attn_out", missing.get("mlp_out", "no module of the cross-attention reads resid_pre + attn_out")
            )
    if streams[-1] is None:
        reasons["cross_resid_mid" if has_cross else "resid_mid"] = missing.get("mlp_out", last)
    return reasons


def _describe_layer_without_attention(
    model: PreTrainedModel,
    trace: Trace,
    block: ModuleCall,
    named: ModuleCall | None,
    source_states: Sequence[Tensor],
) -> LayerSpec:
    """Describe a layer without attention calls: only its residual stream is available.

    The residual updates are, too, if the call of the attention module is known (``named``).
    """
    reason = f"the layer has no softmax attention that is called through {name_attention_functions(model)}"
    sites = (*ATTENTION_SITES, "attn_out", "resid_mid", "mlp_hidden", "mlp_out", "projection", *CROSS_SITES)
    missing = dict.fromkeys(sites, reason)
    stream_argument, resid_pre = _find_stream_argument(block, type(model).__name__, source_states)
    attn_out = mlp_out = mlp_hidden = resid_mid = None
    if named is not None:
        (attn_out,), mlp_out, missing_updates = find_residual_updates(trace, block, [named], resid_pre)
        (resid_mid,) = _find_streams_between(trace, block, [attn_out, mlp_out], resid_pre)
        mlp_hidden, why_not = find_mlp_hidden(model, trace, block, mlp_out)
        missing_updates |= {} if mlp_hidden else {"mlp_hidden": missing_updates.get("mlp_out", why_not)}
        found = {"attn_out": attn_out, "mlp_hidden": mlp_hidden, "mlp_out": mlp_out, "resid_mid": resid_mid}
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
        mlp_hidden=mlp_hidden,
        parallel=mlp_out is not None and resid_mid is None,
    )


def _find_stream_argument(
    block: ModuleCall, name: str, source_states: Sequence[Tensor] = ()
) -> tuple[int | str, Tensor]:
    """Return the block argument that is the residual stream: the first with the shape of the block's output."""
    out = block.output
    if out is not None and out.ndim == 3:
        for argument, value in block.inputs.items():
            is_source = any(bitwise_equal(value, states) for states in source_states)
            if value.shape == out.shape and value.dtype == out.dtype and not is_source:
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
